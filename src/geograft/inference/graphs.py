"""Exported graphs, kept in the run folder: RUN/exported/BACKEND-KEY holds the graph's files and their digests.

The key is made from everything that decides what the graph computes. A graph is written beside its place and then
renamed; one whose digests are wrong is exported anew. Where the run folder cannot be written, the graph lies in a
temporary folder as long as it is read.
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

FOLDER = "exported"
DIGESTS = "digests.json"


@contextmanager
def exported(run: Path, backend: str, key: Mapping[str, Any], export: Callable[[Path], None]) -> Iterator[Path]:
    """Give the folder of a graph: the one kept in `run`, else a new one that `export` fills, kept from then on."""
    place = run / FOLDER / f"{backend}-{json_digest(key)[:16]}"
    if is_whole(place):
        yield place
        return
    with _scratch(place.parent) as scratch:
        content = Path(scratch) / "graph"
        content.mkdir()
        with quiet():
            export(content)
        write_json(content / DIGESTS, {file.name: file_digest(file) for file in sorted(content.iterdir())})
        yield _kept(content, place)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds all files of a graph as they were written."""
    try:
        digests = json.loads((folder / DIGESTS).read_bytes())
        return all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _scratch(folder: Path) -> "TemporaryDirectory[str]":
    """Return a new folder in `folder`, from where it can be renamed; elsewhere if that is not writable."""
    try:
        folder.mkdir(exist_ok=True)
        return TemporaryDirectory(prefix=".", dir=folder)
    except OSError:
        return TemporaryDirectory()


def _kept(content: Path, place: Path) -> Path:
    """Move a graph to its place and return where it is: where it was when another job or the disk is in the way."""
    try:
        if place.exists():
            shutil.rmtree(place)
        return content.rename(place)
    except OSError:
        return content


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and log lines of exporters and compilers, which are for their authors, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
