"""Store the finished polygons of a job, and the parts of unfinished regions, so that a killed job can resume.

    .OUT.part/
      ledger.json           the job's inputs and settings, and the number of map rows done; in a map with a band per
                            class, the rows of all bands count one after another
      part-00001024.npz     the polygons that ended in the row of blocks that starts at that row; the parts in that row
                            of regions that continue below it
      open-00002048.npz     which regions continue below that row

Files that the ledger does not name are ignored. The ledger is replaced after both files have reached the disk.

A row stores, for each region that continues below it, the parts that lie in the row, and the indices of the regions of
the row above that it continues. Nothing is stored twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Int64
from numpy import ndarray
from shapely import Polygon

from geograft.files import LEDGER
from geograft.mapping.polygons.shapes import concatenate_points, pack_wkb, split_points, unpack_wkb
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

ABOUT = "Polygons in progress. Run the same command again to resume; remove this folder to start over."


class PolygonLedger:
    """The finished rows of blocks of one map, from the top down."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], rows: int) -> None:
        """Open the ledger in `folder`, or create one. `origin` is everything that determines the result, as JSON.

        Raises:
            InputError: when the folder belongs to another origin (the message names what differs) or is corrupt.
            OutputError: when the folder cannot be written.
        """
        self.folder, self.rows = folder, rows
        self._origin = to_json_types(origin)
        saved = read_ledger(folder, ("origin", "rows_done", "complete", "parts"))
        if saved is not None:
            check_same_origin(folder, "polygons", saved["origin"], self._origin)
            _check_progress(folder, saved["rows_done"], saved["parts"], rows)
        self._starts: list[int] = saved["parts"] if saved else []
        self.rows_done: int = saved["rows_done"] if saved else 0
        if saved is None:
            create_ledger(folder, self._content())

    def add(self, stop_row: int, part: Mapping[str, ndarray], state: Mapping[str, ndarray]) -> None:
        """Save the polygons that ended in the row of blocks before `stop_row`, and the open regions.

        Raises:
            OutputError: when the disk is full.
        """
        before = self._state_path()
        save_arrays(self._part_path(self.rows_done), part)
        self._starts.append(self.rows_done)
        self.rows_done = stop_row
        save_arrays(self._state_path(), state)
        write_ledger(self.folder, self._content())
        before.unlink(missing_ok=True)

    def state(self) -> dict[str, ndarray] | None:
        """Return the open regions after the last finished row of blocks; None before the first.

        Raises:
            InputError: when it cannot be read.
        """
        if not self.rows_done:
            return None
        with self._loaded(self._state_path()) as arrays:
            return {name: arrays[name] for name in arrays.names}

    def row_above(self, number: int) -> "LazyArrays":
        """Return the polygons of the row of blocks saved `number` calls of `add` ago, to be closed by the caller.

        Raises:
            InputError: when it cannot be read.
        """
        return self._loaded(self._part_path(self._starts[-number]))

    def parts(self) -> Iterator[tuple[int, "LazyArrays"]]:
        """Yield the first pixel row of each row of blocks, and its polygons as arrays that are read on access.

        Raises:
            InputError: when it cannot be read.
        """
        for row in self._starts:
            with self._loaded(self._part_path(row)) as arrays:
                yield row, arrays

    def finish(self) -> None:
        """Mark all rows as done: from now on, a file at the final path belongs to this job."""
        write_ledger(self.folder, self._content(complete=True))

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        remove_ledger(self.folder)

    def _loaded(self, path: Path) -> "LazyArrays":
        try:
            return LazyArrays(path)
        except READ_ERRORS as error:
            raise unreadable_error(path, error) from error

    def _part_path(self, row: int) -> Path:
        return self.folder / f"part-{row:08d}.npz"

    def _state_path(self) -> Path:
        return self.folder / f"open-{self.rows_done:08d}.npz"

    def _content(self, complete: bool = False) -> dict[str, Any]:
        done = {"rows": self.rows, "rows_done": self.rows_done, "complete": complete, "parts": self._starts}
        return {"about": ABOUT, **done, "origin": self._origin}


def _check_progress(folder: Path, rows_done: Any, parts: Any, rows: int) -> None:
    """Raise InputError, naming the entry, unless `parts` are rows below `rows_done`, ascending from 0."""
    fault = ""
    if not isinstance(rows_done, int) or not 0 <= rows_done <= rows:
        fault = f"rows_done is {rows_done!r}, not 0 to {rows}"
    elif not isinstance(parts, list) or not all(isinstance(row, int) for row in parts):
        fault = f"parts is {parts!r}, not a list of rows"
    elif parts != sorted(set(parts)) or parts[:1] != [0] * bool(rows_done) or (parts and parts[-1] >= rows_done):
        fault = f"parts does not ascend from 0 to below rows_done, {rows_done}"
    if fault:
        raise corrupt_ledger_error(folder / LEDGER, ValueError(fault))


class LazyArrays:
    """The arrays of an .npz file by name, each read on access."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Open a file; only arrays whose names begin with `prefix` are seen, without it."""
        self._path, self._prefix = path, prefix
        self._opened = path.open("rb")
        try:
            self._file = np.load(self._opened, allow_pickle=False)
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> "LazyArrays":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._opened.close()

    @property
    def names(self) -> list[str]:
        """Names of the arrays in the file."""
        return [name.removeprefix(self._prefix) for name in self._file.files if name.startswith(self._prefix)]

    def __getitem__(self, name: str) -> ndarray:
        try:
            array: ndarray = self._file[self._prefix + name]
        except READ_ERRORS as error:
            raise unreadable_error(self._path, error) from error
        return array


GROUP_BYTES = 2**20
"""Regions are stored in groups of about this size, and read by group."""
GROUP_ARRAYS = ("wkb", "wkb_ends", "part_ends", "turns", "turn_ends", "nodes", "node_ends")
"""Names of the arrays of a group."""
PART = -1
"""Stands for a part in a list of references to regions."""

RowReader = Callable[[int], AbstractContextManager[LazyArrays | Mapping[str, ndarray]]]
"""Returns the arrays of `pack_parts` for the row of blocks that is `number` rows above the present one; 1 is next."""


@dataclass
class OpenParts:
    """The parts of an open region, and the corners near them."""

    items: list["Polygon | int | OpenParts"]
    """In the order in which they were merged: parts, and regions of the row of blocks above, as indices until read."""
    turns: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)
    nodes: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)

    def extend(self, other: "OpenParts") -> None:
        """Append the content of `other`."""
        self.items.extend(other.items)
        self.turns.extend(other.turns)
        self.nodes.extend(other.nodes)

    def polygons(self) -> list[Polygon]:
        """Return all parts in the order in which they were merged; call `load_parts` before."""
        found, waiting = [], [iter(self.items)]
        while waiting:
            item = next(waiting[-1], None)
            if item is None:
                waiting.pop()
            elif isinstance(item, OpenParts):
                waiting.append(iter(item.items))
            elif isinstance(item, Polygon):
                found.append(item)
        return found

    def corners(self) -> tuple[list[ndarray], list[ndarray]]:
        """Return the arrays of turns and the arrays of nodes of all rows; call `load_parts` before."""
        found: tuple[list[ndarray], list[ndarray]] = ([], [])
        waiting = [self]
        while waiting:
            parts = waiting.pop()
            found[0].extend(parts.turns)
            found[1].extend(parts.nodes)
            waiting += [item for item in parts.items if isinstance(item, OpenParts)]
        return found


def pack_parts(regions: Sequence[OpenParts]) -> dict[str, ndarray]:
    """Return the parts of open regions as arrays. Region i of the row is then `OpenParts([i])` for the row below."""
    items = [PART if isinstance(item, Polygon) else item for region in regions for item in region.items]
    own = [[item for item in region.items if isinstance(item, Polygon)] for region in regions]
    sizes = np.array([16 * shapely.get_num_coordinates(np.array(parts, object)).sum() for parts in own], np.int64)
    groups = np.cumsum(sizes) // GROUP_BYTES
    arrays = {
        "open_items": np.array(items, np.int64),
        "open_item_ends": np.cumsum([len(region.items) for region in regions], dtype=np.int64),
        "open_groups": groups,
    }
    for group in np.unique(groups).tolist():
        first, last = np.searchsorted(groups, [group, group + 1])
        wkb, wkb_ends = pack_wkb([part for parts in own[first:last] for part in parts])
        turns, turn_ends = concatenate_points([region.turns for region in regions[first:last]])
        nodes, node_ends = concatenate_points([region.nodes for region in regions[first:last]])
        part_ends = np.cumsum([len(parts) for parts in own[first:last]], dtype=np.int64)
        named = {"wkb": wkb, "wkb_ends": wkb_ends, "part_ends": part_ends}
        named |= {"turns": turns, "turn_ends": turn_ends, "nodes": nodes, "node_ends": node_ends}
        arrays |= {f"open_{group}_{name}": array for name, array in named.items()}
    return arrays


def load_parts(regions: Sequence[OpenParts], read_row: RowReader) -> None:
    """Replace the references of `regions` to the rows above by what these store, up to the first row of each."""
    level, above = regions, 0
    while references := [(parts, i) for parts in level for i, item in enumerate(parts.items) if isinstance(item, int)]:
        above += 1
        with read_row(above) as arrays:
            level = unpack_parts(arrays, [parts.items[i] for parts, i in references])  # type: ignore[misc]
        for (parts, i), found in zip(references, level, strict=True):
            parts.items[i] = found


def unpack_parts(arrays: LazyArrays | Mapping[str, ndarray], wanted: Sequence[int]) -> list[OpenParts]:
    """Return the parts of the regions with these indices, from the output of `pack_parts`."""
    items, ends, groups = arrays["open_items"], arrays["open_item_ends"], arrays["open_groups"]
    starts = np.concatenate([[0], ends])
    found: dict[int, OpenParts] = {}
    for group in np.unique(groups[wanted]).tolist():
        stored = {name: arrays[f"open_{group}_{name}"] for name in GROUP_ARRAYS}
        shapes = np.split(unpack_wkb(stored["wkb"], stored["wkb_ends"]), stored["part_ends"][:-1])
        corners = [split_points(stored[f"{side}s"], stored[f"{side}_ends"]) for side in ("turn", "node")]
        first = int(np.searchsorted(groups, group))
        for region in (region for region in wanted if groups[region] == group):
            own = iter(shapes[region - first])
            listed = items[starts[region] : ends[region]].tolist()
            mixed = [next(own) if item == PART else item for item in listed]
            found[region] = OpenParts(mixed, *([side[region - first]] for side in corners))
    return [found[region] for region in wanted]
