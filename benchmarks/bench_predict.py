"""Compare speed, memory and seams of maps by Geograft's backends, a plain PyTorch loop and other packages.

    python benchmarks/bench_predict.py [--pixels 3584] [--seam-pixels 2240] [--repeats 3] [--write]

All use the same run of the default network, raster (a real scene, mirrored), tile size and half overlap; seams are
those of the run's own windows, too. Every map is made in a process of its own. Contestants alternate, so that other
load on the machine affects all of them. A relative speed is the median over the rounds of the ratio within a round.
--write puts the tables into docs/speed.md. PEER_PYTHON names an interpreter with the other packages if this one lacks
them. Exits with 1 if Geograft's seam is above 1.02, or 1.05 with the run's own windows, whose overlap is smaller.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import machine
import page
from contestants import BACKENDS, MapJob
from geograft.card import ModelCard, read_card
from measured import is_importable
from models import trained_run
from peers import PEERS
from quality import Quality, measure_qualities
from race import Entry, Results, race
from rasters import dense_raster

SEAM_LIMIT, WINDOW_SEAM_LIMIT = 1.02, 1.05
OVERLAP, BATCH = 0.5, 8
PEER_PYTHON = os.environ.get("PEER_PYTHON", sys.executable)
PACKAGES = ("torch", "onnxruntime", "openvino", "rasterio", "terratorch", "geoai-py")
RULES = (Entry("no overlap", "side by side"), Entry("tile centres only", "centres"))
PLAIN = "plain"


def entries() -> tuple[Entry, ...]:
    """Return the contestants that can be imported."""
    peers = [(name, peer) for name, peer in PEERS.items() if is_importable(peer.module, PEER_PYTHON)]
    backends = [name for name, module in BACKENDS.items() if is_importable(module)]
    return (
        Entry("plain loop, one tile at a time", PLAIN, 1),
        Entry(f"plain loop, {BATCH} tiles at a time", PLAIN, BATCH),
        *(Entry(peer.title, f"peer-{name}", BATCH, PEER_PYTHON) for name, peer in peers),
        *(Entry(f"**Geograft, {name}**", f"geograft-{name}", BATCH) for name in backends),
    )


def measure_windows(job: MapJob, card: ModelCard, size: int, name: str) -> dict[str, Quality]:
    """Return the quality of Geograft's map with the run's own windows, by its title."""
    window_px, overlap_px = card.window
    entry = Entry(f"**Geograft, windows of {window_px} pixels that overlap by {overlap_px}**", name, BATCH)
    own = replace(job, window_px=window_px, overlap=overlap_px / window_px)
    return {entry.title: measure_qualities([entry], own, size, window_px)[name]}


def speed_table(contestants: Sequence[Entry], results: Results, found: dict[str, Quality]) -> str:
    """Return the table of speed and memory."""
    fastest = max((entry for entry in contestants if entry.name == PLAIN), key=results.speed)
    head = ["", "Mpx/s", "vs plain loop", "vs backend alone", "memory, MB", "seam", "largest difference"]
    lines = [
        [
            entry.title,
            f"{results.speed(entry):.3f}",
            f"{results.ratio(entry, fastest):.2f}",
            f"{results.backend_fraction(entry):.2f}" if entry.backend_only else "",
            f"{results.peak_mb(entry):,.0f}",
            *quality_cells(found.get(entry.name)),
        ]
        for entry in contestants
    ]
    absent = [peer.title for name, peer in PEERS.items() if f"peer-{name}" not in {entry.name for entry in contestants}]
    return page.table(head, [*lines, *([title, "not installed", *[""] * 5] for title in absent)])


def quality_cells(quality: Quality | None) -> list[str]:
    """Return seam and largest difference, or empty cells if they were not measured."""
    return [f"{quality.seam.ratio:.3f}", f"{quality.largest:.3f}"] if quality else ["", ""]


def by_title(contestants: Sequence[Entry], found: Mapping[str, Quality]) -> dict[str, Quality]:
    """Return qualities by title: the rules without blending, then each contestant once."""
    titles = {entry.name: entry.title for entry in contestants} | {PLAIN: "plain loop, mean of overlapping tiles"}
    return {title: found[name] for name, title in titles.items()}


def seam_table(found: Mapping[str, Quality]) -> str:
    """Return the table of seams by title."""
    head = ["", "seam", "± standard error", "uncorrected", "largest of all lines", "mean difference"]
    lines = [
        [
            title,
            f"{quality.seam.ratio:.3f}",
            f"{quality.seam.standard_error:.3f}",
            f"{quality.seam.uncorrected:.3f}",
            f"{quality.seam.max_ratio:.3f}",
            f"{quality.mean:.4f}",
        ]
        for title, quality in found.items()
    ]
    return page.table(head, lines)


def run_race(contestants: Sequence[Entry], job: MapJob, size: tuple[int, int], repeats: int) -> Results:
    """Return the results, and print each one as it finishes."""
    names = [entry for _ in range(repeats) for entry in contestants]
    stream = race(contestants, job, size, repeats)
    for entry, outcome in zip(names, stream, strict=False):
        assert not isinstance(outcome, Results)
        alone = "" if math.isnan(outcome.backend_seconds) else f", backend alone {outcome.backend_seconds:.1f} s"
        print(f"  {entry.title}: {outcome.seconds:.1f} s, {outcome.peak_mb:,.0f} MB{alone}", flush=True)
    results = next(stream)
    assert isinstance(results, Results)
    return results


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pixels", type=int, default=3584, help="edge of the timed raster in pixels (default 3584)")
    parser.add_argument(
        "--seam-pixels", type=int, default=2240, help="edge of the raster for seams in pixels (default 2240)"
    )
    parser.add_argument(
        "--window-pixels", type=int, default=3584, help="the same for the run's own windows (default 3584)"
    )
    parser.add_argument("--windows-only", action="store_true", help="measure only the seams of the run's own windows")
    parser.add_argument("--no-seams", action="store_true", help="measure speed and memory only; ignores --write")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs to train the run (default 6)")
    parser.add_argument("--run", type=Path, help="a finished run to predict with; default: train one")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/bench"), help="where the run and the rasters are cached"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed.md")
    return parser.parse_args()


def main() -> int:
    """Print the tables and return the exit status."""
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    run = given.run or trained_run(given.folder, given.epochs)
    card = read_card(run)
    contestants = entries()
    raster = dense_raster(given.folder / f"dense-{given.pixels}.tif", given.pixels)
    job = MapJob(run, raster, Path("map.tif"), OVERLAP)
    if given.windows_only:
        print(seam_table(measure_windows(job, card, given.window_pixels, contestants[-1].name)))
        return 0
    measured = [] if given.no_seams else [*RULES, *contestants]
    found = measure_qualities(measured, job, given.seam_pixels, card.tile_px) if measured else {}
    titled = by_title(measured, found) if measured else {}
    if measured:
        titled |= measure_windows(job, card, given.window_pixels, contestants[-1].name)
    seams = seam_table(titled) if titled else ""
    print(seams, flush=True)
    results = run_race(contestants, job, (given.pixels, card.tile_px), given.repeats)
    speeds = speed_table(contestants, results, found)
    about = (
        f"{given.pixels:,} x {given.pixels:,} pixels; {card.model.encoder} U-Net, encoder weights {card.weights_from}; "
        f"tiles of {card.tile_px} pixels, overlap {OVERLAP}; medians of {given.repeats} rounds. "
        f"{machine.describe(PACKAGES)}"
    )
    seams_about = (
        f"{given.seam_pixels:,} x {given.seam_pixels:,} pixels of the same scene; {given.window_pixels:,} x "
        f"{given.window_pixels:,} for the run's own windows."
    )
    print(f"{about}\n\n{speeds}")
    if given.write and seams:
        page.write_section("predict", f"{about}\n\n{speeds}\n\n{seams_about}\n\n{seams}")
    limits = {title: WINDOW_SEAM_LIMIT if "windows" in title else SEAM_LIMIT for title in titled if "Geograft" in title}
    return int(any(titled[title].seam.ratio > limit for title, limit in limits.items()))


if __name__ == "__main__":
    sys.exit(main())
