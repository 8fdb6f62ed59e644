"""Bundles: deterministic, read by name, and refused in one line where they are not what was written."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.bundle import (
    LAYOUT,
    MANIFEST,
    MAX_BYTES,
    MAX_MEMBERS,
    BundleMember,
    Origin,
    TrainingData,
    copy_bundle,
    max_bytes,
    read_manifest,
    write_bundle,
)
from geograft.card import CARD, WEIGHTS, read_card
from geograft.errors import GeograftError, InputError
from geograft.runs import run_files
from tests.support.runs import make_run

MEMBERS = {WEIGHTS: bytes(range(256)) * 4, "history.csv": b"epoch\n", "scores-test.json": b"{}"}
ORIGIN = Origin("apache-2.0", TrainingData(3, 20, 5, 5))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    members = MEMBERS | {CARD: (make_run(folder / "run") / CARD).read_bytes()}
    write_bundle(folder / "trees.graft", members, ORIGIN)
    return folder / "trees.graft"


def content(bundle: Path) -> dict[str, bytes]:
    return {name: BundleMember(bundle, name).read_bytes() for name in read_manifest(bundle).members}


def rewritten(bundle: Path, out: Path, change: Callable[[dict[str, bytes]], None], **options: int) -> Path:
    """Write a bundle again by `zipfile` alone, after `change` of its members."""
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out


def edit_manifest(members: dict[str, bytes], changes: dict[str, object]) -> None:
    members[MANIFEST] = json.dumps(json.loads(members[MANIFEST]) | changes).encode()


def refused(bundle: Path, *facts: str) -> None:
    """Assert that the bundle is refused in one line with all facts."""
    with pytest.raises(InputError) as caught:
        content(bundle)
    for fact in (str(bundle), *facts):
        assert fact in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_bundle_has_what_was_written_and_the_same_bytes_again(bundle: Path, tmp_path: Path) -> None:
    found = content(bundle)
    assert {name: found[name] for name in MEMBERS} == MEMBERS
    assert read_manifest(bundle).origin == ORIGIN
    write_bundle(tmp_path / "again.graft", dict(reversed(found.items())), ORIGIN)
    assert (tmp_path / "again.graft").read_bytes() == bundle.read_bytes()
    copy_bundle(bundle, tmp_path / "copy.graft", {})
    assert (tmp_path / "copy.graft").read_bytes() == bundle.read_bytes()
    copy_bundle(bundle, tmp_path / "changed.graft", {"history.csv": b"other"})
    assert content(tmp_path / "changed.graft") == found | {"history.csv": b"other"}


def test_other_programs_read_a_bundle(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == MANIFEST
        assert archive.read(WEIGHTS) == MEMBERS[WEIGHTS]
        assert json.loads(archive.read(MANIFEST))["layout"] == LAYOUT


def test_a_missing_member_is_missing_as_a_file_is(bundle: Path) -> None:
    absent = BundleMember(bundle, "recipe.toml")
    assert not absent.exists()
    with pytest.raises(FileNotFoundError):
        absent.read_bytes()


@given(place=st.integers(0, 10**9), bits=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_does_not_matter(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, place: int, bits: int
) -> None:
    damaged = bytearray(bundle.read_bytes())
    damaged[place % len(damaged)] ^= bits
    path = tmp_path_factory.mktemp("damaged") / "trees.graft"
    path.write_bytes(damaged)
    try:
        found = content(path)
        read_card(path)
    except GeograftError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert found == content(bundle)


@given(length=st.integers(0, 10**9))
def test_a_truncated_bundle_is_refused(bundle: Path, tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    whole = bundle.read_bytes()
    path = tmp_path_factory.mktemp("truncated") / "trees.graft"
    path.write_bytes(whole[: length % len(whole)])
    refused(path)


@pytest.mark.parametrize("text", [b"", b"PK", b"scene", b"PK\3\4" + bytes(100), bytes(1000)])
def test_what_is_no_bundle_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "scene.tif").write_bytes(text)
    refused(tmp_path / "scene.tif")


def test_bytes_added_to_a_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    for number, changed in enumerate((bundle.read_bytes() + b"x", b"x" + bundle.read_bytes())):
        path = tmp_path / f"{number}.graft"
        path.write_bytes(changed)
        refused(path)


def test_another_member_than_the_manifest_lists_is_refused(bundle: Path, tmp_path: Path) -> None:
    refused(rewritten(bundle, tmp_path / "a", lambda m: m.update({WEIGHTS: bytes(1024)})), WEIGHTS, "SHA-256")
    refused(rewritten(bundle, tmp_path / "b", lambda m: m.update({WEIGHTS: b"x"})), MANIFEST)
    refused(rewritten(bundle, tmp_path / "c", lambda m: m.update({"recipe.toml": b""})), MANIFEST)
    refused(rewritten(bundle, tmp_path / "d", lambda m: m.pop("history.csv")), MANIFEST)
    refused(rewritten(bundle, tmp_path / "e", lambda m: m.pop(MANIFEST)), MANIFEST)
    refused(rewritten(bundle, tmp_path / "f", lambda m: edit_manifest(m, {"members": []})), "members")


@pytest.mark.parametrize(
    "name", ["../card.json", "/etc/card.json", "folder/scores-a.json", "run.sh", "scores-..\\a.json"]
)
def test_a_member_with_another_name_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    refused(rewritten(bundle, tmp_path / "bundle.graft", lambda m: m.update({name: b""})), repr(name))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.graft"]


def test_a_newer_layout_is_told_by_its_number_whatever_else_is_in_it(bundle: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        edit_manifest(members, {"layout": LAYOUT + 1, "something": "new", "members": {}})
        members["new.bin"] = b""

    refused(rewritten(bundle, tmp_path / "newer.graft", change), f"layout {LAYOUT + 1}", "--upgrade")


def test_a_zip_bomb_is_refused_before_it_is_decompressed(bundle: Path, tmp_path: Path) -> None:
    def inflate(members: dict[str, bytes]) -> None:
        members["scores-test.json"] = bytes(50 * 2**20)

    bomb = rewritten(bundle, tmp_path / "bomb.graft", inflate, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    refused(bomb, "compressed")


def test_a_member_that_is_too_large_is_refused(bundle: Path, tmp_path: Path) -> None:
    large = rewritten(bundle, tmp_path / "large.graft", lambda m: m.update({CARD: bytes(MAX_BYTES[CARD] + 1)}))
    refused(large, CARD, f"{MAX_BYTES[CARD]:,}")
    with pytest.raises(InputError, match=CARD):
        write_bundle(tmp_path / "out.graft", {CARD: bytes(MAX_BYTES[CARD] + 1)}, ORIGIN)
    assert not (tmp_path / "out.graft").exists()


def test_a_size_that_the_directory_does_not_tell_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Both sizes of a member in the directory are one byte less than there is."""
    whole = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as archive:
        place = archive.start_dir
    struct.pack_into("<2L", whole, place + 20, *(struct.unpack_from("<L", whole, place + 24)[0] - 1,) * 2)
    (tmp_path / "a.graft").write_bytes(whole)
    refused(tmp_path / "a.graft", MANIFEST)


def test_many_members_and_members_of_one_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    many = {f"scores-{number}.json": b"" for number in range(MAX_MEMBERS)}
    refused(rewritten(bundle, tmp_path / "many.graft", lambda m: m.update(many)), str(MAX_MEMBERS))
    with zipfile.ZipFile(tmp_path / "two.graft", "w") as archive, pytest.warns(UserWarning):
        archive.writestr(CARD, b"1")
        archive.writestr(CARD, b"2")
    refused(tmp_path / "two.graft", "the same name")


def test_a_place_is_no_score_file_whatever_its_name(tmp_path: Path) -> None:
    members = {"places/scores-north.json": b"{}", "places/area2.json": b"{}", "scores-test.json": b"{}"}
    write_bundle(tmp_path / "run.graft", members, ORIGIN)
    found = {pattern: [file.name for file in run_files(tmp_path / "run.graft", pattern)] for pattern in MAX_BYTES}
    assert found["scores-*.json"] == ["scores-test.json"]
    assert found["area*.json"] == []
    assert found["places/*.json"] == ["places/area2.json", "places/scores-north.json"]


def test_every_member_of_a_run_has_a_maximum_size() -> None:
    assert max_bytes("scores-test.json") == max_bytes("scores-north-val.json") == MAX_BYTES["scores-*.json"]
    with pytest.raises(ValueError, match="state"):
        max_bytes("state.ckpt")
