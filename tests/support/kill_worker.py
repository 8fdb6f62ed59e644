"""Workers killed by SIGKILL at moments of their job, and others that take over. Run by tests/mapping/test_worker.py.

    python -m tests.support.kill_worker FOLDER

Every worker is a process of its own, forked. FOLDER/whole is not interrupted; in FOLDER/<moment> three workers, one
after the other, are killed at the same moment, and a fourth ends the job. Prints a line for each moment: its name, and
the signals that ended the first three.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import geograft.mapping.map_units
import geograft.mapping.models
from geograft.commands.units import predict_units
from geograft.config import WorkerConfig
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import UnitGrid
from geograft.storage import LocalFolder
from tests.support.processes import killed_at, run_in_child
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, ContextPredictor, make_run

geograft.mapping.models.EnsemblePredictor = ContextPredictor  # type: ignore[misc, assignment]
geograft.mapping.map_units.plan_units = lambda tiles, *_: UnitGrid(tiles.height, tiles.width, 64)  # type: ignore[assignment]


def map_units(folder: Path, name: str) -> None:
    predict_units(folder / "run", folder / "scene.tif", folder / name, worker=WorkerConfig(one_file=True))


def try_moment(folder: Path, name: str, arm: Callable[[], None]) -> str:
    def doomed() -> None:
        arm()
        map_units(folder, name)

    signals = [run_in_child(doomed) for _ in range(3)]
    assert run_in_child(lambda: map_units(folder, name)) == 0
    return " ".join([name, *map(str, signals)])


def main(folder: Path) -> None:
    write_raster(folder / "scene.tif", textured(3, 60, 150))
    make_run(folder / "run", COVERS)
    assert run_in_child(lambda: map_units(folder, "whole")) == 0
    moments = {
        "first-claim": killed_at(UnitLedger, "claim", 1, after=True),
        "within-unit": killed_at(ContextPredictor, "__call__", 4),
        "between-files": killed_at(LocalFolder, "put_new", 6),
        "after-receipt": killed_at(UnitLedger, "add_receipt", 1, after=True),
    }
    for name, arm in moments.items():
        sys.stdout.write(try_moment(folder, name, arm) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
