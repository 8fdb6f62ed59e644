"""Quality of a tiled map: its seams, and its difference from the prediction of the whole image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy import ndarray

from contestants import MapJob, contestant_tiling, first_tile_offset
from measured import run_script
from race import Entry
from rasters import dense_raster
from seams import Seam, Tiling, seam
from tiling import load_network

WHOLE = Entry("whole image", "whole")
SHIFTS = 4
"""Maximum number of maps of the same area, each with its tiles shifted."""


@dataclass(frozen=True)
class Quality:
    """The quality of one map."""

    seam: Seam
    largest: float
    """Maximum absolute difference of the probability from the whole image's."""
    mean: float
    """Mean absolute difference."""


def measure_qualities(entries: Sequence[Entry], job: MapJob, size: int, tile: int) -> dict[str, Quality]:
    """Return the quality of the maps of `entries`, by contestant, on an area of `size` x `size` pixels.

    The whole image is padded so that the network's pooling grid lies where it does in the tiles, because shifting that
    grid alone changes the prediction. Rasters are cached in the folder of `job.raster`.
    """
    grid = load_network(job.run)[1].body.stride
    shifts = tile_shifts(round(tile * (1 - job.overlap)), grid)
    folder = job.raster.parent
    jobs = [replace(job, raster=dense_raster(folder / f"shifted-{size}-{shift}.tif", size, shift)) for shift in shifts]
    wholes: dict[int, ndarray] = {}
    found = {}
    for entry in {entry.name: entry for entry in entries}.values():
        offset = first_tile_offset(entry.name, tile, job.overlap) % grid
        if offset not in wholes:
            wholes[offset] = probabilities(WHOLE, replace(jobs[0], padding=offset))
        maps = [probabilities(entry, each) for each in jobs]
        found[entry.name] = quality(
            maps, shifts, wholes[offset], contestant_tiling(entry.name, tile, job.overlap), tile
        )
        print(f"  {entry.title}: seam {found[entry.name].seam.ratio:.3f}", flush=True)
    return found


def tile_shifts(stride: int, grid: int) -> list[int]:
    """Return the shifts of the tiles, in pixels: multiples of the network's `grid` within one `stride`.

    A network with pooling and upsampling leaves a faint grid of its own, even in the prediction of a whole image: steps
    are larger between the cells of that grid. These shifts keep the grid in place, so that borders are compared with
    lines at the same position in it.
    """
    return sorted({round(stride * i / SHIFTS / grid) * grid % stride for i in range(SHIFTS)})


def quality(maps: Sequence[ndarray], shifts: Sequence[int], whole: ndarray, tiling: Tiling, margin: int) -> Quality:
    """Return the quality of maps more than `margin` pixels from their edges, where the context is incomplete.

    The first map shows the same area as `whole`, the prediction of the whole image.
    """
    inner = slice(margin, -margin)
    difference = np.abs(maps[0][inner, inner].astype(np.float64) - whole[inner, inner])
    return Quality(seam(maps, shifts, tiling, margin), float(difference.max()), float(difference.mean()))


def probabilities(entry: Entry, job: MapJob) -> ndarray:
    """Return a contestant's map of the probability of class 1, (h, w)."""
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        saved = Path(folder) / "probabilities.npy"
        own_job = replace(job, out=Path(folder) / "map.tif", batch=entry.batch, probabilities=saved)
        run_script("contestants.py", entry.name, str(own_job.write(Path(folder) / "job.json")), python=entry.python)
        found: ndarray = np.load(saved, allow_pickle=False)
        return found
