"""Training by Geograft's default, the article's models, plain loops over other networks and another package, in one
run.

    python benchmarks/bench_train.py [--tiles DIR] [--weights FILE] [--epochs 10] [--seeds 3] [--minutes 40] [--write]

The same tiles (Sentinel-2 forest by scene, `recipes/amazon.toml`, where --tiles names no others), the same file of
encoder weights, the same epochs for all. First the steps of all networks are timed by turns in one process, then where
a step's time goes; then everybody is trained, each in a process of its own. What is done is kept as JSON in --folder: a
benchmark that was stopped goes on, and no training begins that would not end within --minutes. Give the command again
then: with ten epochs and three seeds all of it takes about an hour and a half on two cores.
--write puts the tables into docs/training.md. PEER_PYTHON names the interpreter that has the other package, where this
one does not. Ends with 1 where Geograft's default is not as fast as asked, or not ahead.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import machine
import page
import train_tables as tables
from geograft import MaskSource, load_recipe, prepare
from geograft.dataset.tileset import TileSet
from geograft.errors import GeograftError
from measured import NotRunnableError, importable, in_process
from train_results import Shelf, at_equal_time
from trainees import ARTICLE, BATCH, ENCODER, OURS, PEER, TRAINEES, Job, opened

SHARED = Path(__file__).resolve().parents[2] / "shared"
IMAGES, MASKS = SHARED / "data" / "amazon" / "images", SHARED / "data" / "amazon" / "masks"
WEIGHTS = SHARED / "weights" / f"{ENCODER}_encoder.safetensors"
CLASSES = {1: "forest", 2: "other"}
PEER_PYTHON = os.environ.get("PEER_PYTHON", sys.executable)
PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "torchgeo")
PROFILED = (OURS, PEER, "article")
PROFILE_STEPS = 3
STEPS, PROFILE = "steps", "profile"
START_S = 20.0
"""About what a process takes to begin."""
QUICK_TILES = 2


@dataclass(frozen=True)
class Bench:
    """What is to be done, and where it is kept."""

    job: Job
    shelf: Shelf
    names: tuple[str, ...]
    """Who takes part."""
    seeds: int
    turns: int
    end: float
    """When no training begins any more that would last longer, by time.monotonic()."""

    def jobs(self) -> Iterator[Job]:
        """Yield the trainings: seed after seed of all but the slow, then one of each that is slow."""
        slow = [name for name in self.names if TRAINEES[name].slow]
        for seed in range(self.seeds):
            for name in self.names:
                if name not in slow:
                    yield replace(self.job, name=name, seed=seed)
        for name in slow:
            yield replace(self.job, name=name)

    def jobs_at_equal_time(self) -> Iterator[Job]:
        """Yield the trainings of as many epochs as end while Geograft's default trains, for those that need them."""
        for job in self.jobs():
            epochs, kept = at_equal_time(self.shelf, job.name, self.seeds, self.job)
            if epochs and (kept is None or (job.seed not in kept.by_seed and job.name != OURS)):
                yield replace(job, epochs=epochs)


def tile_set(given: Path | None, folder: Path) -> Path:
    """Return the tile set that was given; else that of the images beside the project, prepared in `folder` once.

    Raises:
        NotRunnableError: when there are neither.
    """
    if given is not None:
        return given
    tiles = folder / ARTICLE
    if not tiles.exists():
        if not IMAGES.is_dir() or not MASKS.is_dir():
            raise NotRunnableError(
                f"{IMAGES} and {MASKS.name} beside it are not there. Give --tiles, a tile set of two classes and three "
                "bands that `geograft prepare` made."
            )
        source = MaskSource(IMAGES, MASKS, classes=CLASSES, skip_mismatched=True)
        prepare(source, tiles, load_recipe(ARTICLE).prepare)
    return tiles


def taking_part(only: Sequence[str]) -> tuple[str, ...]:
    """Return the names of those that can be run here, of `only` these and Geograft's default where any are given."""
    chosen = [name for name in TRAINEES if not only or name in only or name == OURS]
    return tuple(name for name in chosen if importable(TRAINEES[name].module or "torch", _python(name)))


def step_times(bench: Bench) -> dict[str, Any]:
    """Return the times of all networks' steps, measured now or before."""
    names = [name for name in bench.names if TRAINEES[name].timed]
    return _measured(bench, STEPS, "step_times.py", [str(bench.turns), *names])


def step_profile(bench: Bench) -> dict[str, Any]:
    """Return where a step's time goes, measured now or before."""
    names = [name for name in PROFILED if name in bench.names]
    return _measured(bench, PROFILE, "step_profile.py", [str(PROFILE_STEPS), *names])


def run_all(bench: Bench, jobs: Iterator[Job], times: dict[str, Any]) -> None:
    """Train what is not kept yet and what there is time for, and say what each gave."""
    for job in jobs:
        what = f"{TRAINEES[job.name].title}, seed {job.seed}, {job.epochs} epochs"
        if bench.shelf.read(job) is not None:
            print(f"  {what}: kept from before", flush=True)
        elif time.monotonic() + estimated(job, times) > bench.end:
            print(f"  {what}: no time left (--minutes)", flush=True)
        else:
            _train(bench, job, what)


def estimated(job: Job, times: dict[str, Any]) -> float:
    """Return about how many seconds a training will take, from the network's steps; those of smp's U-Net for a peer."""
    found = times["networks"].get(job.name) or times["networks"].get(PEER)
    if found is None:
        return START_S
    tiles = opened(job)
    step, look = (min(found[what]) / times["batch"] for what in ("train", "infer"))
    seconds: float = START_S + job.epochs * (len(tiles.split("train")) * step + len(tiles.split("val")) * look)
    return seconds


def report(bench: Bench, times: dict[str, Any], profile: dict[str, Any]) -> dict[str, str]:
    """Return what the page holds, by the marks between which it goes."""
    job, tiles = bench.job, TileSet.open(bench.job.tiles)
    parts = f"{len(opened(job).split('train'))} training and {len(opened(job).split('val'))} validation tiles"
    about = (
        f"{parts} of {times['tile_px']} pixels from {len(tiles.meta.scenes)} scenes, split by "
        f"{tiles.meta.settings.split}; batches of {BATCH}; {_threads(job)}, {_clock(job)}. "
        f"{machine.described(PACKAGES)}"
    )
    steps = f"Medians of {len(times['feed'])} turns, eager, float32; ratios within a turn."
    shelf, seeds = bench.shelf, bench.seeds
    asked = "\n".join(f"- {words}: {'yes' if holds else '**no**'}" for words, holds in verdicts(bench, times))
    return {
        "asked": f"Geograft's default\n\n{asked}",
        "steps": f"{about}\n\n{steps}\n\n{tables.speed_table(times)}",
        "quality": tables.quality_table(shelf, job, seeds),
        "trainings": tables.cost_table(shelf, job, seeds),
        "feed": f"The feed of Geograft's default delivers a tile in {1000 * median(times['feed']):.1f} ms: "
        f"{tables.feed_ratio(times):.1f} times as fast as the network learns (medians of the turns).",
        "profile": f"{tables.part_table(profile)}\n\n{tables.kind_table(profile)}",
    }


def verdicts(bench: Bench, times: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return what is asked of Geograft's default, and whether it holds."""
    return tables.verdicts(bench.shelf, bench.job, bench.seeds, times)


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiles", type=Path, help="tile set; without: Sentinel-2 images beside the project")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help=f"encoder weights in timm's names for {ENCODER}")
    parser.add_argument("--epochs", type=int, default=10, help="of everybody (default 10)")
    parser.add_argument("--seeds", type=int, default=3, help="of those that are not slow (default 3)")
    parser.add_argument("--turns", type=int, default=5, help="in which steps are timed (default 5)")
    parser.add_argument("--minutes", type=float, default=40, help="begin no training that would end later (default 40)")
    parser.add_argument("--threads", type=int, default=_cores(), help="of each process (default: all cores)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for one thread, steadier")
    names = ", ".join((*TRAINEES, STEPS, PROFILE))
    parser.add_argument("--only", nargs="+", default=[], choices=tuple(TRAINEES), metavar="NAME", help=names)
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="do these anew, whatever is kept")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TILES} tiles, one epoch, one turn: does it run?")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/train"), help="where everything is kept")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training.md")
    given = parser.parse_args()
    if given.quick:
        given.epochs, given.seeds, given.turns, given.folder = 1, 1, 1, given.folder / "quick"
    return given


def planned(given: argparse.Namespace) -> Bench:
    """Return what the command line asks for.

    Raises:
        NotRunnableError: when tiles or weights are not there, or are not what the benchmark needs.
    """
    if not given.weights.is_file():
        raise NotRunnableError(f"{given.weights} is not there. Give --weights, a file for timm's {ENCODER}.")
    limit = QUICK_TILES if given.quick else 0
    tiles = tile_set(given.tiles, given.folder.parent if given.quick else given.folder)
    job = Job(OURS, tiles, given.weights, given.epochs, 0, given.threads, given.clock, limit)
    opened(job)
    shelf = Shelf(given.folder, job)
    for name in given.again:
        shelf.forget(name)
    end = time.monotonic() + 60 * given.minutes
    return Bench(job, shelf, taking_part(given.only), given.seeds, given.turns, end)


def main() -> int:
    """Print the tables and return the exit status."""
    given = arguments()
    bench = planned(given)
    times, profile = step_times(bench), step_profile(bench)
    run_all(bench, bench.jobs(), times)
    run_all(bench, bench.jobs_at_equal_time(), times)
    found = report(bench, times, profile)
    print("\n\n".join(found.values()))
    if given.write and not given.quick:
        for name, content in found.items():
            page.write(name, content, page.TRAINING)
    return int(not given.quick and not all(holds for _, holds in verdicts(bench, times)))


def _measured(bench: Bench, name: str, script: str, arguments: Sequence[str]) -> dict[str, Any]:
    job = replace(bench.job, name=name)
    kept = bench.shelf.read(job)
    if kept is not None and kept["asked"] == list(arguments):
        print(f"  {name}: kept from before", flush=True)
        return kept
    found = _in_process(job, script, arguments, sys.executable) | {"asked": list(arguments)}
    bench.shelf.write(job, found)
    print(f"  {name}: measured", flush=True)
    return found


def _train(bench: Bench, job: Job, what: str) -> None:
    try:
        found = _in_process(job, "train_one.py", [], _python(job.name))
    except NotRunnableError as error:
        print(f"  {what}: not run: {error}", flush=True)
        return
    bench.shelf.write(job, found)
    last = found["ious"][-1]
    print(f"  {what}: {found['seconds']:.0f} s, {found['peak_mb']:,.0f} MB, IoU {last:.3f}", flush=True)


def _in_process(job: Job, script: str, arguments: Sequence[str], python: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        return in_process(script, str(job.write(Path(folder) / "job.json")), *arguments, python=python)


def _python(name: str) -> str:
    return PEER_PYTHON if TRAINEES[name].module else sys.executable


def _threads(job: Job) -> str:
    return "1 thread" if job.threads == 1 else f"{job.threads} threads"


def _clock(job: Job) -> str:
    return "seconds of the processor" if job.clock == "cpu" else "seconds on the wall"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotRunnableError, GeograftError) as error:
        sys.exit(str(error))
