"""Finished strips of a map, stored in a folder until the map is complete, so that an interrupted job can be resumed.

    .MAP.part/
      ledger.json         the output and its origin
      strips.tsv          one line per finished strip: position, number of predicted tiles, columns with data
      strip-00000012.npz  arrays of the strip in line 12, counted from 0; missing for a strip without data

A strip is finished once its line is written, after its arrays have reached the disk. Strips have a fixed order, so the
number of lines determines where to resume.
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

from geograft.files import LEDGER, translate_write_errors, write_text
from geograft.geo.grid import Window
from geograft.mapping.windows import Lanes
from geograft.resume import (
    READ_ERRORS,
    check_same_origin,
    corrupt_ledger_error,
    create_ledger,
    read_ledger,
    remove_ledger,
    save_arrays,
    to_json_types,
    unreadable_error,
    write_ledger,
)

STRIPS = "strips.tsv"
ABOUT = "A partial map. The same command resumes it; remove this folder to start over."
COLUMNS = ("row", "col", "height", "width", "tiles", "data_col", "data_width", "bytes")


@dataclass(frozen=True)
class StripEntry:
    """One finished strip: a line of strips.tsv."""

    row: int
    col: int
    height: int
    width: int
    tiles: int
    """Number of predicted tiles."""
    data_col: int
    data_width: int
    """Number of columns with data; the rest of the strip is nodata."""
    bytes: int
    """Size of its file; 0 if there is none."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the column, if no strip can have these numbers."""
        negative = next((name for name in COLUMNS if getattr(self, name) < 0), None)
        if negative:
            raise ValueError(f"{negative} is {getattr(self, negative)}, below 0")
        if self.data_width and not self.col <= self.data_col <= self.col + self.width - self.data_width:
            raise ValueError(f"data_col {self.data_col} and data_width {self.data_width} lie outside the strip")
        if self.data_width and self.height and not self.bytes:
            raise ValueError(f"bytes is 0, but data_width is {self.data_width}")

    @property
    def data(self) -> Window:
        """Window of the pixels with data."""
        return Window(self.row, self.data_col, self.height, self.data_width)


class Ledger:
    """The finished strips of one map, in order."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], lanes: Lanes) -> None:
        """Open the ledger in `folder`, or create one. `origin` is everything that determines the map, as JSON.

        Raises:
            InputError: if the folder has another origin, naming the difference, or is corrupt: strips that are not
                those of `lanes`, in order.
            OutputError: if the folder cannot be written.
        """
        self.folder = folder
        self._origin = to_json_types(origin)
        self.entries: list[StripEntry] = read_finished_strips(folder, self._origin, lanes)
        if (folder / LEDGER).exists():
            # An incomplete last line, left by a kill, would corrupt the next one.
            write_text(folder / STRIPS, _table(self.entries))
        else:
            create_ledger(folder, self._content(), {STRIPS: _table([])})
        self._columns: dict[int, list[int]] = {}
        for index in range(len(self.entries)):
            self._index(index)

    def add(self, strip: Window, tiles: int, data: Window, arrays: Mapping[str, ndarray]) -> None:
        """Store the next strip. `arrays` may be empty; the last two axes of those read by window are rows and columns.

        Raises:
            OutputError: if the disk is full.
        """
        path, size = self._strip(len(self.entries)), 0
        if arrays:
            save_arrays(path, arrays)
            size = path.stat().st_size
        entry = StripEntry(strip.row, strip.col, strip.height, strip.width, tiles, data.col, data.width, size)
        with translate_write_errors(self.folder / STRIPS), (self.folder / STRIPS).open("a", encoding="ascii") as file:
            file.write(_line(astuple(entry)))
            file.flush()
            if arrays:
                os.fsync(file.fileno())
        self.entries.append(entry)
        self._index(len(self.entries) - 1)

    def read_array(self, index: int, name: str) -> Shaped[ndarray, "..."] | None:
        """Return one array of a strip; None if the strip has no array of this name.

        Raises:
            InputError: if the strip cannot be read.
        """
        path, size = self._strip(index), self.entries[index].bytes
        if not size:
            return None
        try:
            if path.stat().st_size != size:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {size}")
            with np.load(path, allow_pickle=False) as arrays:
                found: ndarray | None = arrays[name] if name in arrays.files else None
        except READ_ERRORS as error:
            raise unreadable_error(path, error) from error
        return found

    @property
    def tile_counts(self) -> list[int]:
        """Number of predicted tiles of each finished strip."""
        return [entry.tiles for entry in self.entries]

    @property
    def finished_px(self) -> int:
        """Number of pixels in finished strips."""
        return sum(entry.height * entry.width for entry in self.entries)

    @property
    def panels(self) -> list[tuple[int, int]]:
        """First column and width of each panel, from left to right."""
        return [(entry.col, entry.width) for entry in (self.entries[some[0]] for some in self._columns.values())]

    def data_extent(self, window: Window) -> Window | None:
        """Return the part of `window` between the first and the last column with data; None if there is none."""
        parts = [part for index in self._touching(window) if (part := window.intersection(self.entries[index].data))]
        if not parts:
            return None
        left, right = min(part.col for part in parts), max(part.stop_col for part in parts)
        return Window(window.row, left, window.height, right - left)

    def read(self, name: str, window: Window, blank: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
        """Return the array `name` of all strips in `window`, and the values of `blank` where there is no data.

        `blank` has the shape of the result. Memory: the window and one strip.

        Raises:
            InputError: if a strip cannot be read.
        """
        result = blank.copy()
        for index in self._touching(window):
            data = self.entries[index].data
            part = window.intersection(data)
            found = self.read_array(index, name) if part is not None else None
            if part is not None and found is not None:
                result[..., *part.relative_to(window).slices] = found[..., *part.relative_to(data).slices]
        return result

    def finish(self) -> None:
        """Record that all strips are finished: from now on, files at the output paths belong to this map."""
        write_ledger(self.folder, self._content(complete=True))

    def remove(self) -> None:
        """Remove the folder."""
        remove_ledger(self.folder)

    def _touching(self, window: Window) -> list[int]:
        """Return the indices of the strips that intersect `window`, by bisection."""
        found = []
        for indexes in self._columns.values():
            entry = self.entries[indexes[0]]
            if entry.col < window.stop_col and entry.col + entry.width > window.col:
                first = max(0, bisect_right(indexes, window.row, key=lambda i: self.entries[i].row) - 1)
                last = bisect_right(indexes, window.stop_row - 1, key=lambda i: self.entries[i].row)
                found += indexes[first:last]
        return found

    def _index(self, index: int) -> None:
        # Strips are ordered by panel, each from the top down. Those without pixels are never read.
        entry = self.entries[index]
        if entry.height and entry.width:
            self._columns.setdefault(entry.col, []).append(index)

    def _strip(self, index: int) -> Path:
        return self.folder / f"strip-{index:08d}.npz"

    def _content(self, complete: bool = False) -> dict[str, Any]:
        return {"about": ABOUT, "complete": complete, "origin": self._origin}


def read_finished_strips(folder: Path, origin: Mapping[str, Any], lanes: Lanes) -> list[StripEntry]:
    """Return the finished strips of the ledger in `folder`; empty if there is no ledger. Changes nothing.

    Raises:
        InputError: if the folder has another origin, naming the difference, or is corrupt: strips that are not those of
            `lanes`, in order.
    """
    kept = read_ledger(folder)
    if kept is None:
        return []
    check_same_origin(folder, "a map", kept["origin"], to_json_types(origin))
    return _entries(folder, lanes)


def _entries(folder: Path, lanes: Lanes) -> list[StripEntry]:
    path = folder / STRIPS
    try:
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)[1:]
        # A kill may leave an incomplete last line.
        complete = [line for line in lines if line.endswith("\n")]
        return [_entry(line, number, lanes) for number, line in enumerate(complete)]
    except (OSError, ValueError, TypeError) as error:
        raise corrupt_ledger_error(path, error) from error


def _entry(line: str, lane: int, lanes: Lanes) -> StripEntry:
    """Return the strip of a line; raise ValueError if it is not that of `lane`."""
    where = f"line {lane + 2}"  # after the header, counted from 1
    if lane >= len(lanes):
        raise ValueError(f"{where}: the map has only {len(lanes)} strips")
    try:
        entry = StripEntry(*map(int, line.split("\t")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    strip = lanes.strip(lane)
    for name in ("row", "col", "height", "width"):
        if getattr(entry, name) != getattr(strip, name):
            raise ValueError(f"{where}: {name} is {getattr(entry, name)}, not {getattr(strip, name)}")
    columns = len(lanes.position(lane)[0])
    if entry.tiles > columns:
        raise ValueError(f"{where}: tiles is {entry.tiles}, but the strip has {columns}")
    return entry


def _table(entries: Sequence[StripEntry]) -> str:
    return "".join(_line(cells) for cells in (COLUMNS, *map(astuple, entries)))


def _line(cells: Sequence[Any]) -> str:
    return "\t".join(map(str, cells)) + "\n"
