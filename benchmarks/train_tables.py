"""Markdown tables of the training benchmark, from its cached results."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import page
from step_profile import LOADING, LOSS, OPTIMIZER, OTHER, REST
from train_results import Interval, ResultStore, SeedResults, results_at_equal_time
from trainees import OURS, PEER, RIVALS, TRAINEES, TrainingJob

VS_PEER = "vs smp Unet"
MIN_SPEEDUP = 2.0
"""Target speed of training and prediction by Geograft's default, relative to smp's U-Net."""
MIN_LOADER_RATIO = 5.0
"""Target speed of the data loader, relative to a training step."""


def ratio(times: Mapping[str, Any], name: str, baseline: str, what: str) -> float:
    """Return the speed of a network relative to `baseline`: the median of the ratios within a round."""
    pairs = zip(times["networks"][baseline][what], times["networks"][name][what], strict=True)
    return float(median(other / own for other, own in pairs))


def loader_ratio(times: Mapping[str, Any]) -> float:
    """Return the speed of the data loader relative to the training step of Geograft's default."""
    steps = times["networks"][OURS]["train"]
    return float(median(step / times["batch"] / tile for step, tile in zip(steps, times["loader"], strict=True)))


def speed_table(times: Mapping[str, Any]) -> str:
    """Return the table of steps and predictions."""
    head = ["", "training, tiles/s", "ms per tile", VS_PEER, "prediction, tiles/s", "ms per tile", VS_PEER]
    head += ["parameters", "trainable", "memory format"]
    return page.table(head, [_speed_row(times, name) for name in times["networks"]])


def quality_table(store: ResultStore, job: TrainingJob, seeds: int) -> str:
    """Return the table of IoU after equal epochs and in equal time."""
    head = [
        "",
        "seeds",
        f"IoU after {job.epochs} epochs",
        "95 % CI",
        "Geograft's gain",
        "95 % CI",
    ]
    head += ["IoU of the best epoch", "epochs in equal time", "IoU in equal time"]
    ours = store.results(OURS, seeds, job.epochs)
    return page.table(head, [_quality_row(store, job, seeds, name, ours) for name in TRAINEES])


def cost_table(store: ResultStore, job: TrainingJob, seeds: int) -> str:
    """Return the table of time and memory of whole trainings."""
    head = ["", "seconds", "tiles/s", VS_PEER, "memory, MB"]
    peer = store.results(PEER, seeds, job.epochs)
    rows = [_cost_row(TRAINEES[name].title, store.results(name, seeds, job.epochs), peer) for name in TRAINEES]
    return page.table(head, rows)


def part_table(profile: Mapping[str, Any]) -> str:
    """Return the time of a training step of Geograft's default, by part."""
    parts: Mapping[str, Sequence[float]] = profile["parts"]
    total = sum(sum(times_by_pass) for times_by_pass in parts.values())
    last = [name for name in (LOSS, OPTIMIZER, OTHER, LOADING) if name in parts]
    names = [*sorted(name for name in parts if name.startswith("encoder"))]
    names += [name for name in parts if name not in (*names, *last)]
    rows = [[name, *_part_cells(parts[name], total)] for name in [*names, *last]]
    sums = [sum(times_by_pass[side] for times_by_pass in parts.values()) for side in (0, 1)]
    return page.table(
        ["", "forward, ms per tile", "backward", "fraction"], [*rows, ["total", *_part_cells(sums, total)]]
    )


def kind_table(profile: Mapping[str, Any]) -> str:
    """Return the time of a training step of several networks, by kind of operator."""
    kinds: Mapping[str, Mapping[str, float]] = profile["kinds"]
    last = (REST, LOSS, OPTIMIZER, LOADING)
    found = {name for by_kind in kinds.values() for name in by_kind}
    names = [*sorted(found - set(last)), *(name for name in last if name in found)]
    cells = [[name, *(f"{by_kind.get(name, 0):.1f}" for by_kind in kinds.values())] for name in names]
    sums = ["total", *(f"{sum(by_kind.values()):.1f}" for by_kind in kinds.values())]
    return page.table(["ms per tile", *(TRAINEES[name].title for name in kinds)], [*cells, sums])


def check_targets(store: ResultStore, job: TrainingJob, seeds: int, times: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return the targets of Geograft's default, each with its measured value, and whether it is met."""
    found = []
    if {OURS, PEER} <= times["networks"].keys():
        for what, words in (("train", "trains"), ("infer", "predicts")):
            speedup = ratio(times, OURS, PEER, what)
            text = f"{words} {speedup:.2f} times as fast as {TRAINEES[PEER].title} (target: {MIN_SPEEDUP:g})"
            found.append((text, speedup >= MIN_SPEEDUP))
    if times["loader"] and OURS in times["networks"]:
        loader_speed = loader_ratio(times)
        text = (
            f"its data loader is {loader_speed:.1f} times as fast as its training step (target: {MIN_LOADER_RATIO:g})"
        )
        found.append((text, loader_speed >= MIN_LOADER_RATIO))
    ours = store.results(OURS, seeds, job.epochs)
    for name in RIVALS:
        theirs = store.results(name, seeds, job.epochs)
        if ours is not None and theirs is not None:
            gain, interval = ours.difference(theirs, "last")
            between = f" ({_interval(interval, '+.4f')})" if not math.isnan(interval[0]) else ""
            text = f"IoU {gain:+.4f}{between} vs {TRAINEES[name].title} (target: above 0)"
            found.append((text, gain > 0))
    return found


def _speed_row(times: Mapping[str, Any], name: str) -> list[str]:
    network, cells = times["networks"][name], []
    for what in ("train", "infer"):
        tile = median(network[what]) / times["batch"]
        relative = f"{ratio(times, name, PEER, what):.2f}" if PEER in times["networks"] else ""
        cells += [f"{1 / tile:.2f}", f"{1000 * tile:.0f}", relative]
    return [
        TRAINEES[name].title,
        *cells,
        f"{network['parameters']:,}",
        f"{network['trainable']:,}",
        network["memory_format"],
    ]


def _quality_row(store: ResultStore, job: TrainingJob, seeds: int, name: str, ours: SeedResults | None) -> list[str]:
    title, results = TRAINEES[name].title, store.results(name, seeds, job.epochs)
    if results is None:
        return [title, "not run", *[""] * 7]
    cells = [title, str(results.seeds), f"{results.iou('last'):.3f}", _interval(results.interval("last"), ".3f")]
    cells += _gain_cells(ours, results) if ours is not None and name != OURS else ["", ""]
    epochs, then = results_at_equal_time(store, name, seeds, job)
    return [*cells, f"{results.iou('best'):.3f}", str(epochs), _figure(then.iou_after(epochs) if then else math.nan)]


def _gain_cells(ours: SeedResults, results: SeedResults) -> list[str]:
    gain, interval = ours.difference(results, "last")
    return [f"{gain:+.3f}", _interval(interval, "+.3f")]


def _cost_row(title: str, results: SeedResults | None, peer: SeedResults | None) -> list[str]:
    if results is None:
        return [title, "not run", *[""] * 3]
    memory = max(each["peak_mb"] for each in results.by_seed.values())
    relative = f"{peer.epoch_seconds / results.epoch_seconds:.2f}" if peer else ""
    speed = fmean(each["tiles"][0] for each in results.by_seed.values()) / results.epoch_seconds
    return [title, f"{results.mean('seconds'):.0f}", f"{speed:.2f}", relative, f"{memory:,.0f}"]


def _part_cells(times_by_pass: Sequence[float], total: float) -> list[str]:
    forward, backward = times_by_pass
    return [f"{forward:.1f}", f"{backward:.1f}", f"{(forward + backward) / total:.0%}"]


def _interval(interval: Interval, form: str) -> str:
    return "" if math.isnan(interval[0]) else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
