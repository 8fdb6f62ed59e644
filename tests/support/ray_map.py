"""A map computed on a Ray cluster by a network that needs no torch. Run by tests/mapping/test_ray.py as the driver.

    python -m tests.support.ray_map ADDRESS FOLDER BATCH_S

FOLDER has a run and scene.tif; the map is FOLDER/out, in units of 64 pixels, and each batch takes BATCH_S seconds. The
nodes of the cluster import this module too. Two variables of a node change what its actors do: BATCH_S is used in place
of the driver's, and INSTRUCTION_SET is that of its processor.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import geograft.mapping.environment
import geograft.mapping.map_units
import geograft.mapping.models
from geograft.commands.units import MapJob, map_job, run_job
from geograft.config import WorkerConfig
from geograft.errors import GeograftError
from geograft.mapping.units import UnitGrid
from geograft.mapping.windows import TileGrid
from tests.support.runs import ContextPredictor


class SlowPredictor(ContextPredictor):
    """Takes some time for each batch, but for those of the sample."""

    batch_s = 0.0

    def __call__(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        time.sleep(self.batch_s)
        return super().__call__(pixels, valid)


def small_units(tiles: TileGrid, *_: int) -> UnitGrid:
    return UnitGrid(tiles.height, tiles.width, 64)


@dataclass(frozen=True)
class SlowMapJob(MapJob):
    """A map by `SlowPredictor` in small units."""

    batch_s: float

    def join(self) -> Any:
        geograft.mapping.models.EnsemblePredictor = SlowPredictor  # type: ignore[misc, assignment]
        geograft.mapping.map_units.plan_units = small_units
        if name := os.environ.get("INSTRUCTION_SET"):
            geograft.mapping.environment._instruction_set = lambda: name
        worker = super().join()
        SlowPredictor.batch_s = float(os.environ.get("BATCH_S", self.batch_s))
        return worker


def slow_map_job(folder: Path, address: str, batch_s: float) -> SlowMapJob:
    worker = WorkerConfig(one_file=True, ray=address)
    one = map_job(folder / "run", folder / "scene.tif", folder / "out", worker=worker)
    return SlowMapJob(one.runs, one.rasters, one.out, one.config, one.aoi, one.worker, batch_s)


if __name__ == "__main__":
    try:
        result = run_job(slow_map_job(Path(sys.argv[2]), sys.argv[1], float(sys.argv[3])))
    except GeograftError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{result.done} {result.computed}\n")
