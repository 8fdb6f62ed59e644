"""The head of a report: the sentence that matters, what to know about it, and four figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from geograft.commands.audit import Audit
from geograft.commands.report.certainty import (
    Estimate,
    between,
    difference_of,
    ends_of,
    few_units,
    figure_of,
    interval_in_words,
    lead_in_words,
)
from geograft.commands.report.numbers import duration, fixed, percent, percent_range, with_spread
from geograft.commands.report.scores import Ends, FoldsFile, IntervalNote, ScoreTable
from geograft.commands.report.sources import Run, Subject, Variant, known, mean
from geograft.commands.report.text import SPLIT_NAMES, capital
from geograft.dataset.tileset import TileSet
from geograft.legend import Legend
from geograft.text import counted


def target(legend: Legend) -> str:
    """Return what is mapped: the class of interest of two, else how many classes there are."""
    return legend.names[1] if legend.binary else f"{len(legend.names)} classes"


@dataclass(frozen=True)
class Fact:
    """A figure at the page's head."""

    name: str
    value: str
    meaning: str
    interval: str = ""


def headline(subject: Subject, leaks: Mapping[str, float], val_tiles: int | None) -> str:
    """Return the one sentence that says what was mapped, how well, how sure that is, and on what ground.

    `leaks` holds by split the share of its pixels that training tiles hold too, where that is known.
    """
    run, measure = subject.run, headline_score(subject)
    if run is None:
        return f"{counted(len(subject.variants), 'network')} compared"
    figure = headline_figure(subject)
    legend = run.card.legend
    verb = "is mapped with IoU" if legend.binary else "are mapped with a mean IoU of"
    interval = f"{interval_in_words(ends_of(figure))}," if figure.bounded else ""
    where = ground_in_words(measure, run.score(measure), val_tiles, leaks.get(measure))
    if subject.folds and measure == "test":
        where = folds_in_words(subject.folds, leaks.get("test"))
    return f"{capital(target(legend))} {verb} {fixed(figure.value)}{interval} on {where}."


def headline_score(subject: Subject) -> str:
    """Return "test" when every network has scores on the test tiles, else "val"."""
    return "test" if all(variant.values("test") for variant in subject.variants) else "val"


def headline_figure(subject: Subject) -> Estimate:
    """Return the leader's IoU, mean over seeds, with its interval where that is on file."""
    measure = headline_score(subject)
    return figure_of(subject, subject.leader, measure)


def ground_in_words(split: str, table: ScoreTable | None, count: int | None, leak: float | None) -> str:
    """Return how many pieces of ground of which part were scored, and whether training saw them.

    Of scores without intervals, and where there is no table, the `count` of tiles.
    """
    part = SPLIT_NAMES.get(split, split)
    interval = table.interval if table else None
    if interval:
        ground = counted(interval.units, interval.unit) + (" of scenes" if interval.unit == "group" else "")
        ground += "" if split == "test" and leak is not None else f" of the {part} part"
    else:
        tiles = table.tiles_scored if table else count
        ground = f"{part} tiles" if tiles is None else counted(tiles, f"{part} tile")
    if not leak:
        return f"{ground} that the model never saw" if split == "test" and leak is not None else ground
    return f"{ground}, {percent(leak)} of whose pixels training saw"


def folds_in_words(folds: FoldsFile, leak: float | None) -> str:
    """Return how many pieces of ground were scored over all folds, and whether their models saw them."""
    ground = counted(folds.interval.units, "piece") + " of ground"
    if leak:
        return f"{ground} in turn, {percent(leak)} of whose pixels training saw"
    return f"{ground}, each mapped by a model that never saw it" if leak is not None else f"{ground} in turn"


def rival_of(subject: Subject, measure: str) -> Variant | None:
    """Return the best of the networks that do not lead; None for a single network."""
    others = [variant for variant in subject.variants if variant is not subject.leader and variant.values(measure)]
    return max(others, key=lambda variant: mean(variant.values(measure)), default=None)


def lead(subject: Subject) -> str:
    """Return in a sentence how far the leader is ahead of the next network, or behind it; nothing for one network.

    Of a run, how far it is ahead of the run that it was evaluated against.
    """
    measure, leader = headline_score(subject), subject.leader
    rival = rival_of(subject, measure)
    if rival and leader.values(measure):
        plain = figure_of(subject, leader, measure).value - figure_of(subject, rival, measure).value
        found = difference_of(subject, leader, rival, measure) or Estimate(plain)
        return f"{lead_in_words(leader.name, rival.name, found)}."
    table = subject.run.score(measure) if subject.run else None
    if table is None or table.against is None or table.against.overall.get("iou") is None:
        return ""
    low, high = table.against.overall_intervals.get("iou") or (math.nan, math.nan)
    other = Estimate(table.against.overall["iou"] or 0.0, low, high)
    return f"{lead_in_words(subject.title, Path(table.against.run).name, other)}."


def remarks(subject: Subject) -> list[str]:
    """Return what to know about the headline, a sentence each."""
    run = subject.run
    if run is None:
        return []
    measure = headline_score(subject)
    table = run.score(measure)
    found = few_units(table.interval, table.scenes) if table and not subject.folds else []
    if subject.folds:
        found = few_units(IntervalNote(subject.folds.interval.units, "unit", ""), 1)
    elif table and known([table.iou]):
        found.append(_in_plain_words(table, run.card.legend))
    if measure == "val":
        found.append("The epoch was chosen on these tiles, so expect a little less elsewhere.")
    found += [elsewhere_in_words(other) for other in run.scores if other.name not in (measure, "val", "train")]
    return [*found, *_seeds_in_words(subject)]


def elsewhere_in_words(table: ScoreTable) -> str:
    """Return one sentence on scores that are not the headline's."""
    tiles = counted(table.tiles_scored, f"{table.split} tile")
    sure = interval_in_words(table.overall_intervals.get("iou"))
    return f"On “{table.name}” ({tiles} of {Path(table.tiles).name}) the IoU is {fixed(table.iou)}{sure}."


def outdated(subject: Subject) -> list[str]:
    """Return a note when scores are from before there were intervals, with the command that adds them."""
    old = [(run, table) for variant in subject.variants for run in variant.runs for table in run.scores]
    old = [(run, table) for run, table in old if table.interval is None]
    if not old:
        return []
    run, table = old[0]
    elsewhere = "" if table.name == table.split else f" --tiles {table.tiles}"
    own = "" if subject.kind == "run" else f" of {run.folder.relative_to(subject.folder)}"
    files = f"scores-{table.name}.json{own}" + (f" and {len(old) - 1} more" if len(old) > 1 else "")
    command = f"geograft evaluate {run.folder} --split {table.split}{elsewhere}"
    return [f"Scores of an earlier version, without intervals and calibration: {files}. To add them: {command}"]


def facts(subject: Subject, run: Run) -> list[Fact]:
    """Return the figures at the page's head."""
    measure, best = headline_score(subject), run.best
    overall, ends = overall_of(subject, run) or ({"recall": best.val_recall, "precision": best.val_precision}, {})
    found, right = overall.get("recall"), overall.get("precision")
    mean_over = "" if run.card.legend.binary else ", mean over the classes"
    epochs = f"{counted(len(run.history.epochs), 'epoch')}; number {best.epoch} was best"
    return [
        Fact(
            "IoU",
            with_spread(subject.leader.values(measure)),
            f"agreement on {SPLIT_NAMES[measure]} tiles{mean_over}",
            between(ends_of(headline_figure(subject))),
        ),
        Fact(
            "Found",
            percent(found),
            f"of the labelled area is mapped so (recall{mean_over})",
            percent_range(ends.get("recall")),
        ),
        Fact(
            "Right",
            percent(right),
            f"of the mapped area is labelled so (precision{mean_over})",
            percent_range(ends.get("precision")),
        ),
        Fact("Trained", duration(run.seconds), epochs),
    ]


def overall_of(subject: Subject, run: Run) -> tuple[dict[str, float | None], dict[str, Ends]] | None:
    """Return figures and intervals that stand for the headline: over all folds, or of the run's scores; or None."""
    measure = headline_score(subject)
    if subject.folds and measure == "test":
        for one in subject.folds.variants:
            if one.variant == subject.leader.name:
                return one.overall, one.overall_intervals
    table = run.score(measure)
    return (table.overall, table.overall_intervals) if table else None


def leaks(found: Audit, tiles: TileSet, run: Run) -> dict[str, float]:
    """Return by split the share of its pixels that training tiles show too, where that is known for sure.

    It is not where a group of scenes is divided, nor for test scores of another tile set than trained the run.
    """
    if found.divided_groups:
        return {}
    test = run.score("test")
    elsewhere = test is not None and Path(test.tiles).resolve() != tiles.folder.resolve()
    shares = {held.split: max(held.overlap.pixel_share, held.seen_elsewhere) for held in found.held}
    return {split: share for split, share in shares.items() if not (split == "test" and elsewhere)}


def _in_plain_words(table: ScoreTable, legend: Legend) -> str:
    if not legend.binary:
        present = sorted((score for score in table.per_class if known([score.iou])), key=lambda score: score.iou or 0)
        best, worst = present[-1], present[0]
        return f"Best mapped is {best.name} (IoU {fixed(best.iou)}), worst {worst.name} ({fixed(worst.iou)})."
    name = legend.names[1]
    recall, precision = table.overall.get("recall"), table.overall.get("precision")
    return (
        f"Of the area labelled {name}, {percent(recall)} was found; "
        f"of the area mapped as {name}, {percent(precision)} is labelled so."
    )


def _seeds_in_words(subject: Subject) -> list[str]:
    if subject.kind == "run":
        return []
    if subject.folds:
        return ["Each network was trained once for each fold, on all other ground; ± is the deviation of the folds."]
    seeds = min(len(variant.rows) for variant in subject.variants)
    if seeds > 1:
        return [f"Each network was trained {seeds} times from different random starts; ± is their standard deviation."]
    if headline_figure(subject).bounded:
        return ["Each network was trained once: trained again it can differ by a few hundredths, beyond the interval."]
    return ["Each network was trained once: differences of a few hundredths can be chance."]
