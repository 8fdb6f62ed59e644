"""Bundles: a run as one file, NAME.graft, to hand over.

A bundle is a zip archive without compression, so that no member is larger than the file. `bundle.json` lists the other
members with size and SHA-256. Members are read by name into memory, up to a maximum size each, and never extracted. The
same members give the same bytes: fixed order, fixed times.
"""

import errno
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile, ZipFile, ZipInfo

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geograft.config import describe_fault
from geograft.errors import InputError
from geograft.files import atomic_write, check_input_file, to_json

SUFFIX = ".graft"
MANIFEST = "bundle.json"
LAYOUT = 1
"""Version of the layout that this version of Geograft writes, and the newest that it reads. Raise it with every change
that older versions cannot read, such as a new field of the model card."""
THUMBNAIL = "thumbnail.png"
MIB = 2**20
MAX_BYTES: Mapping[str, int] = {
    MANIFEST: MIB,
    "card.json": MIB,
    "model.safetensors": 3 * 1024 * MIB,
    "training_features.safetensors": 256 * MIB,
    "history.csv": 16 * MIB,
    "recipe.toml": MIB,
    "calibration.json": 16 * MIB,
    "scores-*.json": 64 * MIB,
    "area*.json": 16 * MIB,
    "places/*.json": 16 * MIB,
    "adaptation.json": 16 * MIB,
    THUMBNAIL: 4 * MIB,
}
"""Patterns of the members' names, and their maximum sizes; * stands for no slash. A bundle has no others."""
MAX_MEMBERS, MAX_DIRECTORY_BYTES = 200, 64 * 1024
END = struct.Struct("<4s4H2LH")
"""End of a zip archive without comment: signature, disk numbers, entries, size and offset of the directory."""
DAMAGE = (BadZipFile, OSError, RuntimeError, ValueError, EOFError, LookupError, OverflowError, struct.error)
"""Exceptions of `zipfile` for a damaged archive: it was written for archives that are not."""
MAX_REASON = 200
"""Maximum number of characters of a message that quotes the file."""
AGAIN = "Copy or download it again, or write it again with `geograft export RUN --for bundle`."


@dataclass(frozen=True)
class MemberInfo:
    """Size and digest of a member."""

    size: Annotated[int, Field(ge=0)]
    """In bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class TrainingData:
    """Size of the tile set that a run was trained on."""

    scenes: int
    train_tiles: int
    val_tiles: int
    test_tiles: int


@dataclass(frozen=True)
class Origin:
    """What a bundle says about its run besides the run's own files."""

    weights_licence: str
    """Licence of the encoder's pretrained weights; "unknown" where unknown, "none" for random ones."""
    training_data: TrainingData | None = None
    """None if the tile set was not at hand."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """Content of bundle.json."""

    layout: Annotated[int, Field(ge=1, le=LAYOUT)]
    geograft: str
    """Version that wrote the bundle."""
    origin: Origin
    members: dict[str, MemberInfo]


@dataclass(frozen=True)
class _Layout:
    """The entry of bundle.json that all layouts have."""

    layout: int


@dataclass(frozen=True)
class BundleMember:
    """A member of a bundle, with those methods of a Path that readers of a run's files need."""

    bundle: Path
    name: str

    def __str__(self) -> str:
        return f"{self.bundle}: {self.name}"

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return Path(self.name).suffix

    def exists(self) -> bool:
        """Return whether the bundle has this member.

        Raises:
            InputError: if the bundle is damaged.
        """
        return self.name in read_manifest(self.bundle).members

    is_file = exists

    def read_bytes(self) -> bytes:
        """Return the content, after comparing its digest with that in bundle.json.

        Raises:
            FileNotFoundError: if the bundle has no such member.
            InputError: if the bundle is damaged.
        """
        listed = read_manifest(self.bundle).members.get(self.name)
        if listed is None:
            raise FileNotFoundError(errno.ENOENT, "the bundle does not have it", str(self))
        content = _read(self.bundle, self.name, _entries(self.bundle))
        if hashlib.sha256(content).hexdigest() != listed.sha256:
            raise _damaged_error(self.bundle, f"{self.name} has another SHA-256 than {MANIFEST} lists")
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text, as `read_bytes`."""
        return self.read_bytes().decode(encoding)


def read_manifest(bundle: Path) -> Manifest:
    """Read bundle.json, after checking names and sizes of all members. Their content is not read.

    Raises:
        InputError: if the file is not a bundle, is damaged, or was written by a newer version.
    """
    entries = _entries(bundle)
    content = _read(bundle, MANIFEST, entries)
    try:
        layout = TypeAdapter(_Layout).validate_json(content).layout
        if layout > LAYOUT:
            raise InputError(
                f"{bundle} has layout {layout} of bundles; this version of Geograft reads layouts up to {LAYOUT}. "
                "Install a newer one: pip install --upgrade geograft."
            )
        manifest = TypeAdapter(Manifest).validate_json(content)
    except ValidationError as error:
        raise _damaged_error(bundle, f"{MANIFEST}: {describe_fault(error)[:MAX_REASON]}") from error
    for entry in entries.values():
        _check_entry(bundle, entry)
    found = {name: entry.file_size for name, entry in entries.items() if name != MANIFEST}
    if found != {name: member.size for name, member in manifest.members.items()}:
        raise _damaged_error(bundle, f"its members or their sizes differ from those that {MANIFEST} lists")
    return manifest


def write_bundle(path: Path, members: Mapping[str, bytes], origin: Origin) -> None:
    """Write a bundle of `members` by name, atomically.

    Raises:
        InputError: if a member is larger than `MAX_BYTES` allows.
        OutputError: if the file cannot be written.
        ValueError: for a name that is not in `MAX_BYTES`.
    """
    listed = {name: MemberInfo(len(content), hashlib.sha256(content).hexdigest()) for name, content in members.items()}
    manifest = Manifest(LAYOUT, version("geograft"), origin, dict(sorted(listed.items())))
    whole = {MANIFEST: to_json(asdict(manifest)).encode(), **{name: members[name] for name in manifest.members}}
    for name, content in whole.items():
        if len(content) > max_bytes(name):
            raise InputError(f"{name} has {len(content):,} bytes; a bundle takes at most {max_bytes(name):,}.")
    with atomic_write(path) as part, ZipFile(part, "w") as archive:
        for name, content in whole.items():
            entry = ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content)


def copy_bundle(bundle: Path, path: Path, changes: Mapping[str, bytes]) -> None:
    """Write a copy of a bundle to `path`, atomically, with the members in `changes` in place of its own.

    Raises:
        InputError: if the bundle is damaged, or a member is larger than `MAX_BYTES` allows.
        OutputError: if the file cannot be written.
    """
    manifest = read_manifest(bundle)
    kept = {name: BundleMember(bundle, name).read_bytes() for name in manifest.members if name not in changes}
    write_bundle(path, kept | dict(changes), manifest.origin)


def matches(name: str, pattern: str) -> bool:
    """Return whether a member's name matches a pattern, in which * stands for no slash.

    >>> matches("scores-test.json", "scores-*.json"), matches("places/scores-a.json", "scores-*.json")
    (True, False)
    """
    return fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def max_bytes(name: str) -> int:
    """Return the maximum size of a member in bytes.

    Raises:
        ValueError: for a name that no member has.
    """
    for pattern, limit in MAX_BYTES.items():
        if matches(name, pattern) and "\\" not in name:
            return limit
    raise ValueError(f"{name!r} is not a member of bundles")


def _read(bundle: Path, name: str, entries: Mapping[str, ZipInfo]) -> bytes:
    """Return a member's content as stored, after checking its entry."""
    if name not in entries:
        raise _damaged_error(bundle, f"it has no {name}")
    _check_entry(bundle, entries[name])
    try:
        with ZipFile(bundle) as archive:
            return archive.read(entries[name])
    except DAMAGE as error:
        raise _damaged_error(bundle, f"{name} cannot be read ({str(error)[:MAX_REASON]})") from error


def _entries(bundle: Path) -> dict[str, ZipInfo]:
    """Return the members by name, as the archive's directory describes them."""
    _check_end(bundle)
    try:
        with ZipFile(bundle) as archive:
            entries = archive.infolist()
    except DAMAGE as error:
        raise _damaged_error(bundle, str(error)[:MAX_REASON]) from error
    by_name = {entry.filename: entry for entry in entries}
    if len(by_name) != len(entries):
        raise _damaged_error(bundle, "two members have the same name")
    return by_name


def _check_end(bundle: Path) -> None:
    """Check the end of the archive, which is where its directory is described, before that is read."""
    size = check_input_file(bundle).st_size
    try:
        with bundle.open("rb") as file:
            start = file.read(4)
            file.seek(max(0, size - END.size))
            end = file.read()
    except OSError as error:
        raise InputError(f"{bundle} cannot be read: {error.strerror}. Check the path.") from error
    if start != b"PK\3\4":
        raise InputError(
            f"{bundle} is not a bundle of Geograft. Give a run folder, or a {SUFFIX} file from `geograft export`."
        )
    signature, *disks, entries, all_entries, length, offset, comment = END.unpack(end.ljust(END.size, b"\0"))
    if signature != b"PK\5\6" or any(disks) or comment or entries != all_entries or offset + length + END.size != size:
        raise _damaged_error(bundle, "it is truncated, or something was added to it")
    if entries > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise _damaged_error(bundle, f"it lists {entries:,} members; a bundle has at most {MAX_MEMBERS}")


def _check_entry(bundle: Path, entry: ZipInfo) -> None:
    try:
        limit = max_bytes(entry.filename)
    except ValueError as error:
        raise _damaged_error(bundle, str(error)[:MAX_REASON]) from error
    if entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise _damaged_error(bundle, f"{entry.filename} is compressed or encrypted, which members of bundles are not")
    if entry.file_size > limit:
        raise _damaged_error(bundle, f"{entry.filename} has {entry.file_size:,} bytes; at most {limit:,} are read")


def _damaged_error(bundle: Path, reason: str) -> InputError:
    return InputError(f"{bundle} is not an intact bundle: {reason}. {AGAIN}")
