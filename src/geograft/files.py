"""Files that appear whole or not at all, and digests that tell one from another."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geograft.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into one line; anything else passes through.

    Raises:
        OutputError: when an OSError comes up inside (disk full, no permission, a folder in the way).
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}. Free some space or choose another --out.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on success it takes the place of `path`, on failure it vanishes.

    The name keeps its suffix (`map.tif` is written as `.map.part.tif`), for drivers choose the format by it.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
        finally:
            _remove(part)


@contextmanager
def replacing_with_scratch(path: Path) -> Iterator[Path]:
    """Give a path in a new folder beside `path`; on success it takes the place of `path`. The folder always vanishes.

    For drivers that leave files of their own beside the one they write.
    """
    with writing(path):
        folder = _scratch(path)
        try:
            _remove(folder)
            folder.mkdir(parents=True)
            yield folder / path.name
            (folder / path.name).replace(path)
        finally:
            _remove(folder)


def remove_scratch(path: Path) -> None:
    """Remove what a kill left beside `path` while `replacing_with_scratch` was at work."""
    with writing(path):
        _remove(_scratch(path))


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` to fill; on success it becomes `folder`, on failure it vanishes.

    Raises:
        OutputError: when `folder` exists already and is not empty, before any work is done.
    """
    refuse_existing(folder)
    part = folder.with_name(f".{folder.name}.part")
    with writing(folder):
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
    """Raise OutputError when `path` is a file or a folder with something in it."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputError(f"{path} exists already; nothing was changed. Remove it or choose another --out.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` as JSON that a person can read, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits. Reads the whole file once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """Return the SHA-256 of `content` as canonical JSON: equal content, equal digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
