"""Time and memory of the contestants on one raster, in rounds, and the speed of Geograft's backends alone."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from contestants import MapJob
from measured import run_script

BACKEND_DIVISOR = 4
"""A backend alone is timed on one in this many of the raster's tiles, because its speed is constant."""


@dataclass(frozen=True)
class Entry:
    """A contestant with its batch size and interpreter."""

    title: str
    """Its name in the table."""
    name: str
    """Its key in contestants.CONTESTANTS."""
    batch: int = 8
    """Tiles per call of the network."""
    python: str = sys.executable
    """An interpreter with the packages that it needs."""

    @property
    def backend_only(self) -> str:
        """The contestant that runs its backend alone; empty if it is not Geograft."""
        return self.name.replace("geograft-", "backend-") if self.name.startswith("geograft-") else ""


@dataclass(frozen=True)
class Outcome:
    """Time and memory of one map."""

    seconds: float
    peak_mb: float
    backend_seconds: float = math.nan
    """Time of the backend alone for the same number of tiles, measured just before."""


@dataclass(frozen=True)
class Results:
    """The outcomes of all rounds."""

    pixels: int
    """Pixels of the raster."""
    rounds: tuple[dict[Entry, Outcome], ...]

    def speed(self, entry: Entry) -> float:
        """Return the median speed in megapixels of the raster per second."""
        return self.pixels / 1e6 / median(outcomes[entry].seconds for outcomes in self.rounds)

    def ratio(self, entry: Entry, baseline: Entry) -> float:
        """Return the speed of an entry relative to `baseline`: the median of the ratios within a round."""
        return median(outcomes[baseline].seconds / outcomes[entry].seconds for outcomes in self.rounds)

    def backend_fraction(self, entry: Entry) -> float:
        """Return the speed of an entry, reading and writing included, as a fraction of its backend's alone."""
        return median(outcomes[entry].backend_seconds / outcomes[entry].seconds for outcomes in self.rounds)

    def peak_mb(self, entry: Entry) -> float:
        """Return the peak memory over all rounds."""
        return max(outcomes[entry].peak_mb for outcomes in self.rounds)


def race(entries: Sequence[Entry], job: MapJob, size: tuple[int, int], repeats: int) -> Iterator[Outcome | Results]:
    """Yield each outcome as it is measured, then the results of all `repeats` rounds.

    `size` is the edge of the raster and of a tile, in pixels.
    """
    rounds = []
    for _ in range(repeats):
        outcomes = {}
        for entry in entries:
            outcomes[entry] = time_map(entry, job, size)
            yield outcomes[entry]
        rounds.append(outcomes)
    yield Results(size[0] ** 2, tuple(rounds))


def time_map(entry: Entry, job: MapJob, size: tuple[int, int]) -> Outcome:
    """Return the time and memory of one map, and the time of the backend alone."""
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        own_job = replace(job, out=Path(folder) / "map.tif", batch=entry.batch)
        alone = _backend_seconds(entry, own_job, size)
        found = run_script(
            "contestants.py", entry.name, str(own_job.write(Path(folder) / "job.json")), python=entry.python
        )
    return Outcome(found["seconds"], found["peak_mb"], alone)


def tiles_in(size: int, tile: int, overlap: float) -> int:
    """Return the number of tiles that Geograft needs for `size` x `size` pixels. They extend beyond the borders."""
    stride = round(tile * (1 - overlap))
    margin = (tile - stride) // 2
    return (math.ceil((size + 2 * margin - tile) / stride) + 1) ** 2


def _backend_seconds(entry: Entry, job: MapJob, size: tuple[int, int]) -> float:
    if not entry.backend_only:
        return math.nan
    needed = math.ceil(tiles_in(*size, job.overlap) / entry.batch)
    given = replace(job, batches=max(4, needed // BACKEND_DIVISOR))
    written = given.write(job.out.with_name("backend.json"))
    found = run_script("contestants.py", entry.backend_only, str(written), python=entry.python)
    return float(found["seconds"]) / given.batches * needed
