"""Exported files of a run: size, agreement with torch on real tiles, and speed, all in one process.

    python benchmarks/bench_export.py demo-out/run [--rounds 9] [--write]

Each file predicts the same windows of the run's validation tiles on one thread, in turn with the others; the table has
the median processor time of a window, which other processes hardly affect, relative to that of torch as maps use it.
The last line says what `--int8` measured. --write puts the table into docs/export.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from numpy import ndarray

import machine
import page
from geograft.card import ModelCard, read_card
from geograft.commands.export import export
from geograft.config import ExportConfig
from geograft.dataset.joined import open_run_tiles
from geograft.errors import SettingError
from geograft.exports.deepness import open_plugin_model
from geograft.exports.onnx import open_onnx, open_openvino
from geograft.exports.program import GraphRunner, open_program
from geograft.inference.predictor import EnsemblePredictor
from geograft.labels import image_mask

WINDOWS = 4
TARGETS: dict[str, tuple[str, Callable[[Path], GraphRunner]]] = {
    "onnx": (".onnx", open_onnx),
    "deepness": (".onnx", open_plugin_model),
    "openvino": (".xml", open_openvino),
    "torch": (".pt2", open_program),
}


def read_windows(run: Path, card: ModelCard, side: int) -> tuple[ndarray, ndarray]:
    """Return the upper left windows of validation tiles, (WINDOWS, bands, side, side), and which pixels are valid."""
    samples = open_run_tiles(run, None).samples("val")
    pairs = [samples[index] for index in range(min(WINDOWS, len(samples)))]
    pixels = np.stack([image[: card.bands, :side, :side] for image, _ in pairs])
    valid = np.stack([image_mask(image, label)[:side, :side] for image, label in pairs])
    return pixels, valid


def time_runners(runners: dict[str, GraphRunner], pixels: ndarray, valid: ndarray, rounds: int) -> dict[str, float]:
    """Return the median processor seconds of one window for each runner; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(rounds + 1):
        for name, runner in runners.items():
            index = round_ % len(pixels)
            began = time.process_time()
            runner(pixels[index : index + 1], valid[index : index + 1])
            times[name].append(time.process_time() - began)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def try_int8(run: Path, folder: Path) -> str:
    """Return what `--int8` says of a run."""
    try:
        return "`--int8`: kept. " + export(run, folder / "int8.onnx", "onnx", ExportConfig(int8=True)).summary[-1]
    except SettingError as error:
        return f"`--int8`: refused. {error}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run without spectral indices")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/export.md")
    given = parser.parse_args()
    card = read_card(given.run)
    side = card.tile_px // 32 * 32
    pixels, valid = read_windows(given.run, card, side)
    torch_predictor = EnsemblePredictor.load([given.run], device="cpu", backend="torch", batch_size=1)
    with tempfile.TemporaryDirectory() as name:
        folder, runners = Path(name), {"torch, as in maps": torch_predictor}
        sizes = {}
        for target, (suffix, open_file) in TARGETS.items():
            path = folder / f"{target}{suffix}"
            export(given.run, path, target, ExportConfig(window_px=side if target == "deepness" else 0))
            runners[target] = open_file(path)
            sizes[target] = sum(each.stat().st_size for each in folder.glob(f"{target}.*"))
        seconds = time_runners(runners, pixels, valid, given.rounds)
        expected = torch_predictor(pixels, valid)
        differences = {name: float(np.abs(runner(pixels, valid) - expected).max()) for name, runner in runners.items()}
        int8 = try_int8(given.run, folder)
    first = next(iter(runners))
    rows = [
        [
            name,
            f"{sizes[name] / 1e6:.1f}" if name in sizes else "",
            f"{differences[name]:.1g}",
            f"{1000 * seconds[name]:.1f}",
            f"{seconds[first] / seconds[name]:.2f}",
        ]
        for name in runners
    ]
    head = ["file", "MB", "largest difference from torch", f"ms per window of {side} px", "speed relative to torch"]
    content = f"{machine.describe(('torch', 'onnxruntime', 'openvino'))}\n\n{page.table(head, rows)}\n\n{int8}"
    print(content)
    if given.write:
        page.write_section("exports", content, page.PAGE.with_name("export.md"))


if __name__ == "__main__":
    main()
