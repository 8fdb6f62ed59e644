"""Atomic writes of files and folders, and digests."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geograft.errors import OutputError


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Raise OutputError in place of an OSError from writing `path`; other exceptions pass through.

    Raises:
        OutputError: on any OSError in the block (disk full, no permission, a folder of that name).
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}. Free some space or choose another --out.") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` on success and is removed on failure.

    The temporary name keeps the suffix (`.map.part.tif` for `map.tif`), since GDAL drivers are chosen by it.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with translate_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
        finally:
            _remove(part)


@contextmanager
def atomic_write_in_scratch(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder next to `path`; the file replaces `path` on success. The folder is removed.

    For drivers that write auxiliary files next to their output.
    """
    with translate_write_errors(path):
        folder = _scratch(path)
        try:
            _remove(folder)
            folder.mkdir(parents=True)
            yield folder / path.name
            (folder / path.name).replace(path)
        finally:
            _remove(folder)


def remove_scratch_folder(path: Path) -> None:
    """Remove the temporary folder that a killed `atomic_write_in_scratch` left next to `path`."""
    with translate_write_errors(path):
        _remove(_scratch(path))


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `folder`; it becomes `folder` on success and is removed on failure.

    Raises:
        OutputError: if `folder` exists and is not empty, before any work is done.
    """
    refuse_existing(folder)
    part = folder.with_name(f".{folder.name}.part")
    with translate_write_errors(folder):
        _remove(part)
        try:
            part.mkdir(parents=True)
            yield part
            if folder.exists():
                folder.rmdir()
            part.replace(folder)
        finally:
            _remove(part)


def refuse_existing(path: Path) -> None:
    """Raise OutputError if `path` is a file or a non-empty folder."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputError(f"{path} exists already; nothing was changed. Remove it or choose another --out.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically, as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits. Reads the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """Return the SHA-256 of `content` as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
