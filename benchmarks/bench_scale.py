"""Units and workers: what the halo costs, and how much two workers do in the time of one.

    python benchmarks/bench_scale.py [--side 4096] [--unit 2048] [--folder FOLDER]

A network with random weights (speed does not depend on them) maps a textured raster with one thread: one process
without units, one worker, and two workers that share a folder. All give the same pixels, which is checked. CPU seconds
include the start of each process; wall clock says less where other processes share the cores.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rasterio

import machine
import rasters

CHILD = """
import sys
import geograft.mapping.map_units
from geograft.mapping.units import UnitGrid
side = int(sys.argv.pop(1))
geograft.mapping.map_units.plan_units = lambda tiles, *_: UnitGrid(tiles.height, tiles.width, side)
from geograft.cli import main
main()
"""


def make_run(folder: Path) -> Path:
    """Write a run of the default network with random weights."""
    import torch

    from geograft.card import WEIGHTS, ModelCard
    from geograft.config import ModelConfig
    from geograft.legend import Legend
    from geograft.networks.network import build
    from geograft.training.checkpoint import save_weights

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = ModelConfig(weights="none")
    digest = save_weights(folder / WEIGHTS, build(model, 3, 4))
    known: dict[str, Any] = {"band_names": ("red", "green", "blue"), "dtype": "uint8", "tile_px": 160}
    known |= {"mean": (90.0, 100.0, 110.0), "std": (50.0,) * 3, "resolution_m": 0.1, "epoch": 1, "threshold": 0.5}
    legend = Legend(("water", "grass", "crops", "trees"))
    card = ModelCard("bench", model=model, legend=legend, weights_from="random", weights_digest=digest, **known)
    card.write(folder)
    return folder


def start(arguments: list[str], unit_px: int) -> "subprocess.Popen[bytes]":
    """Start a command of geograft on one thread, with units of a given size."""
    command = [sys.executable, "-c", CHILD, str(unit_px), *arguments]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def measure(commands: list[list[str]], unit_px: int) -> tuple[float, float]:
    """Return the seconds of wall clock and of CPU of commands that run at the same time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    running = [start(command, unit_px) for command in commands]
    if any(process.wait() for process in running):
        raise SystemExit("a worker failed")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Parse the options, and report in a folder that is removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096, help="pixels of the raster's sides")
    parser.add_argument("--unit", type=int, default=2048, help="pixels of a unit's sides")
    parser.add_argument("--folder", type=Path, help="folder for the files, which is emptied")
    chosen = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        if chosen.folder:
            shutil.rmtree(folder, ignore_errors=True)
        report(folder, chosen.side, chosen.unit)


def report(folder: Path, side: int, unit_px: int) -> None:
    """Measure and print."""
    run, scene = make_run(folder / "run"), rasters.dense_raster(folder / "scene.tif", side)
    common = ["predict", str(run), str(scene), "--device", "cpu", "--backend", "torch", "--out"]
    results = {"one process": measure([[*common, str(folder / "map.tif")]], unit_px)}
    for count in (1, 2):
        out = folder / f"by-{count}"
        parts = [[*common, str(out), "--worker", "--part", f"{number + 1}/{count}"] for number in range(count)]
        results[f"{count} worker{'s' * (count > 1)}"] = measure(parts, unit_px)
        with rasterio.open(folder / "map.tif") as whole, rasterio.open(out / "map.vrt") as units:
            assert (whole.read() == units.read()).all(), "units have other pixels than the map of one process"
    # A worker that finds nothing to do: the start, with its imports and the sample.
    results["start of a worker"] = measure([[*common, str(folder / "by-1"), "--worker"]], unit_px)
    summary = json.loads((folder / "by-1" / "summary.json").read_bytes())
    sys.stdout.write(f"{machine.describe(('torch', 'rasterio'))}\n")
    sys.stdout.write(f"{side} x {side} pixels, units of {unit_px}: {summary['windows']} windows\n")
    sys.stdout.write("| | wall s | CPU s |\n|---|---|---|\n")
    for name, (wall, cpu) in results.items():
        sys.stdout.write(f"| {name} | {wall:.1f} | {cpu:.1f} |\n")
    one, two, started = results["1 worker"], results["2 workers"], results["start of a worker"][1]
    sys.stdout.write(f"two workers do {one[0] / two[0] / 2:.2f} of twice one by wall clock, ")
    sys.stdout.write(f"{one[1] / two[1]:.2f} by CPU time, ")
    sys.stdout.write(f"{(one[1] - started) / (two[1] - 2 * started):.2f} by that without the starts\n")
    halo = (one[1] - started) / (results["one process"][1] - started) - 1
    sys.stdout.write(f"units cost {halo:.0%} more CPU than one process, without the starts\n")


if __name__ == "__main__":
    main()
