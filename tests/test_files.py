"""Atomic writes and digests."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from geograft.errors import OutputError
from geograft.files import (
    MARKER,
    atomic_folder,
    atomic_write,
    file_digest,
    json_digest,
    refuse_existing,
    remove_scratch_folder,
    scratch_path,
    write_json,
)
from geograft.mapping.ledger import Ledger
from geograft.mapping.polygons.ledger import PolygonLedger
from geograft.mapping.windows import Lanes, TileGrid
from geograft.resume import create_ledger, keep_ledger_on_error, remove_ledger


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_an_output_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("", "."):
        with pytest.raises(OutputError, match="without a name"), atomic_write(Path(name)):
            pass
    assert not list(tmp_path.iterdir())


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


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("x")


def foreign_file(path: Path) -> None:
    path.write_text("x")


def foreign_link(path: Path) -> None:
    foreign_folder(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def write_in(kind: Callable[[Path], AbstractContextManager[Path]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with kind(path) as part:
            part.touch()

    return write


def keep_unless_empty(path: Path) -> None:
    with keep_ledger_on_error(scratch_path(path), lambda: ""):
        raise OutputError(".q.part")


REMOVERS = {
    "atomic_write": write_in(atomic_write),
    "atomic_folder": write_in(atomic_folder),
    "write_json": lambda path: write_json(path, {}),
    "refuse_existing": refuse_existing,
    "remove_scratch_folder": remove_scratch_folder,
    "create_ledger": lambda path: create_ledger(scratch_path(path), {"origin": {}, "complete": False}),
    "remove_ledger": lambda path: remove_ledger(scratch_path(path)),
    "keep_ledger_on_error": keep_unless_empty,
    "Ledger": lambda path: Ledger(scratch_path(path), {}, Lanes(TileGrid(9, 9, 16, 0.0), 16)),
    "PolygonLedger": lambda path: PolygonLedger(scratch_path(path), {}, 3),
}


@pytest.mark.parametrize("make", [foreign_folder, foreign_file, foreign_link])
@pytest.mark.parametrize("remover", REMOVERS)
def test_what_others_put_at_the_partial_path_is_refused_and_kept(
    tmp_path: Path, remover: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / ".q.part")
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match=r"\.q\.part") as caught:
        REMOVERS[remover](tmp_path / "q")
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("kind", [atomic_write, atomic_folder])
@pytest.mark.parametrize("marked", [False, True])
def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, kind: Callable[[Path], AbstractContextManager[Path]], marked: bool
) -> None:
    scratch = tmp_path / ".q.part"
    scratch.mkdir()
    if marked:  # else it was killed before it wrote the marker
        (scratch / MARKER).touch()
        (scratch / "q").mkdir()
        (scratch / "q" / "half").touch()
    with kind(tmp_path / "q") as part:
        assert {path.name for path in scratch.iterdir()} - {part.name} == {MARKER}
        (part if kind is atomic_write else part / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert kind is atomic_write or [path.name for path in (tmp_path / "q").iterdir()] == ["whole"]
