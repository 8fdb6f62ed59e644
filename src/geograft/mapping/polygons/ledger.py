"""Store the finished polygons of a job in a folder, so that a killed job can resume.

    .OUT.part/
      ledger.json           the job's inputs and settings, and the number of map rows done; in a map with a band per
                            class, the rows of all bands count one after another
      part-00001024.npz     the polygons that ended in the row of blocks that starts at that row; the parts in that row
                            of regions that continue below it
      open-00002048.npz     which regions continue below that row

Files that the ledger does not name are ignored. The ledger is replaced after both files have reached the disk.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.files import LEDGER
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

    def __init__(self, path: Path) -> None:
        self._path = path
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
        return list(self._file.files)

    def __getitem__(self, name: str) -> ndarray:
        try:
            array: ndarray = self._file[name]
        except READ_ERRORS as error:
            raise unreadable_error(self._path, error) from error
        return array
