"""The training benchmark's tables, in Markdown, from what is kept as JSON."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import page
from step_profile import BETWEEN, FEED, LOSS, OPTIMIZER, REST
from train_results import Ends, Kept, Shelf, at_equal_time
from trainees import OURS, PEER, RIVALS, TRAINEES, Job

TO_PEER = "to smp Unet"
SPEED_ASKED = 2.0
"""Times as fast as smp's U-Net that Geograft's default shall train and predict."""
FEED_ASKED = 5.0
"""Times as fast as the network learns that its feed shall deliver."""


def ratio(times: Mapping[str, Any], name: str, to: str, what: str) -> float:
    """Return how many times as fast as another a network is: the median of the ratios within a turn."""
    pairs = zip(times["networks"][to][what], times["networks"][name][what], strict=True)
    return float(median(other / own for other, own in pairs))


def feed_ratio(times: Mapping[str, Any]) -> float:
    """Return how many tiles the feed delivers in the time in which Geograft's default learns from one."""
    steps = times["networks"][OURS]["train"]
    return float(median(step / times["batch"] / tile for step, tile in zip(steps, times["feed"], strict=True)))


def speed_table(times: Mapping[str, Any]) -> str:
    """Return the table of steps and predictions."""
    head = ["", "trained tiles/s", "ms a tile", TO_PEER, "predicted tiles/s", "ms a tile", TO_PEER]
    head += ["parameters", "of them trained", "order in memory"]
    return page.table(head, [_speed_row(times, name) for name in times["networks"]])


def quality_table(shelf: Shelf, job: Job, seeds: int) -> str:
    """Return the table of IoU after equal epochs and in equal time."""
    head = [
        "",
        "seeds",
        f"IoU after {job.epochs} epochs",
        "95 % interval",
        "Geograft's default less it",
        "95 % interval",
    ]
    head += ["IoU of the best epoch", "epochs in equal time", "IoU then"]
    ours = shelf.kept(OURS, seeds, job.epochs)
    return page.table(head, [_quality_row(shelf, job, seeds, name, ours) for name in TRAINEES])


def cost_table(shelf: Shelf, job: Job, seeds: int) -> str:
    """Return the table of what whole trainings take."""
    head = ["", "seconds", "tiles/s", TO_PEER, "memory, MB"]
    peer = shelf.kept(PEER, seeds, job.epochs)
    rows = [_cost_row(TRAINEES[name].title, shelf.kept(name, seeds, job.epochs), peer) for name in TRAINEES]
    return page.table(head, rows)


def part_table(profile: Mapping[str, Any]) -> str:
    """Return the table of where a step of Geograft's default spends its time, by part."""
    parts: Mapping[str, Sequence[float]] = profile["parts"]
    total = sum(sum(both) for both in parts.values())
    last = [name for name in (LOSS, OPTIMIZER, BETWEEN, FEED) if name in parts]
    names = [*sorted(name for name in parts if name.startswith("encoder"))]
    names += [name for name in parts if name not in (*names, *last)]
    rows = [[name, *_part_cells(parts[name], total)] for name in [*names, *last]]
    sums = [sum(both[side] for both in parts.values()) for side in (0, 1)]
    return page.table(["", "forward, ms a tile", "backward", "share"], [*rows, ["all", *_part_cells(sums, total)]])


def kind_table(profile: Mapping[str, Any]) -> str:
    """Return the table of where the steps of several networks spend their time, by kind of operator."""
    kinds: Mapping[str, Mapping[str, float]] = profile["kinds"]
    last = (REST, LOSS, OPTIMIZER, FEED)
    found = {name for spent in kinds.values() for name in spent}
    names = [*sorted(found - set(last)), *(name for name in last if name in found)]
    cells = [[name, *(f"{spent.get(name, 0):.1f}" for spent in kinds.values())] for name in names]
    sums = ["all", *(f"{sum(spent.values()):.1f}" for spent in kinds.values())]
    return page.table(["ms a tile", *(TRAINEES[name].title for name in kinds)], [*cells, sums])


def verdicts(shelf: Shelf, job: Job, seeds: int, times: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return what is asked of Geograft's default, each in words with what was found, and whether it holds."""
    found = []
    if {OURS, PEER} <= times["networks"].keys():
        for what, words in (("train", "trains"), ("infer", "predicts")):
            times_as = ratio(times, OURS, PEER, what)
            said = f"{words} {times_as:.2f} times as fast as {TRAINEES[PEER].title} (asked: {SPEED_ASKED:g})"
            found.append((said, times_as >= SPEED_ASKED))
    if times["feed"] and OURS in times["networks"]:
        faster = feed_ratio(times)
        said = f"its feed delivers {faster:.1f} times as fast as it learns (asked: {FEED_ASKED:g})"
        found.append((said, faster >= FEED_ASKED))
    ours = shelf.kept(OURS, seeds, job.epochs)
    for name in RIVALS:
        theirs = shelf.kept(name, seeds, job.epochs)
        if ours is not None and theirs is not None:
            ahead, ends = ours.less(theirs, "last")
            between = f" ({_ends(ends, '+.4f')})" if not math.isnan(ends[0]) else ""
            said = f"IoU {ahead:+.4f}{between} to {TRAINEES[name].title} (asked: above 0)"
            found.append((said, ahead > 0))
    return found


def _speed_row(times: Mapping[str, Any], name: str) -> list[str]:
    network, cells = times["networks"][name], []
    for what in ("train", "infer"):
        tile = median(network[what]) / times["batch"]
        against = f"{ratio(times, name, PEER, what):.2f}" if PEER in times["networks"] else ""
        cells += [f"{1 / tile:.2f}", f"{1000 * tile:.0f}", against]
    return [TRAINEES[name].title, *cells, f"{network['parameters']:,}", f"{network['trained']:,}", network["layout"]]


def _quality_row(shelf: Shelf, job: Job, seeds: int, name: str, ours: Kept | None) -> list[str]:
    title, kept = TRAINEES[name].title, shelf.kept(name, seeds, job.epochs)
    if kept is None:
        return [title, "not run", *[""] * 7]
    cells = [title, str(kept.seeds), f"{kept.iou('last'):.3f}", _ends(kept.interval("last"), ".3f")]
    cells += _ahead_cells(ours, kept) if ours is not None and name != OURS else ["", ""]
    epochs, then = at_equal_time(shelf, name, seeds, job)
    return [*cells, f"{kept.iou('best'):.3f}", str(epochs), _figure(then.iou_after(epochs) if then else math.nan)]


def _ahead_cells(ours: Kept, kept: Kept) -> list[str]:
    ahead, ends = ours.less(kept, "last")
    return [f"{ahead:+.3f}", _ends(ends, "+.3f")]


def _cost_row(title: str, kept: Kept | None, peer: Kept | None) -> list[str]:
    if kept is None:
        return [title, "not run", *[""] * 3]
    memory = max(each["peak_mb"] for each in kept.by_seed.values())
    against = f"{peer.epoch_seconds / kept.epoch_seconds:.2f}" if peer else ""
    speed = fmean(each["tiles"][0] for each in kept.by_seed.values()) / kept.epoch_seconds
    return [title, f"{kept.mean('seconds'):.0f}", f"{speed:.2f}", against, f"{memory:,.0f}"]


def _part_cells(both: Sequence[float], total: float) -> list[str]:
    forward, backward = both
    return [f"{forward:.1f}", f"{backward:.1f}", f"{(forward + backward) / total:.0%}"]


def _ends(ends: Ends, form: str) -> str:
    return "" if math.isnan(ends[0]) else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
