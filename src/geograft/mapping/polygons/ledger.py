"""Polygons that are finished, kept in a folder until all are, so that a killed job can go on.

    .OUT.part/
      ledger.json           what is being made, from what, and how many rows of the map are done; where it has a band
                            for each class, those of all bands, one after another
      part-00001024.npz     the polygons that ended in the row of blocks that begins at that row
      open-00002048.npz     the regions that go on below that row

What the ledger does not name does not count. It is replaced after both files have reached the disk.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.files import writing
from geograft.resume import DAMAGE, as_json, begun, check_same, remove_ledger, save_arrays, unreadable, write_ledger

ABOUT = "Polygons in the making. The same command goes on with them; remove this folder to begin anew."


class PolygonLedger:
    """The rows of blocks of one map that are done, from the top down."""

    def __init__(self, folder: Path, origin: Mapping[str, Any], rows: int) -> None:
        """Open the ledger in `folder`, or begin one. `origin` is everything that decides what comes out, as JSON.

        Raises:
            InputError: when the folder belongs to another origin, naming what differs, or cannot be understood.
            OutputError: when the folder cannot be written.
        """
        self.folder, self.rows = folder, rows
        self._origin = as_json(origin)
        kept = begun(folder, ("origin", "rows_done", "complete", "parts"))
        if kept is not None:
            check_same(folder, "polygons", kept["origin"], self._origin)
        self._starts: list[int] = kept["parts"] if kept else []
        self.rows_done: int = kept["rows_done"] if kept else 0
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if kept is None:
            self._save()

    def add(self, stop_row: int, part: Mapping[str, ndarray], state: Mapping[str, ndarray]) -> None:
        """Keep what ended in the row of blocks before `stop_row`, and what is still open.

        Raises:
            OutputError: when the disk is full.
        """
        before = self._state_path()
        save_arrays(self._part_path(self.rows_done), part)
        self._starts.append(self.rows_done)
        self.rows_done = stop_row
        save_arrays(self._state_path(), state)
        self._save()
        before.unlink(missing_ok=True)

    def state(self) -> dict[str, ndarray] | None:
        """Return what was open when the last row of blocks ended; None at the beginning.

        Raises:
            InputError: when it cannot be read.
        """
        if not self.rows_done:
            return None
        with self._loaded(self._state_path()) as arrays:
            return {name: arrays[name] for name in arrays.names}

    def parts(self) -> Iterator[tuple[int, "Arrays"]]:
        """Yield what ended in every row of blocks, after the row's first row; arrays are read when they are asked for.

        Raises:
            InputError: when it cannot be read.
        """
        for row in self._starts:
            with self._loaded(self._part_path(row)) as arrays:
                yield row, arrays

    def finish(self) -> None:
        """Note that all rows are done: from now on, a file at the final place is this job's."""
        self._save(complete=True)

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        remove_ledger(self.folder)

    def _loaded(self, path: Path) -> "Arrays":
        try:
            return Arrays(path)
        except DAMAGE as error:
            raise unreadable(path, error) from error

    def _part_path(self, row: int) -> Path:
        return self.folder / f"part-{row:08d}.npz"

    def _state_path(self) -> Path:
        return self.folder / f"open-{self.rows_done:08d}.npz"

    def _save(self, complete: bool = False) -> None:
        done = {"rows": self.rows, "rows_done": self.rows_done, "complete": complete, "parts": self._starts}
        write_ledger(self.folder, {"about": ABOUT, **done, "origin": self._origin})


class Arrays:
    """The arrays of one file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = path.open("rb")
        try:
            self._file = np.load(self._opened, allow_pickle=False)
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._opened.close()

    @property
    def names(self) -> list[str]:
        """What the file holds."""
        return list(self._file.files)

    def __getitem__(self, name: str) -> ndarray:
        try:
            array: ndarray = self._file[name]
        except DAMAGE as error:
            raise unreadable(self._path, error) from error
        return array
