"""Contestants on one raster, by turns: seconds, memory, and how near Geograft comes to what its backend alone does."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from contestants import Job
from measured import in_process

ALONE_SHARE = 4
"""A backend alone is given this part of the raster's tiles: its speed is steady."""


@dataclass(frozen=True)
class Entry:
    """Who takes part."""

    title: str
    """In the table."""
    name: str
    """In contestants.CONTESTANTS."""
    batch: int = 8
    """Tiles in one call of the network."""
    python: str = sys.executable
    """The interpreter that has what it needs."""

    @property
    def alone(self) -> str:
        """The contestant that is its backend alone; empty for those that are not Geograft."""
        return self.name.replace("geograft-", "alone-") if self.name.startswith("geograft-") else ""


@dataclass(frozen=True)
class Outcome:
    """What one map took."""

    seconds: float
    peak_mb: float
    alone_seconds: float = math.nan
    """What the backend alone takes for as many tiles, measured just before."""


@dataclass(frozen=True)
class Results:
    """All turns of a race."""

    pixels: int
    """Of the raster."""
    turns: tuple[dict[Entry, Outcome], ...]

    def speed(self, entry: Entry) -> float:
        """Return megapixels of the raster a second."""
        return self.pixels / 1e6 / median(turn[entry].seconds for turn in self.turns)

    def ratio(self, entry: Entry, to: Entry) -> float:
        """Return how many times as fast as another an entry is."""
        return median(turn[to].seconds / turn[entry].seconds for turn in self.turns)

    def of_alone(self, entry: Entry) -> float:
        """Return how much of the speed of its backend alone an entry reaches, reading and writing included."""
        return median(turn[entry].alone_seconds / turn[entry].seconds for turn in self.turns)

    def peak_mb(self, entry: Entry) -> float:
        """Return the most memory of all turns."""
        return max(turn[entry].peak_mb for turn in self.turns)


def race(entries: Sequence[Entry], job: Job, size: tuple[int, int], repeats: int) -> Iterator[Outcome | Results]:
    """Yield each outcome as it comes, and last the results of all `repeats` turns.

    `size` is the raster's edge and the tile's, in pixels.
    """
    turns = []
    for _ in range(repeats):
        turn = {}
        for entry in entries:
            turn[entry] = outcome(entry, job, size)
            yield turn[entry]
        turns.append(turn)
    yield Results(size[0] ** 2, tuple(turns))


def outcome(entry: Entry, job: Job, size: tuple[int, int]) -> Outcome:
    """Return what one map of one contestant takes, and what its backend alone takes."""
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        todo = replace(job, out=Path(folder) / "map.tif", batch=entry.batch)
        alone = _alone_seconds(entry, todo, size)
        found = in_process(
            "contestants.py", entry.name, str(todo.write(Path(folder) / "job.json")), python=entry.python
        )
    return Outcome(found["seconds"], found["peak_mb"], alone)


def tiles_in(size: int, tile: int, overlap: float) -> int:
    """Return how many tiles Geograft needs for `size` x `size` pixels. They reach beyond the borders."""
    stride = round(tile * (1 - overlap))
    margin = (tile - stride) // 2
    return (math.ceil((size + 2 * margin - tile) / stride) + 1) ** 2


def _alone_seconds(entry: Entry, job: Job, size: tuple[int, int]) -> float:
    if not entry.alone:
        return math.nan
    needed = math.ceil(tiles_in(*size, job.overlap) / entry.batch)
    given = replace(job, batches=max(4, needed // ALONE_SHARE))
    written = given.write(job.out.with_name("alone.json"))
    found = in_process("contestants.py", entry.alone, str(written), python=entry.python)
    return float(found["seconds"]) / given.batches * needed
