"""Cache of exported graphs: RUN/exported/BACKEND-KEY has the graph's files and their digests.

The key is a digest of everything that affects what the graph computes. A graph is written to a temporary folder and
then renamed; one with wrong digests is exported again. If the folder is not writable, the graph stays in the temporary
folder until it has been read. The graphs of a bundle are in the user's cache folder (`geograft.runs.export_cache`).
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from geograft.files import file_digest, json_digest, write_json
from geograft.runs import export_cache

DIGESTS = "digests.json"


def graph_folder(run: Path, backend: str, key: Mapping[str, Any]) -> Path:
    """Return the folder in which a graph is cached."""
    return export_cache(run) / f"{backend}-{json_digest(key)[:16]}"


@contextmanager
def exported_graph(cached: Path, export: Callable[[Path], None]) -> Iterator[Path]:
    """Provide the folder of a graph: `cached` if it is intact, else a new one written by `export` and then cached."""
    if is_intact(cached):
        yield cached
        return
    with _scratch(cached.parent) as scratch:
        content = Path(scratch) / "graph"
        content.mkdir()
        with suppress_warnings():
            export(content)
        write_json(content / DIGESTS, {file.name: file_digest(file) for file in sorted(content.iterdir())})
        yield _move_to_cache(content, cached)


def is_intact(folder: Path) -> bool:
    """Return whether a folder has all files of a graph with the right digests."""
    try:
        digests = json.loads((folder / DIGESTS).read_bytes())
        return all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _scratch(folder: Path) -> "TemporaryDirectory[str]":
    """Return a new temporary folder in `folder`, so that it can be renamed, or elsewhere if that is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".", dir=folder)
    except OSError:
        return TemporaryDirectory()


def _move_to_cache(content: Path, cached: Path) -> Path:
    """Move a graph into the cache and return its path; it stays in place if that fails."""
    try:
        if cached.exists():
            shutil.rmtree(cached)
        return content.rename(cached)
    except OSError:  # another job was first, or the disk is full
        return content


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Silence the warnings and log lines of exporters and compilers, which do not help the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
