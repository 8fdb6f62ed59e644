"""Units and workers: what the halo costs, and how much two workers do in the time of one.

    python benchmarks/bench_scale.py [--side 8192] [--folder FOLDER] [--write]

A network with random weights (speed does not depend on them) maps a textured raster in windows of 640 pixels on one
core each: one process without units, one worker, and two workers that share a folder, on 16 units of 2,048 pixels. All
give the same pixels, which is checked. What workers do is counted in units per minute of the time in which all of them
compute, by the receipts of the units: starts, and the last unit of one of them, do not count. Processor seconds of a
unit are without the start, which is measured by a worker that finds nothing to do.

On two quiet cores it takes a few minutes. Exits with 1 if two workers do less than 0.85 of twice one. --write puts
the table into docs/scale.md.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rasterio

import machine
import page
import rasters
from measured import fastest_backend

PAGE = page.PAGE.with_name("scale.md")
LIMIT = 0.85
WINDOW_PX = 640


@dataclass(frozen=True)
class Span:
    """When a unit was computed, in seconds of the file system's clock, by whom, and what it took."""

    worker: str
    start: float
    stop: float

    def within(self, start: float, stop: float) -> float:
        """Return the fraction of the unit that was computed between two times."""
        return max(0.0, min(stop, self.stop) - max(start, self.start)) / (self.stop - self.start)


def read_spans(out: Path) -> list[Span]:
    """Return when the units of a job were computed, from their receipts."""
    spans = []
    for path in (out / "state").glob("*.done.json"):
        receipt, stop = json.loads(path.read_bytes()), path.stat().st_mtime
        spans.append(Span(receipt["worker"], stop - receipt["seconds"], stop))
    return spans


def units_per_minute(spans: list[Span]) -> float:
    """Return the speed of all workers together, in the time in which all of them compute."""
    by_worker = [[each for each in spans if each.worker == worker] for worker in {each.worker for each in spans}]
    start = max(min(each.start for each in own) for own in by_worker)
    stop = min(max(each.stop for each in own) for own in by_worker)
    if stop <= start:
        raise SystemExit("the workers did not compute at the same time; give a larger --side")
    return 60 * sum(each.within(start, stop) for each in spans) / (stop - start)


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


def start(arguments: list[str], core: int) -> "subprocess.Popen[bytes]":
    """Start a command of geograft on one core, which it shares with its own threads that read and write."""
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-m", "geograft", *arguments]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def measure(commands: list[list[str]]) -> tuple[float, float]:
    """Return the seconds of wall clock and of CPU of commands that run at the same time, each on a core of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    running = [start(command, core) for core, command in enumerate(commands)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a worker failed")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def empty_folder(chosen: Path | None) -> Iterator[Path]:
    """Yield a folder for files: the chosen one, emptied, or a temporary one."""
    with TemporaryDirectory() as scratch:
        if chosen:
            shutil.rmtree(chosen, ignore_errors=True)
        yield chosen or Path(scratch)


def main() -> None:
    """Parse the options, and report in a folder that is removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="pixels of the raster's sides (default 8192)")
    parser.add_argument("--folder", type=Path, help="folder for the files, which is emptied")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    chosen = parser.parse_args()
    with empty_folder(chosen.folder) as folder:
        content, ratio = report(folder, chosen.side)
    print(content)
    if chosen.write:
        page.write_section("workers", content, PAGE)
    if ratio < LIMIT:
        raise SystemExit(1)


def report(folder: Path, side: int) -> tuple[str, float]:
    """Measure; return the text, and what two workers do relative to twice one."""
    run, scene = make_run(folder / "run"), rasters.dense_raster(folder / "scene.tif", side)
    backend = fastest_backend()
    common = ["predict", str(run), "--window-px", str(WINDOW_PX), "--overlap", "0.125", "--device", "cpu"]
    common += ["--backend", backend]
    # The first map exports the network.
    small = rasters.dense_raster(folder / "small.tif", WINDOW_PX)
    measure([[*common, str(small), "--out", str(folder / "small.map.tif")]])
    common += [str(scene), "--out"]
    alone = measure([[*common, str(folder / "map.tif")]])
    times, speeds = {}, {}
    for count in (1, 2):
        out = folder / f"by-{count}"
        parts = [[*common, str(out), "--worker", "--part", f"{number + 1}/{count}"] for number in range(count)]
        times[count], spans = measure(parts), read_spans(out)
        speeds[count] = units_per_minute(spans)
        with rasterio.open(folder / "map.tif") as whole, rasterio.open(out / "map.vrt") as units:
            if not (whole.read() == units.read()).all():
                raise SystemExit("units have other pixels than the map of one process")
    idle = measure([[*common, str(folder / "by-1"), "--worker"]])
    units = len(spans)
    rows = [["one process", f"{alone[0]:.1f}", f"{alone[1]:.1f}", "", ""]]
    for count, (wall, cpu) in times.items():
        per_unit = (cpu - count * idle[1]) / units
        name = f"{count} worker{'s' * (count > 1)}"
        rows.append([name, f"{wall:.1f}", f"{cpu:.1f}", f"{per_unit:.2f}", f"{speeds[count]:.2f}"])
    rows.append(["start of a worker", f"{idle[0]:.1f}", f"{idle[1]:.1f}", "", ""])
    ratio = speeds[2] / speeds[1] / 2
    halo = (times[1][1] - idle[1]) / (alone[1] - idle[1]) - 1
    head = ["", "wall s", "processor s", "processor s per unit", "units per minute together"]
    content = (
        f"{side:,} x {side:,} pixels, {units} units, windows of {WINDOW_PX} pixels, one core each, "
        f"backend {backend}. "
        f"{machine.describe(('torch', 'openvino', 'onnxruntime', 'rasterio'))}\n\n{page.table(head, rows)}\n\n"
        f"Two workers do **{ratio:.2f} of twice one** while both compute. Units of 2,048 pixels take {halo:.0%} more "
        "processor time than one process; those of large rasters are larger, with a smaller halo."
    )
    return content, ratio


if __name__ == "__main__":
    main()
