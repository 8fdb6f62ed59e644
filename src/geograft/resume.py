"""Partial results of long jobs, kept in a folder so that an interrupted job can be resumed.

Each folder contains a readable `ledger.json` with the job's origin (inputs and settings), and whether everything but
the last step is complete. The other files belong to the module that writes the ledger.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np
from numpy import ndarray
from numpy.lib.format import write_array

from geograft.config.recipes import RENAMED_SETTINGS
from geograft.errors import GeograftError, ResumeError
from geograft.files import (
    LEDGER,
    atomic_folder,
    atomic_write,
    foreign_folder_error,
    remove_folder,
    remove_scratch_folder,
    to_json,
    translate_write_errors,
    write_json,
)

MAX_SHOWN = 3
"""Number of differences listed in an error message."""
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)
"""Exceptions from reading a damaged .npz file."""


def to_json_types(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return `origin` as JSON reads it back: tuples as lists, keys as strings."""
    plain: dict[str, Any] = json.loads(json.dumps(origin))
    return plain


def read_ledger(folder: Path, names: tuple[str, ...] = ("origin", "complete")) -> dict[str, Any] | None:
    """Return the entries `names` of the ledger in `folder`; None if it has no ledger.

    Raises:
        ResumeError: if the ledger is corrupt.
    """
    path = folder / LEDGER
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        return {name: kept[name] for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise corrupt_ledger_error(path, error) from error


def is_complete(folder: Path) -> bool:
    """Return whether the job in `folder` was interrupted in its last step, when it moved its result into place.

    Raises:
        ResumeError: if the ledger is corrupt.
    """
    kept = read_ledger(folder)
    return kept is not None and bool(kept["complete"])


def read_origin(folder: Path) -> dict[str, Any] | None:
    """Return the origin recorded in the ledger of `folder`; None if it has no ledger.

    Raises:
        ResumeError: if the ledger is corrupt.
    """
    kept = read_ledger(folder)
    return dict(kept["origin"]) if kept is not None else None


def check_same_origin(folder: Path, what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ResumeError if the origin of the partial result `what` in `folder` differs, naming the differences."""
    differing = differences(before, now)
    if differing:
        shown = "; ".join(differing[:MAX_SHOWN]) + ("; ..." if len(differing) > MAX_SHOWN else "")
        raise ResumeError(
            f"{folder} holds {what} in progress with other inputs or settings: {shown}. {_remedy(folder)}"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line per differing entry of two nested mappings, with its path and both values.

    If `before` has old names of settings, only these are returned, with their new names.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c was 2, is 3']
    """
    old, new = _flat(before), _flat(now)
    renamed = [f"{key} is now {RENAMED_SETTINGS[key]}" for key in old if key in RENAMED_SETTINGS and key not in new]
    return renamed or [
        f"{key} was {old.get(key)}, is {new.get(key)}" for key in new | old if old.get(key) != new.get(key)
    ]


def write_ledger(folder: Path, content: Mapping[str, Any]) -> None:
    """Write or replace the ledger in `folder`.

    Raises:
        OutputError: on any OSError.
    """
    write_json(folder / LEDGER, content)


def create_ledger(folder: Path, content: Mapping[str, Any], files: Mapping[str, str] | None = None) -> None:
    """Create the folder of a ledger, complete or not at all, with `files` by name besides the ledger itself.

    Raises:
        OutputError: if something else is in `folder`, which then stays as it is; on any OSError.
    """
    refuse_foreign_ledger(folder)
    with atomic_folder(folder) as part:
        for name, text in (files or {}).items():
            (part / name).write_text(text, encoding="ascii")
        (part / LEDGER).write_text(to_json(content), encoding="utf-8")


def remove_ledger(folder: Path) -> None:
    """Remove the folder of a ledger, even a partly removed one. The ledger is deleted last.

    Raises:
        ResumeError: if the ledger is corrupt.
        OutputError: if the folder has no ledger but other files, which then stay as they are; on any OSError.
    """
    refuse_foreign_ledger(folder)
    # Of a process killed just after it had created the ledger.
    remove_scratch_folder(folder)
    with translate_write_errors(folder):
        remove_folder(folder, last=LEDGER)


def refuse_foreign_ledger(folder: Path) -> None:
    """Raise OutputError if something is at `folder` that has no ledger; an empty folder may have lost it to a kill.

    Raises:
        ResumeError: if the ledger is corrupt.
    """
    if not os.path.lexists(folder):
        return
    with translate_write_errors(folder):
        if folder.is_symlink() or not folder.is_dir() or (read_origin(folder) is None and any(folder.iterdir())):
            raise foreign_folder_error(folder)


def save_arrays(path: Path, arrays: Mapping[str, ndarray]) -> None:
    """Write named arrays to an .npz file atomically and sync it to disk.

    Raises:
        OutputError: if the disk is full.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        # NumPy's own function compresses at level 6: four times as long, for files a fifth smaller.
        with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    write_array(entry, np.asanyarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def unreadable_error(path: Path, error: BaseException) -> ResumeError:
    """Return the error for a file in a ledger's folder that cannot be read."""
    return ResumeError(f"{path} cannot be read: {error}. {_remedy(path.parent)}")


def corrupt_ledger_error(path: Path, error: BaseException) -> ResumeError:
    """Return the error for a file in a ledger's folder with invalid content."""
    return ResumeError(f"{path} is corrupt: {error!r}. {_remedy(path.parent)}")


@contextmanager
def keep_ledger_on_error(folder: Path, describe_progress: Callable[[], str]) -> Iterator[None]:
    """Add to an error's message which partial results `folder` keeps; remove the folder if it keeps none.

    `describe_progress` returns a text such as "3 of 5 rows are", empty if nothing is kept.
    """
    try:
        yield
    except ResumeError:
        # Its advice is to remove the folder.
        raise
    except GeograftError as error:
        if not folder.exists():
            raise
        kept = describe_progress()
        if not kept:
            remove_ledger(folder)
            raise
        raise type(error)(f"{error} {kept} kept in {folder}; the same command resumes from there.") from error


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping | list):
        return {path: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {key: value for name, part in items for key, value in _flat(part, f"{path}.{name}".lstrip(".")).items()}


def _remedy(folder: Path) -> str:
    return f"Remove {folder} to start over."
