"""Paths as strings, checks of input files, atomic writes of files and folders, and digests."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from geograft.errors import InputError, OutputError

StrPath: TypeAlias = str | os.PathLike[str]
"""A path as public functions take it."""
LEDGER = "ledger.json"
"""The file by which a folder of partial results is recognised, see `geograft.resume`."""
MARKER = ".geograft-part"
"""The file by which a temporary folder is recognised: only what has it, or is empty, is removed."""
UPDATE = ".geograft-update"
"""Folder of finished files that replace those of the same names in the folder above, see `atomic_update`."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, or a user's part of it, that is full."""


def printable(path: Path) -> str:
    """Return a path as text that can be printed, with escapes for bytes that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_input_file(path: Path) -> os.stat_result:
    """Return the status of an input file. Opening a FIFO instead would wait for another process.

    Raises:
        InputError: if it is missing, not a regular file, or has a name that is too long or not UTF-8.
    """
    try:
        str(path).encode()
        status = path.stat()
    except UnicodeEncodeError as error:
        raise InputError(f"{printable(path)}: the name is not UTF-8. Rename the file.") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read: {reason}. Check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise InputError(f"{path} is {kind}; a file is needed. Check the path.")
    return status


def check_output(path: Path) -> None:
    """Check the place of an output, which may exist as a file or folder.

    Raises:
        OutputError: if it is a link that leads nowhere, a pipe or a device, which would be replaced, or has a name that
            is too long or not UTF-8.
    """
    with translate_write_errors(path):
        with suppress(FileNotFoundError):
            os.lstat(scratch_path(path))  # fails where the name is too long
        if os.path.lexists(path) and not path.is_file() and not path.is_dir():
            kind = "a link that leads nowhere" if path.is_symlink() else "a pipe, socket or device"
            raise OutputError(f"{path} is {kind}; nothing was changed. Remove it or choose another --out.")


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Raise OutputError in place of an OSError from writing `path`; other exceptions pass through.

    Raises:
        OutputError: on any OSError in the block (disk full, no permission, a folder of that name), and if the name of
            `path` is not UTF-8.
    """
    try:
        str(path).encode()
        yield
    except UnicodeEncodeError as error:
        raise OutputError(f"{printable(path)}: the name is not UTF-8. Choose another --out.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "Free some space or choose" if error.errno in FULL else "Choose"
        raise OutputError(f"{path} cannot be written: {reason}. {advice} another --out.") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder next to `path`; the file replaces `path` on success.

    The folder `.NAME.part` is removed, with whatever a driver writes next to its output. What a killed process left
    there is removed first.

    Raises:
        OutputError: on any OSError, and if `.NAME.part` is not a temporary folder of geograft, which then stays as it
            is.
    """
    with translate_write_errors(path), scratch_folder(path) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


def remove_scratch_folder(path: Path) -> None:
    """Remove the temporary folder that a killed `atomic_write` left next to `path`.

    Raises:
        OutputError: on any OSError, and if the folder is not one of geograft.
    """
    with translate_write_errors(path):
        _remove_scratch(scratch_path(path))


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it becomes `folder` on success and is removed on failure.

    It lies in `.NAME.part` next to `folder`, with the file by which that is recognised after a kill.

    Raises:
        OutputError: before any work is done, if `folder` exists and is not empty, or `.NAME.part` is not a temporary
            folder of geograft; on any OSError.
    """
    refuse_existing(folder)
    with translate_write_errors(folder), scratch_folder(folder) as scratch:
        part = scratch / folder.name
        part.mkdir()
        yield part
        if folder.exists():
            folder.rmdir()
        part.replace(folder)


@contextmanager
def atomic_update(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; on success its files replace those of the same names in `folder`: all of them, or none.

    An empty file removes the file of its name. The files are synced to disk; the rename of their folder to `UPDATE`
    decides, and `complete_update` moves them into place, here or, after a kill, before they are read again.

    Raises:
        OutputError: on any OSError, and if there is something else with the name of the temporary folder.
    """
    complete_update(folder)
    missing = not folder.exists()
    try:
        with translate_write_errors(folder), scratch_folder(folder / UPDATE) as scratch:
            part = scratch / "files"
            part.mkdir()
            yield part
            for path in (*part.iterdir(), part):
                _sync(path)
            part.replace(folder / UPDATE)
            _sync(folder)
    finally:
        if missing:
            # After a failure the new folder is empty.
            with suppress(OSError):
                folder.rmdir()
    complete_update(folder)


def complete_update(folder: Path) -> None:
    """Complete an `atomic_update` of `folder` that was interrupted after its decision. Several processes may do so.

    Raises:
        OutputError: on any OSError, and if something else has the name `UPDATE`.
    """
    update = folder / UPDATE
    if not os.path.lexists(update):
        return
    # Another process may move each file, and remove the folder, in the meantime.
    with translate_write_errors(folder), suppress(FileNotFoundError):
        if not stat.S_ISDIR(update.lstat().st_mode) or any(path.is_dir() for path in update.iterdir()):
            raise foreign_folder_error(update)
        for path in update.iterdir():
            with suppress(FileNotFoundError):
                _move_or_remove(path, folder / path.name)
        update.rmdir()


def refuse_existing(path: Path) -> None:
    """Raise OutputError if `path` is a file or a non-empty folder, or if its temporary folder belongs to others.

    Also as `check_output`.
    """
    check_output(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputError(f"{path} exists already; nothing was changed. Remove it or choose another --out.")
    scratch = scratch_path(path)
    if not (scratch / LEDGER).is_file():
        _refuse_foreign(scratch)


def scratch_path(path: Path) -> Path:
    """Return the temporary folder of the output `path`, next to it.

    Raises:
        OutputError: if the path has no name, such as an empty one.
    """
    if not path.name:
        raise OutputError(f"The path of the output is {str(path)!r}, without a name. Give the path of a file.")
    return path.with_name(f".{path.name}.part")


def remove_folder(folder: Path, last: str) -> None:
    """Remove a folder. The file `last`, by which it is recognised, is deleted last, in case this is interrupted."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.rmdir()


def foreign_folder_error(folder: Path) -> OutputError:
    """Return the error for something at the place of a temporary folder that geograft did not write."""
    return OutputError(
        f"{folder} is not a partial output of geograft, which needs this name; nothing was changed. "
        "Rename or remove it, or choose another --out."
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically."""
    with atomic_write(path) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically, as indented JSON."""
    write_text(path, to_json(content))


def to_json(content: Any) -> str:
    """Return `content` as indented JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits. Reads the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """Return the SHA-256 of `content` as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder next to `path`, and remove it; what a killed process left there is removed first.

    Raises:
        OutputError: if something else has its name, or `path` is a pipe or a link that leads nowhere.
    """
    check_output(path)
    folder = scratch_path(path)
    _remove_scratch(folder)
    folder.mkdir(parents=True)
    try:
        (folder / MARKER).write_text("Temporary files of geograft.\n", encoding="ascii")
        yield folder
    finally:
        remove_folder(folder, last=MARKER)


def _move_or_remove(source: Path, target: Path) -> None:
    """Move a file; remove both if it is empty."""
    if source.stat().st_size:
        source.replace(target)
    else:
        target.unlink(missing_ok=True)
        source.unlink()


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, from the cache to the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_scratch(folder: Path) -> None:
    _refuse_foreign(folder)
    if folder.exists():
        remove_folder(folder, last=MARKER)


def _refuse_foreign(folder: Path) -> None:
    """Raise OutputError if something is at `folder`, and it is neither empty nor marked as a temporary folder."""
    if not os.path.lexists(folder):
        return
    is_folder = folder.is_dir() and not folder.is_symlink()
    # A process killed before it wrote the marker leaves an empty folder.
    if not is_folder or (any(folder.iterdir()) and not (folder / MARKER).is_file()):
        raise foreign_folder_error(folder)


def to_paths(paths: StrPath | Sequence[StrPath]) -> tuple[Path, ...]:
    """Return one path or several, which may be strings, as Paths.

    >>> [path.name for path in to_paths("a.tif")], [path.name for path in to_paths(["a.tif", Path("b.tif")])]
    (['a.tif'], ['a.tif', 'b.tif'])
    """
    return (Path(paths),) if isinstance(paths, (str, os.PathLike)) else tuple(map(Path, paths))


def optional_path(path: StrPath | None) -> Path | None:
    """Return a path, which may be a string, as Path; None stays None."""
    return None if path is None else Path(path)
