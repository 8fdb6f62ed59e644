"""Compare training of Geograft's default, the article's models, other networks in a plain loop, and another package.

    python benchmarks/bench_train.py [--tiles DIR] [--weights FILE] [--epochs 10] [--seeds 3] [--minutes 40] [--write]

All train on the same tiles (by default Sentinel-2 images of forest, split by scene, `recipes/amazon.toml`), from the
same encoder weights, for the same number of epochs. First the steps of all networks are timed, alternating in one
process, and profiled. Then each contestant is trained in a process of its own. Results are cached as JSON in --folder,
so an interrupted benchmark resumes. No training starts that would not finish within --minutes; run the command again to
continue. Ten epochs and three seeds take about an hour and a half on two cores.

--write puts the tables into docs/training.md. PEER_PYTHON names an interpreter with the other package if this one lacks
it. Exits with 1 if Geograft's default misses its target speed or IoU.
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
from measured import NotRunnableError, is_importable, run_script
from train_results import ResultStore, results_at_equal_time
from trainees import ARTICLE, BATCH, ENCODER, OURS, PEER, TRAINEES, TrainingJob, open_tiles

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
"""Approximate start-up time of a process."""
QUICK_TILES = 2


@dataclass(frozen=True)
class Bench:
    """The trainings to run, and the store of their results."""

    job: TrainingJob
    store: ResultStore
    names: tuple[str, ...]
    """The contestants."""
    seeds: int
    rounds: int
    end: float
    """Deadline by time.monotonic(): no training starts that would end later."""

    def jobs(self) -> Iterator[TrainingJob]:
        """Yield the trainings: every seed of the fast contestants, then one seed of each slow one."""
        slow = [name for name in self.names if TRAINEES[name].slow]
        for seed in range(self.seeds):
            for name in self.names:
                if name not in slow:
                    yield replace(self.job, name=name, seed=seed)
        for name in slow:
            yield replace(self.job, name=name)

    def jobs_at_equal_time(self) -> Iterator[TrainingJob]:
        """Yield the trainings with as many epochs as fit into the time of Geograft's default, where one is needed."""
        for job in self.jobs():
            epochs, cached = results_at_equal_time(self.store, job.name, self.seeds, self.job)
            if epochs and (cached is None or (job.seed not in cached.by_seed and job.name != OURS)):
                yield replace(job, epochs=epochs)


def tile_set(given: Path | None, folder: Path) -> Path:
    """Return the given tile set, or prepare one in `folder` from the images beside the project.

    Raises:
        NotRunnableError: if neither exists.
    """
    if given is not None:
        return given
    tiles = folder / ARTICLE
    if not tiles.exists():
        if not IMAGES.is_dir() or not MASKS.is_dir():
            raise NotRunnableError(
                f"{IMAGES} or {MASKS} not found. Give --tiles: a tile set of two classes and three bands, made by "
                "`geograft prepare`."
            )
        source = MaskSource(IMAGES, MASKS, classes=CLASSES, skip_mismatched=True)
        prepare(source, tiles, load_recipe(ARTICLE).prepare)
    return tiles


def available_names(only: Sequence[str]) -> tuple[str, ...]:
    """Return the contestants that can run here; with `only`, those and Geograft's default."""
    chosen = [name for name in TRAINEES if not only or name in only or name == OURS]
    return tuple(name for name in chosen if is_importable(TRAINEES[name].module or "torch", _python(name)))


def step_times(bench: Bench) -> dict[str, Any]:
    """Return the step times of all networks, measured or cached."""
    names = [name for name in bench.names if TRAINEES[name].timed]
    return _measure(bench, STEPS, "step_times.py", [str(bench.rounds), *names])


def step_profile(bench: Bench) -> dict[str, Any]:
    """Return the profile of a training step, measured or cached."""
    names = [name for name in PROFILED if name in bench.names]
    return _measure(bench, PROFILE, "step_profile.py", [str(PROFILE_STEPS), *names])


def run_all(bench: Bench, jobs: Iterator[TrainingJob], times: dict[str, Any]) -> None:
    """Run the trainings that are not cached and that fit into the time limit, and print each result."""
    for job in jobs:
        what = f"{TRAINEES[job.name].title}, seed {job.seed}, {job.epochs} epochs"
        if bench.store.read(job) is not None:
            print(f"  {what}: cached", flush=True)
        elif time.monotonic() + estimate_seconds(job, times) > bench.end:
            print(f"  {what}: skipped, not enough time (--minutes)", flush=True)
        else:
            _train(bench, job, what)


def estimate_seconds(job: TrainingJob, times: dict[str, Any]) -> float:
    """Return the estimated seconds of a training, from the step times of its network, or of smp's U-Net if untimed."""
    found = times["networks"].get(job.name) or times["networks"].get(PEER)
    if found is None:
        return START_S
    tiles = open_tiles(job)
    step, predict = (min(found[what]) / times["batch"] for what in ("train", "infer"))
    seconds: float = START_S + job.epochs * (len(tiles.split("train")) * step + len(tiles.split("val")) * predict)
    return seconds


def report(bench: Bench, times: dict[str, Any], profile: dict[str, Any]) -> dict[str, str]:
    """Return the sections of the page, by the name of their markers."""
    job, tiles = bench.job, TileSet.open(bench.job.tiles)
    parts = f"{len(open_tiles(job).split('train'))} training and {len(open_tiles(job).split('val'))} validation tiles"
    about = (
        f"{parts} of {times['tile_px']} pixels from {len(tiles.meta.scenes)} scenes, split by "
        f"{tiles.meta.settings.split}; batches of {BATCH}; {_threads(job)}, {_clock(job)}. "
        f"{machine.describe(PACKAGES)}"
    )
    steps = f"Medians of {len(times['loader'])} rounds, eager, float32; ratios within a round."
    store, seeds = bench.store, bench.seeds
    targets = "\n".join(f"- {words}: {'yes' if holds else '**no**'}" for words, holds in check_targets(bench, times))
    return {
        "targets": f"Geograft's default\n\n{targets}",
        "steps": f"{about}\n\n{steps}\n\n{tables.speed_table(times)}",
        "quality": tables.quality_table(store, job, seeds),
        "trainings": tables.cost_table(store, job, seeds),
        "loader": f"The data loader of Geograft's default takes {1000 * median(times['loader']):.1f} ms per tile: "
        f"{tables.loader_ratio(times):.1f} times as fast as the training step (medians of the rounds).",
        "profile": f"{tables.part_table(profile)}\n\n{tables.kind_table(profile)}",
    }


def check_targets(bench: Bench, times: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return the targets of Geograft's default, and whether each is met."""
    return tables.check_targets(bench.store, bench.job, bench.seeds, times)


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tiles", type=Path, help="tile set; default: prepare the Sentinel-2 images beside the project"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help=f"encoder weights in timm's names for {ENCODER}")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training (default 10)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each contestant that is not slow (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="timing rounds (default 5)")
    parser.add_argument("--minutes", type=float, default=40, help="start no training that would end later (default 40)")
    parser.add_argument("--threads", type=int, default=_cores(), help="threads of each process (default: all cores)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="wall time, or CPU time: less noisy, for one thread (default wall)",
    )
    names = ", ".join((*TRAINEES, STEPS, PROFILE))
    parser.add_argument("--only", nargs="+", default=[], choices=tuple(TRAINEES), metavar="NAME", help=names)
    parser.add_argument(
        "--again", nargs="+", default=[], metavar="NAME", help="measure these again, ignoring the cache"
    )
    parser.add_argument("--quick", action="store_true", help=f"smoke test: {QUICK_TILES} tiles, one epoch, one round")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/train"), help="where results are cached")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training.md")
    given = parser.parse_args()
    if given.quick:
        given.epochs, given.seeds, given.rounds, given.folder = 1, 1, 1, given.folder / "quick"
    return given


def build_bench(given: argparse.Namespace) -> Bench:
    """Return the benchmark that the command line describes.

    Raises:
        NotRunnableError: if the tiles or the weights are missing or unsuitable.
    """
    if not given.weights.is_file():
        raise NotRunnableError(f"{given.weights} not found. Give --weights: a weight file of timm's {ENCODER}.")
    limit = QUICK_TILES if given.quick else 0
    tiles = tile_set(given.tiles, given.folder.parent if given.quick else given.folder)
    job = TrainingJob(OURS, tiles, given.weights, given.epochs, 0, given.threads, given.clock, limit)
    open_tiles(job)
    store = ResultStore(given.folder, job)
    for name in given.again:
        store.forget(name)
    end = time.monotonic() + 60 * given.minutes
    return Bench(job, store, available_names(given.only), given.seeds, given.rounds, end)


def main() -> int:
    """Print the tables and return the exit status."""
    given = arguments()
    bench = build_bench(given)
    times, profile = step_times(bench), step_profile(bench)
    run_all(bench, bench.jobs(), times)
    run_all(bench, bench.jobs_at_equal_time(), times)
    found = report(bench, times, profile)
    print("\n\n".join(found.values()))
    if given.write and not given.quick:
        for name, content in found.items():
            page.write_section(name, content, page.TRAINING)
    return int(not given.quick and not all(holds for _, holds in check_targets(bench, times)))


def _measure(bench: Bench, name: str, script: str, arguments: Sequence[str]) -> dict[str, Any]:
    job = replace(bench.job, name=name)
    cached = bench.store.read(job)
    if cached is not None and cached.get("arguments") == list(arguments):
        print(f"  {name}: cached", flush=True)
        return cached
    found = _in_process(job, script, arguments, sys.executable) | {"arguments": list(arguments)}
    bench.store.write(job, found)
    print(f"  {name}: measured", flush=True)
    return found


def _train(bench: Bench, job: TrainingJob, what: str) -> None:
    try:
        found = _in_process(job, "train_one.py", [], _python(job.name))
    except NotRunnableError as error:
        print(f"  {what}: failed: {error}", flush=True)
        return
    bench.store.write(job, found)
    last = found["ious"][-1]
    print(f"  {what}: {found['seconds']:.0f} s, {found['peak_mb']:,.0f} MB, IoU {last:.3f}", flush=True)


def _in_process(job: TrainingJob, script: str, arguments: Sequence[str], python: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        return run_script(script, str(job.write(Path(folder) / "job.json")), *arguments, python=python)


def _python(name: str) -> str:
    return PEER_PYTHON if TRAINEES[name].module else sys.executable


def _threads(job: TrainingJob) -> str:
    return "1 thread" if job.threads == 1 else f"{job.threads} threads"


def _clock(job: TrainingJob) -> str:
    return "CPU time" if job.clock == "cpu" else "wall time"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotRunnableError, GeograftError) as error:
        sys.exit(str(error))
