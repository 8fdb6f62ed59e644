"""What maps are like: seams, and how far they are from the prediction of the whole image at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy import ndarray

from contestants import Job, reach, tiling
from measured import in_process
from race import Entry
from rasters import dense
from seams import Seam, Tiling, seam
from tiling import load_network

WHOLE = Entry("whole image at once", "whole")
SHIFTS = 4
"""How often the same ground is mapped, at most, with the tiles shifted against it."""


@dataclass(frozen=True)
class Quality:
    """What one map is like."""

    seam: Seam
    largest: float
    """Largest difference of a probability from the whole image's."""
    mean: float
    """Mean absolute difference."""


def qualities(entries: Sequence[Entry], job: Job, size: int, tile: int) -> dict[str, Quality]:
    """Return what the maps of `entries` are like, by contestant, on `size` x `size` pixels of ground.

    The whole image is predicted with the network's own grid where the tiles have it: it would make a difference by
    itself. Rasters are kept in the folder of `job.raster`.
    """
    grid = load_network(job.run)[1].body.stride
    shifts = shifts_of(round(tile * (1 - job.overlap)), grid)
    folder = job.raster.parent
    jobs = [replace(job, raster=dense(folder / f"shifted-{size}-{shift}.tif", size, shift)) for shift in shifts]
    wholes: dict[int, ndarray] = {}
    found = {}
    for entry in {entry.name: entry for entry in entries}.values():
        before = reach(entry.name, tile, job.overlap) % grid
        if before not in wholes:
            wholes[before] = probabilities(WHOLE, replace(jobs[0], before=before))
        maps = [probabilities(entry, each) for each in jobs]
        found[entry.name] = quality(maps, shifts, wholes[before], tiling(entry.name, tile, job.overlap), tile)
        print(f"  {entry.title}: seam {found[entry.name].seam.ratio:.3f}", flush=True)
    return found


def shifts_of(stride: int, grid: int) -> list[int]:
    """Return how far the tiles are shifted, in pixels: multiples of the network's `grid` within one `stride`.

    A network with pooling and upsampling leaves a faint grid of its own, in the prediction of a whole image too: its
    steps are larger between its cells. The shifts leave that grid where it is, so that borders are compared with lines
    at the same place in it.
    """
    return sorted({round(stride * i / SHIFTS / grid) * grid % stride for i in range(SHIFTS)})


def quality(maps: Sequence[ndarray], shifts: Sequence[int], whole: ndarray, tiling: Tiling, margin: int) -> Quality:
    """Return what maps are like, further than `margin` pixels from their edges: there nothing has its context.

    The first of them is of the same ground as the prediction of the `whole` image.
    """
    inner = slice(margin, -margin)
    difference = np.abs(maps[0][inner, inner].astype(np.float64) - whole[inner, inner])
    return Quality(seam(maps, shifts, tiling, margin), float(difference.max()), float(difference.mean()))


def probabilities(entry: Entry, job: Job) -> ndarray:
    """Return a contestant's map of the probability of class 1, (h, w)."""
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        saved = Path(folder) / "probabilities.npy"
        todo = replace(job, out=Path(folder) / "map.tif", batch=entry.batch, probabilities=saved)
        in_process("contestants.py", entry.name, str(todo.write(Path(folder) / "job.json")), python=entry.python)
        found: ndarray = np.load(saved, allow_pickle=False)
        return found
