"""Atomic writes and digests."""

from pathlib import Path

import pytest

from geograft.errors import OutputError
from geograft.files import atomic_folder, atomic_write, file_digest, json_digest, write_json


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_a_failed_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "tiles") as part:
        (part / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "mine").write_text("x")
    with pytest.raises(OutputError, match="tiles exists"), atomic_folder(tmp_path / "tiles"):
        pass
    assert (tmp_path / "tiles" / "mine").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_raises_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left on device") as caught, atomic_write(tmp_path / "a.json"):
        Path("/dev/full").write_text("x" * 10_000)
    assert "\n" not in str(caught.value)


def test_digests_differ_with_content_and_not_with_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    write_json(tmp_path / "b.json", {"b": 1, "a": 3})
    assert file_digest(tmp_path / "a.json") != file_digest(tmp_path / "b.json")
    assert json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1})
