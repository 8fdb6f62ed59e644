"""`geograft train --quick` beside full training: IoU with confidence interval, and seconds, by the number of tiles.

    python benchmarks/bench_quick.py --weights WEIGHTS [--default] [--write]

`forest` is the tile set of Sentinel-2 scenes that `make bench-train` prepares, scored on its validation split; `crowns`
is the demo's scene with the demo's tiles, scored on its test split. Both are learning curves (`geograft curve`) of the
linear classifier with the same encoder weights. --default also trains Geograft's default on all tiles, for minutes.
Seconds are those of the fit or the training, in the history of each run, on one thread.

Results are cached in --folder, so the same command resumes. --write puts the table into docs/training.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import machine
import page
from bench_ideas import DATA_SETS
from geograft.commands.curve import CurvePoint, curve
from geograft.config import Recipe, Variant
from geograft.dataset.tileset import TileSet
from geograft.training.history import read_history
from trainees import ENCODER

COUNTS = (1, 3, 10, 50)
"""Numbers of training tiles, besides all."""
QUICK, DEFAULT = "quick", "default"


def points_of(tiles: Path, folder: Path, recipe: Recipe, counts: Sequence[int]) -> list[tuple[CurvePoint, float]]:
    """Return the points of a learning curve with one seed, with the seconds of each run."""
    total = len(TileSet.open(tiles).split("train"))
    percents = [100 * (count + 0.01) / total for count in counts if count < total]
    found = curve(tiles, folder, recipe, [*percents, 100.0])
    seconds = [read_history(folder / run.job.run).seconds for run in found.runs]
    return list(zip(found.points, seconds, strict=True))


def rows_of(data: str, name: str, points: Sequence[tuple[CurvePoint, float]]) -> list[list[str]]:
    """Return one row for each run: data, model, tiles, IoU with its confidence interval, seconds."""
    rows = []
    for point, seconds in points:
        iou = point.figures["iou"]
        value, interval = f"{iou.value:.3f}", f"{iou.low:.2f} to {iou.high:.2f}"
        rows.append([data, name, f"{point.size.tiles}", value, interval, f"{seconds:.1f}"])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help=f"weights of {ENCODER}")
    parser.add_argument("--default", action="store_true", help="also train Geograft's default on all tiles")
    parser.add_argument("--folder", type=Path, default=Path("build/quick"), help="where results are cached")
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = {"encoder": ENCODER, "weights": str(given.weights.resolve())}
    full = replace(Recipe(), seeds=(0,), variants=(Variant(DEFAULT),))
    full = full.with_settings(model=model, train={"calibrate": False})
    quick = replace(full.with_settings(model={"architecture": "linear"}), variants=(Variant(QUICK),))
    rows = []
    for data, prepare in DATA_SETS.items():
        tiles = prepare(given.folder)
        rows += rows_of(data, QUICK, points_of(tiles, given.folder / f"{data}-quick", quick, COUNTS))
        if given.default:
            rows += rows_of(data, DEFAULT, points_of(tiles, given.folder / f"{data}-default", full, ()))
    text = page.table(["data", "model", "tiles", "IoU", "95 % CI", "seconds"], rows)
    text = f"{text}\n\n{machine.describe(('torch', 'timm'))}"
    print(text)
    if given.write:
        page.write_section("quick", text, page.TRAINING)


if __name__ == "__main__":
    main()
