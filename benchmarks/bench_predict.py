"""Maps of one raster by Geograft's backends, a plain PyTorch loop and other packages: speed, memory, seams, in one run.

    python benchmarks/bench_predict.py [--pixels 3584] [--seam-pixels 2240] [--repeats 3] [--write]

One run of the default network, one raster (a real scene, mirrored), one tile, one overlap for all. Every map is made
in a process of its own. Contestants take turns, so that other load on the machine meets all; what counts is the median
over the turns of the ratios within one. --write puts the tables into docs/speed.md. PEER_PYTHON names the interpreter
that has the other packages, where this one does not. Ends with 1 where Geograft's seam is above 1.02.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import machine
import page
from contestants import BACKENDS, Job
from geograft.card import read_card
from geograft.config import PredictConfig
from measured import importable
from models import trained_run
from peers import PEERS
from quality import Quality, qualities
from race import Entry, Results, race
from rasters import dense

SEAM_LIMIT = 1.02
PEER_PYTHON = os.environ.get("PEER_PYTHON", sys.executable)
PACKAGES = ("torch", "onnxruntime", "openvino", "rasterio", "terratorch", "geoai-py")
RULES = (Entry("tiles side by side, no overlap", "side by side"), Entry("the centres of tiles", "centres"))
PLAIN = "plain"


def entries(batch: int) -> tuple[Entry, ...]:
    """Return who takes part: all that can be imported."""
    peers = [(name, peer) for name, peer in PEERS.items() if importable(peer.module, PEER_PYTHON)]
    backends = [name for name, module in BACKENDS.items() if importable(module)]
    return (
        Entry("plain loop, one tile at a time", PLAIN, 1),
        Entry(f"plain loop, {batch} tiles at a time", PLAIN, batch),
        *(Entry(peer.title, f"peer-{name}", batch, PEER_PYTHON) for name, peer in peers),
        *(Entry(f"**Geograft, {name}**", f"geograft-{name}", batch) for name in backends),
    )


def speed_table(taking_part: Sequence[Entry], results: Results, found: dict[str, Quality]) -> str:
    """Return the table of speed and memory."""
    fastest = max((entry for entry in taking_part if entry.name == PLAIN), key=results.speed)
    head = ["", "Mpx/s", "to the plain loop", "to its backend alone", "memory, MB", "seam", "largest difference"]
    lines = [
        [
            entry.title,
            f"{results.speed(entry):.3f}",
            f"{results.ratio(entry, fastest):.2f}",
            f"{results.of_alone(entry):.2f}" if entry.alone else "",
            f"{results.peak_mb(entry):,.0f}",
            *quality_cells(found.get(entry.name)),
        ]
        for entry in taking_part
    ]
    absent = [peer.title for name, peer in PEERS.items() if f"peer-{name}" not in {entry.name for entry in taking_part}]
    return page.table(head, [*lines, *([title, "not installed", *[""] * 5] for title in absent)])


def quality_cells(quality: Quality | None) -> list[str]:
    """Return seam and largest difference; nothing where they were not looked at."""
    return [f"{quality.seam.ratio:.3f}", f"{quality.largest:.3f}"] if quality else ["", ""]


def seam_table(taking_part: Sequence[Entry], found: dict[str, Quality]) -> str:
    """Return the table of seams: the rules without blending, then everybody once."""
    head = ["", "seam", "± standard error", "not corrected", "largest of all lines", "mean difference"]
    titles = {entry.name: entry.title for entry in taking_part} | {PLAIN: "plain loop, the mean of overlapping tiles"}
    lines = [
        [
            title,
            f"{quality.seam.ratio:.3f}",
            f"{quality.seam.error:.3f}",
            f"{quality.seam.plain:.3f}",
            f"{quality.seam.worst:.3f}",
            f"{quality.mean:.4f}",
        ]
        for name, title in titles.items()
        for quality in [found[name]]
    ]
    return page.table(head, lines)


def run_race(taking_part: Sequence[Entry], job: Job, size: tuple[int, int], repeats: int) -> Results:
    """Return the results, and say each as it comes."""
    names = [entry for _ in range(repeats) for entry in taking_part]
    stream = race(taking_part, job, size, repeats)
    for entry, made in zip(names, stream, strict=False):
        assert not isinstance(made, Results)
        alone = "" if math.isnan(made.alone_seconds) else f", its backend alone {made.alone_seconds:.1f} s"
        print(f"  {entry.title}: {made.seconds:.1f} s, {made.peak_mb:,.0f} MB{alone}", flush=True)
    results = next(stream)
    assert isinstance(results, Results)
    return results


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pixels", type=int, default=3584, help="edge of the raster that is timed (default 3584)")
    parser.add_argument("--seam-pixels", type=int, default=2240, help="edge of the part with seams (default 2240)")
    parser.add_argument("--no-seams", action="store_true", help="speed and memory only; nothing is written")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count (default 3)")
    parser.add_argument("--epochs", type=int, default=6, help="training of the run (default 6)")
    parser.add_argument("--run", type=Path, help="a finished run to predict with, in place of training one")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where run and rasters are kept")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speed.md")
    return parser.parse_args()


def main() -> int:
    """Print the tables and return the exit status."""
    given, settings = arguments(), PredictConfig()
    given.folder.mkdir(parents=True, exist_ok=True)
    run = given.run or trained_run(given.folder, given.epochs)
    card = read_card(run)
    taking_part = entries(settings.batch_size)
    raster = dense(given.folder / f"dense-{given.pixels}.tif", given.pixels)
    job = Job(run, raster, Path("map.tif"), settings.overlap)
    looked_at = [] if given.no_seams else [*RULES, *taking_part]
    found = qualities(looked_at, job, given.seam_pixels, card.tile_px) if looked_at else {}
    seams = seam_table(looked_at, found) if looked_at else ""
    print(seams, flush=True)
    results = run_race(taking_part, job, (given.pixels, card.tile_px), given.repeats)
    speeds = speed_table(taking_part, results, found)
    about = (
        f"{given.pixels:,} x {given.pixels:,} pixels; {card.model.encoder} U-Net, encoder weights {card.weights_from}; "
        f"tiles of {card.tile_px} pixels, overlap {settings.overlap}; medians of {given.repeats} turns. "
        f"{machine.described(PACKAGES)}"
    )
    seams_about = f"{given.seam_pixels:,} x {given.seam_pixels:,} pixels of the same."
    print(f"{about}\n\n{speeds}")
    if given.write and seams:
        page.write("predict", f"{about}\n\n{speeds}\n\n{seams_about}\n\n{seams}")
    return int(any(found[entry.name].seam.ratio > SEAM_LIMIT for entry in taking_part if entry.alone and found))


if __name__ == "__main__":
    sys.exit(main())
