"""Finished strips of a map, kept in a folder until the map is whole, so that a killed job can go on.

    .MAP.part/
      ledger.json         what is being made, and from what
      strips.tsv          a line for each finished strip: where it is, how many tiles it took, which columns hold data
      strip-00000012.npz  the arrays of the strip in line 12, counted from 0; none for a strip without data

A strip counts when its line is there, which is written after its arrays have reached the disk. Strips come in a fixed
order, so the lines also say where to go on.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from geograft.files import replacing, writing
from geograft.geo.grid import Window
from geograft.resume import (
    DAMAGE,
    LEDGER,
    as_json,
    begun,
    check_same,
    misunderstood,
    remove_ledger,
    save_arrays,
    unreadable,
    write_ledger,
)

STRIPS = "strips.tsv"
ABOUT = "A map in the making. The same command goes on with it; remove this folder to begin anew."
COLUMNS = ("row", "col", "height", "width", "tiles", "data_col", "data_width", "bytes")


@dataclass(frozen=True)
class Entry:
    """One finished strip: a line of strips.tsv."""

    row: int
    col: int
    height: int
    width: int
    tiles: int
    """Tiles that the model was shown for it."""
    data_col: int
    data_width: int
    """Columns of the raster that hold data; the rest of the strip is nodata."""
    bytes: int
    """Size of its file; 0 without one."""

    @property
    def data(self) -> Window:
        """The pixels that hold data."""
        return Window(self.row, self.data_col, self.height, self.data_width)


class Ledger:
    """The strips of one map that are finished, in their order."""

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        """Open the ledger in `folder`, or begin one. `origin` is everything that decides what the map holds, as JSON.

        Raises:
            InputError: when the folder belongs to another origin, naming what differs, or cannot be understood.
            OutputError: when the folder cannot be written.
        """
        self.folder = folder
        self._origin = as_json(origin)
        self.entries: list[Entry] = finished(folder, self._origin)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # A line that a kill cut short would spoil the next one.
        _rewrite(folder, self.entries)
        if not (folder / LEDGER).exists():
            self._save()
        self._columns: dict[int, list[int]] = {}
        for index in range(len(self.entries)):
            self._index(index)

    def add(self, strip: Window, tiles: int, data: Window, arrays: Mapping[str, ndarray]) -> None:
        """Keep the next strip; `arrays` are its own and may be none. The last axis but one of those read back is rows.

        Raises:
            OutputError: when the disk is full.
        """
        path, size = self._strip(len(self.entries)), 0
        if arrays:
            save_arrays(path, arrays)
            size = path.stat().st_size
        entry = Entry(strip.row, strip.col, strip.height, strip.width, tiles, data.col, data.width, size)
        with writing(self.folder / STRIPS), (self.folder / STRIPS).open("a", encoding="ascii") as file:
            file.write(_line(astuple(entry)))
            file.flush()
            if arrays:
                os.fsync(file.fileno())
        self.entries.append(entry)
        self._index(len(self.entries) - 1)

    def array(self, index: int, name: str) -> Shaped[ndarray, "..."] | None:
        """Return one array of a strip; None when the strip has none of this name.

        Raises:
            InputError: when the strip cannot be read.
        """
        path, size = self._strip(index), self.entries[index].bytes
        if not size:
            return None
        try:
            if path.stat().st_size != size:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {size}")
            with np.load(path, allow_pickle=False) as arrays:
                found: ndarray | None = arrays[name] if name in arrays.files else None
        except DAMAGE as error:
            raise unreadable(path, error) from error
        return found

    @property
    def panels(self) -> list[tuple[int, int]]:
        """The first column and the width of each column of strips, from left to right."""
        return [(entry.col, entry.width) for entry in (self.entries[some[0]] for some in self._columns.values())]

    def occupied(self, window: Window) -> Window | None:
        """Return the rows of `window` and those of its columns between which strips hold data; None without any."""
        parts = [part for index in self._touching(window) if (part := window.overlap(self.entries[index].data))]
        if not parts:
            return None
        left, right = min(part.col for part in parts), max(part.stop_col for part in parts)
        return Window(window.row, left, window.height, right - left)

    def read(self, name: str, window: Window, blank: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
        """Return the array `name` of all strips in `window`; `blank`, an array of its shape, where they hold nothing.

        Memory: the window and one strip.

        Raises:
            InputError: when a strip cannot be read.
        """
        result = blank.copy()
        for index in self._touching(window):
            data = self.entries[index].data
            part = window.overlap(data)
            found = self.array(index, name) if part is not None else None
            if part is not None and found is not None:
                result[..., *part.within(window).slices] = found[..., *part.within(data).slices]
        return result

    def finish(self) -> None:
        """Note that all is computed: from now on, files at their final places are this map's."""
        self._save(complete=True)

    def remove(self) -> None:
        """Remove the folder with all strips."""
        remove_ledger(self.folder)

    def _touching(self, window: Window) -> list[int]:
        """Return the strips that share pixels with `window`, without looking at all."""
        found = []
        for indexes in self._columns.values():
            entry = self.entries[indexes[0]]
            if entry.col < window.stop_col and entry.col + entry.width > window.col:
                first = max(0, bisect_right(indexes, window.row, key=lambda i: self.entries[i].row) - 1)
                last = bisect_right(indexes, window.stop_row - 1, key=lambda i: self.entries[i].row)
                found += indexes[first:last]
        return found

    def _index(self, index: int) -> None:
        # Strips come column of strips by column, each from the top down. Those without pixels are never asked for.
        entry = self.entries[index]
        if entry.height and entry.width:
            self._columns.setdefault(entry.col, []).append(index)

    def _strip(self, index: int) -> Path:
        return self.folder / f"strip-{index:08d}.npz"

    def _save(self, complete: bool = False) -> None:
        write_ledger(self.folder, {"about": ABOUT, "complete": complete, "origin": self._origin})


def finished(folder: Path, origin: Mapping[str, Any]) -> list[Entry]:
    """Return the finished strips of the ledger in `folder`, none where there is no ledger. Changes nothing.

    Raises:
        InputError: when the folder belongs to another origin, naming what differs, or cannot be understood.
    """
    kept = begun(folder)
    if kept is None:
        return []
    check_same(folder, "a map", kept["origin"], as_json(origin))
    return _entries(folder)


def _entries(folder: Path) -> list[Entry]:
    path = folder / STRIPS
    try:
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)[1:]
        # A kill may cut the last line short.
        return [Entry(*map(int, line.split("\t"))) for line in lines if line.endswith("\n")]
    except (OSError, ValueError, TypeError) as error:
        raise misunderstood(path, error) from error


def _rewrite(folder: Path, entries: Sequence[Entry]) -> None:
    with replacing(folder / STRIPS) as part, part.open("w", encoding="ascii") as file:
        file.writelines(_line(cells) for cells in (COLUMNS, *map(astuple, entries)))


def _line(cells: Sequence[Any]) -> str:
    return "\t".join(map(str, cells)) + "\n"
