"""A map computed on a Ray cluster by a network that needs no torch. Run by tests/mapping/test_ray.py as the driver.

    python -m tests.support.ray_map ADDRESS FOLDER BATCH_S
    python -m tests.support.ray_map ADDRESS FOLDER polygons|suggest|evaluate

FOLDER has a run and scene.tif; the map is FOLDER/out, in units of 64 pixels, and each batch takes BATCH_S seconds. It
waits while as many units are done as FOLDER/limit says, if there is that file. With polygons, those of
FOLDER/plain/map.tif are traced into FOLDER/traced; with suggest, tiles of the scene are suggested in FOLDER/next; with
evaluate, the run FOLDER/scored is scored in FOLDER/scores. The nodes of the cluster import this module too. Two
variables of a node change what its actors do: BATCH_S is used in place of the driver's, and INSTRUCTION_SET is that of
its processor.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import geograft.commands.suggest
import geograft.commands.units
import geograft.mapping.environment
import geograft.mapping.map_units
import geograft.mapping.models
import geograft.mapping.pool_units
import geograft.mapping.score_units
from geograft.commands.suggest import SuggestJob
from geograft.commands.units import MapJob, PolygonJob, ScoreJob, run_job
from geograft.config import EvaluateConfig, PartConfig, WorkerConfig
from geograft.errors import GeograftError
from geograft.mapping.units import UnitGrid
from geograft.mapping.windows import TileGrid
from tests.support.runs import BandMeans, ContextPredictor

LIMIT = "limit"
"""File in FOLDER with the number of units from which on no further one is computed, for as long as it exists."""


def done(folder: Path) -> int:
    """Return the number of units of the map that are done."""
    return len(list((folder / "out" / "state").glob("*.done.json")))


class SlowPredictor(ContextPredictor):
    """Takes some time for each batch, but for those of the sample, and waits while enough units are done."""

    batch_s = 0.0
    folder = Path()

    def __call__(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        time.sleep(self.batch_s)
        while (limit := self.folder / LIMIT).exists() and done(self.folder) >= int(limit.read_text() or 0):
            time.sleep(0.02)
        return super().__call__(pixels, valid)


def small_units(tiles: TileGrid, *_: int) -> UnitGrid:
    return UnitGrid(tiles.height, tiles.width, 64)


@dataclass(frozen=True)
class SlowMapJob(MapJob):
    """A map by `SlowPredictor` in small units."""

    batch_s: float = 0.0

    def join(self) -> Any:
        geograft.mapping.models.EnsemblePredictor = SlowPredictor  # type: ignore[misc, assignment]
        geograft.mapping.map_units.plan_units = small_units
        if name := os.environ.get("INSTRUCTION_SET"):
            geograft.mapping.environment._instruction_set = lambda: name
        worker = super().join()
        SlowPredictor.batch_s = float(os.environ.get("BATCH_S", self.batch_s))
        SlowPredictor.folder = Path(str(self.out)).parent
        return worker


def slow_map_job(folder: Path, address: str, batch_s: float) -> SlowMapJob:
    places = (folder / "run",), (folder / "scene.tif",), folder / "out"
    return SlowMapJob(*places, worker=WorkerConfig(one_file=True, ray=address), batch_s=batch_s)


BLOCKED = ("mapping.polygons.outlines", "mapping.polygons.units", "mapping.polygons.joins", "commands.polygons")
"""Modules of the package that process blocks of BLOCK_PX pixels."""


class SmallPolygonJob(PolygonJob):
    """Polygons in units of 128 pixels and blocks of 64."""

    def join(self) -> Any:
        for module in BLOCKED:
            vars(import_module(f"geograft.{module}"))["BLOCK_PX"] = 64
        geograft.commands.units.plan_polygon_units = lambda grid: UnitGrid(grid.height, grid.width, 128)
        return super().join()


def small_polygon_job(folder: Path, address: str) -> SmallPolygonJob:
    return SmallPolygonJob(folder / "plain" / "map.tif", folder / "traced", worker=PartConfig(ray=address))


class SmallSuggestJob(SuggestJob):
    """Suggestions from units of 64 pixels, without a network."""

    def join(self) -> Any:
        geograft.mapping.models.EnsemblePredictor = ContextPredictor  # type: ignore[misc, assignment]
        geograft.mapping.pool_units.plan_units = lambda tiles, *_, **__: small_units(tiles)
        geograft.commands.suggest.load_cell_encoder = lambda *_: BandMeans()
        return super().join()


SCORED = EvaluateConfig(device="cpu", backend="torch", boundary_m=0.3)


class SmallScoreJob(ScoreJob):
    """Scores of units of at most five tiles, without a network."""

    def join(self) -> Any:
        geograft.mapping.models.EnsemblePredictor = ContextPredictor  # type: ignore[misc, assignment]
        vars(geograft.mapping.score_units).update(UNIT_TILES=5, MIN_UNIT_TILES=1)
        return super().join()


def main(address: str, folder: Path, what: str) -> None:
    if what == "polygons":
        traced = run_job(small_polygon_job(folder, address))
        sys.stdout.write(f"{traced.units} {traced.computed}\n")
    elif what == "suggest":
        shared = (folder / "run",), (folder / "scene.tif",), folder / "next"
        found = run_job(SmallSuggestJob(*shared, worker=PartConfig(ray=address)))
        sys.stdout.write(f"{found.units} {found.computed}\n")
    elif what == "evaluate":
        worker = PartConfig(ray=address)
        scored = run_job(SmallScoreJob((folder / "scored",), folder / "scores", config=SCORED, worker=worker))
        sys.stdout.write(f"{scored.units} {scored.computed}\n")
    else:
        made = run_job(slow_map_job(folder, address, float(what)))
        sys.stdout.write(f"{made.done} {made.computed}\n")


if __name__ == "__main__":
    # Shells start jobs in the background with SIGINT ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    except GeograftError as error:
        sys.exit(str(error))
