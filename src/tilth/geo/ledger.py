"""Finished strips of a map, kept in a folder until the map is whole, so that a killed job can go on.

    .MAP.part/
      ledger.json           what is being made, from what, and how many rows are done
      rows-00000112.npz     the arrays of the strip that begins at that row

A strip counts when the ledger says so. The ledger is replaced after the strip has reached the disk.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from tilth.errors import InputError
from tilth.files import replacing, write_json, writing

LEDGER = "ledger.json"
MOST_SHOWN = 3
"""Differences that one message lists."""
ABOUT = "A map in the making. The same command goes on with it; remove this folder to begin anew."


class Ledger:
    """The strips of one map that are finished, from the top down."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], rows: int) -> None:
        """Open the ledger in `folder`, or begin one. `origin` is everything that decides what the map holds, as JSON.

        Raises:
            InputError: when the folder belongs to another origin, naming what differs, or cannot be understood.
            OutputError: when the folder cannot be written.
        """
        self.folder, self.rows = folder, rows
        self._origin = json.loads(json.dumps(origin))
        kept = _kept(folder)
        if kept is not None:
            _check_same(folder, kept["origin"], self._origin)
        self.rows_done: int = kept["rows_done"] if kept else 0
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if kept is None:
            self._save()

    def add(self, stop_row: int, arrays: Mapping[str, ndarray]) -> None:
        """Keep the strip that ends before `stop_row` and begins where the last one ended.

        Raises:
            OutputError: when the disk is full.
        """
        with replacing(self._strip(self.rows_done)) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        self.rows_done = stop_row
        self._save()

    def finish(self) -> None:
        """Note that all is computed: from now on, files at their final places are this map's."""
        self._save(complete=True)

    def bands(self, name: str, rows: int) -> Iterator[tuple[int, Shaped[ndarray, "..."]]]:
        """Yield the array `name` of all strips from the top down, `rows` rows at a time, each after its first row.

        Memory: `rows` rows and one strip.

        Raises:
            InputError: when a strip cannot be read.
        """
        row, held = 0, []
        for strip in self._strips(name):
            held.append(strip)
            while sum(part.shape[-2] for part in held) >= rows:
                joined = np.concatenate(held, axis=-2)
                yield row, joined[..., :rows, :]
                row, held = row + rows, [joined[..., rows:, :]]
        if sum(part.shape[-2] for part in held):
            yield row, np.concatenate(held, axis=-2)

    def _strips(self, name: str) -> Iterator[ndarray]:
        row = 0
        while row < self.rows_done:
            try:
                with np.load(self._strip(row), allow_pickle=False) as arrays:
                    strip = arrays[name]
            except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
                raise InputError(f"{self._strip(row)} cannot be read: {error}. {_remedy(self.folder)}") from error
            yield strip
            row += strip.shape[-2]

    def remove(self) -> None:
        """Remove the folder with all strips."""
        with writing(self.folder):
            shutil.rmtree(self.folder)

    def _strip(self, row: int) -> Path:
        return self.folder / f"rows-{row:08d}.npz"

    def _save(self, complete: bool = False) -> None:
        done = {"rows": self.rows, "rows_done": self.rows_done, "complete": complete}
        write_json(self.folder / LEDGER, {"about": ABOUT, **done, "origin": self._origin})


def is_complete(folder: Path) -> bool:
    """Return whether `folder` holds a ledger whose map was being put in its place when the job ended.

    Raises:
        InputError: when there is a ledger that cannot be understood.
    """
    kept = _kept(folder)
    return kept is not None and bool(kept["complete"])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each entry of nested mappings that differs, with its path and both values.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c was 2, is 3']
    """
    old, new = _flat(before), _flat(now)
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in new | old if old.get(key) != new.get(key)]


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping | list):
        return {path: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {key: value for name, part in items for key, value in _flat(part, f"{path}.{name}".lstrip(".")).items()}


def _kept(folder: Path) -> dict[str, Any] | None:
    path = folder / LEDGER
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        return {name: kept[name] for name in ("origin", "rows_done", "complete")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be understood: {error!r}. {_remedy(folder)}") from error


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = differences(before, now)
    if differing:
        shown = "; ".join(differing[:MOST_SHOWN]) + ("; ..." if len(differing) > MOST_SHOWN else "")
        raise InputError(f"{folder} holds a map in the making from something else: {shown}. {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"Remove {folder} to begin anew."
