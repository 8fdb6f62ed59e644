"""The head of a report: the headline, remarks on it, and four key figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from geograft.commands.report.intervals import (
    ScoreEstimate,
    difference_sentence,
    format_estimate_interval,
    interval_clause,
    interval_of,
    reported_difference,
    reported_iou,
)
from geograft.commands.report.overview import MapOverview
from geograft.commands.report.scores import FoldsFile, Interval, IntervalInfo, ScoreTable
from geograft.commands.report.sources import NetworkRuns, Subject, TrainedRun, finite_values, mean
from geograft.commands.report.text import (
    SPLIT_NAMES,
    capitalize_first,
    format_mean_std,
    format_number,
    format_percent,
    format_percent_range,
    interval_warnings,
)
from geograft.legend import Legend
from geograft.metrics.intervals import MIN_UNITS
from geograft.text import pluralise


def target_name(legend: Legend) -> str:
    """Return what is mapped: the positive class, or the number of classes."""
    return legend.names[1] if legend.binary else f"{len(legend.names)} classes"


@dataclass(frozen=True)
class KeyFigure:
    """A figure at the top of the page."""

    name: str
    value: str
    meaning: str
    interval: str = ""


MANY_UNITS = 30
"""Number of independent units from which a headline has its full size."""


@dataclass(frozen=True)
class Evidence:
    """The number of independent units behind a headline, which its size follows."""

    units: int
    unit: str
    size: Literal["small", "medium", "large"]


def evidence(subject: Subject) -> Evidence:
    """Return the number of scenes, groups or blocks that were scored; 0 if it is unknown.

    The headline is small with fewer than MIN_UNITS, or if only validation tiles were scored, and large from MANY_UNITS.
    """
    measure, run = headline_split(subject), subject.run
    table = run.score(measure) if run else None
    if subject.folds and measure == "test":
        units, unit = subject.folds.interval.units, "unit"
    elif table and table.interval:
        units, unit = table.interval.units, table.interval.unit
    else:
        units, unit = 0, "block"
    if units < MIN_UNITS or measure != "test":
        return Evidence(units, unit, "small")
    return Evidence(units, unit, "medium" if units < MANY_UNITS else "large")


def headline(subject: Subject, leaked: Mapping[str, float], val_tiles: int | None) -> str:
    """Return what was mapped, with its IoU, the confidence interval and the scored area, in one sentence.

    `leaked`: by split, the fraction of its pixels that also lie in training tiles, where known.
    """
    run, measure = subject.run, headline_split(subject)
    if run is None:
        return f"{pluralise(len(subject.variants), 'network')} compared"
    figure = headline_iou(subject)
    legend = run.card.legend
    verb = "is mapped with an IoU of" if legend.binary else "are mapped with a mean IoU of"
    interval = interval_clause(interval_of(figure))
    where = scored_area(measure, run.score(measure), val_tiles, leaked.get(measure))
    if subject.folds and measure == "test":
        where = scored_area_of_folds(subject.folds, leaked.get("test"))
    return f"{capitalize_first(target_name(legend))} {verb} {format_number(figure.value)}{interval} on {where}."


def headline_split(subject: Subject) -> str:
    """Return "test" if every network has scores on the test tiles, else "val"."""
    return "test" if all(variant.ious("test") for variant in subject.variants) else "val"


def headline_iou(subject: Subject) -> ScoreEstimate:
    """Return the IoU of the best network, mean over seeds, with its interval if known."""
    measure = headline_split(subject)
    return reported_iou(subject, subject.leader, measure)


def scored_area(split: str, table: ScoreTable | None, count: int | None, leak: float | None) -> str:
    """Return the number of scored units, and whether they are held out or also in training tiles (`leak`).

    Scores without intervals, and runs without scores, have the number of tiles (`count`) instead.
    """
    name = SPLIT_NAMES.get(split, split)
    interval = table.interval if table else None
    # With unknown leakage (None) tiles are not called held out.
    held_out = "held-out " if split == "test" and leak is not None and not leak else ""
    if interval:
        area = pluralise(interval.units, f"{held_out}{interval.unit}")
        area += (" of scenes" if interval.unit == "group" else "") + ("" if held_out else f" of the {name} split")
    else:
        tiles = table.tiles_scored if table else count
        area = f"{name} tiles" if tiles is None else pluralise(tiles, f"{held_out}{name} tile")
    return f"{area}, with {format_percent(leak)} of the pixels also in training tiles" if leak else area


def scored_area_of_folds(folds: FoldsFile, leak: float | None) -> str:
    """Return the number of units scored in cross-validation, and whether they are held out."""
    if folds.places:
        units = pluralise(folds.interval.units, "unit")
        return f"{units} of {len(folds.places)} places, each left out of the training once"
    area = pluralise(folds.interval.units, "held-out unit" if leak == 0 else "unit") + " in cross-validation"
    return f"{area}, with {format_percent(leak)} of the pixels also in training tiles" if leak else area


def runner_up(subject: Subject, measure: str) -> NetworkRuns | None:
    """Return the second-best network; None for a single network."""
    others = [variant for variant in subject.variants if variant is not subject.leader and variant.ious(measure)]
    return max(others, key=lambda variant: mean(variant.ious(measure)), default=None)


def lead_sentence(subject: Subject) -> str:
    """Return the difference in IoU between the best network and the runner-up; empty for a single network.

    For a run, the difference to the run that it was evaluated against.
    """
    measure, leader = headline_split(subject), subject.leader
    rival = runner_up(subject, measure)
    if rival and leader.ious(measure):
        plain = reported_iou(subject, leader, measure).value - reported_iou(subject, rival, measure).value
        difference = reported_difference(subject, leader, rival, measure) or ScoreEstimate(plain)
        return f"{difference_sentence(leader.name, rival.name, difference)}."
    table = subject.run.score(measure) if subject.run else None
    if table is None or table.against is None or table.against.overall.get("iou") is None:
        return ""
    low, high = table.against.overall_intervals.get("iou") or (math.nan, math.nan)
    other = ScoreEstimate(table.against.overall["iou"] or 0.0, low, high)
    return f"{difference_sentence(subject.title, Path(table.against.run).name, other)}."


def selection_sentence(subject: Subject) -> str:
    """Return that the best network, chosen on validation tiles, is not the one with the highest test IoU, if so."""
    if headline_split(subject) != "test" or len(subject.variants) < 2:
        return ""
    first = max(subject.variants, key=lambda variant: reported_iou(subject, variant, "test").value)
    if first is subject.leader:
        return ""
    theirs, ours = (format_number(reported_iou(subject, each, "test").value, 3) for each in (first, subject.leader))
    return (
        f"“{subject.leader.name}” is called best for its validation IoU; on the test tiles “{first.name}” has a higher "
        f"one ({theirs} and {ours}). Test tiles are not used to choose."
    )


def remarks(subject: Subject) -> list[str]:
    """Return sentences on the limits and the meaning of the headline."""
    run = subject.run
    if run is None:
        return []
    measure = headline_split(subject)
    table = run.score(measure)
    sentences = interval_warnings(table.interval, table.scene_count) if table and not subject.folds else []
    if subject.folds:
        sentences = interval_warnings(IntervalInfo(subject.folds.interval.units, "unit", ""), 1)
    elif table and finite_values([table.iou]):
        sentences.append(_class_sentence(table, run.card.legend))
    if table and table.where and not subject.folds:
        known = "has training tiles in the same place" if table.where == "in place" else "has none in this place"
        sentences.append(f"The {SPLIT_NAMES[measure]} tiles are {table.where}: the network {known}.")
    if measure == "val":
        sentences.append("The epoch was also chosen on these tiles, so expect slightly lower scores on new data.")
    sentences += [other_scores_sentence(other) for other in run.scores if other.name not in (measure, "val", "train")]
    sentences += [selection] if (selection := selection_sentence(subject)) else []
    return [*sentences, *_seed_sentences(subject)]


def other_scores_sentence(table: ScoreTable) -> str:
    """Return the IoU in a score file other than the headline's, in one sentence."""
    tiles = pluralise(table.tiles_scored, f"{table.split} tile")
    interval = interval_clause(table.overall_intervals.get("iou"))
    where = f"{capitalize_first(table.where)}, on" if table.where else "On"
    of = f"“{table.name}” ({tiles} of {Path(table.tiles).name})"
    return f"{where} {of} the IoU is {format_number(table.iou)}{interval}."


def outdated_scores_notes(subject: Subject) -> list[str]:
    """Return a note if score files of an earlier version have no intervals, with the command that adds them."""
    old = [(run, table) for variant in subject.variants for run in variant.runs for table in run.scores]
    old = [(run, table) for run, table in old if table.interval is None]
    if not old:
        return []
    run, table = old[0]
    elsewhere = "" if table.name == table.split else f" --tiles {table.tiles}"
    own = "" if subject.kind == "run" else f" of {run.folder.relative_to(subject.folder)}"
    files = f"scores-{table.name}.json{own}" + (f" and {len(old) - 1} more" if len(old) > 1 else "")
    command = f"geograft evaluate {run.folder} --split {table.split}{elsewhere}"
    return [f"No confidence intervals or calibration in scores of an earlier version: {files}. To add them: {command}"]


def key_figures(subject: Subject, run: TrainedRun, overview: MapOverview | None = None) -> list[KeyFigure]:
    """Return the figures at the page's head: IoU, recall, precision, and the mapped area where it is known."""
    measure, best = headline_split(subject), run.best_epoch
    overall, ends = subject_headline_scores(subject, run) or (
        {"recall": best.val_recall, "precision": best.val_precision},
        {},
    )
    mean_over = "" if run.card.legend.binary else " (mean over classes)"
    return [
        KeyFigure(
            "IoU",
            format_mean_std(subject.leader.ious(measure)),
            f"on {SPLIT_NAMES[measure]} tiles{_headline_where(subject, run)}{mean_over}",
            format_estimate_interval(interval_of(headline_iou(subject))),
        ),
        *_place_figures(subject, run),
        KeyFigure(
            "Recall",
            format_percent(overall.get("recall")),
            f"of the labelled area is mapped as the class{mean_over}",
            format_percent_range(ends.get("recall")),
        ),
        KeyFigure(
            "Precision",
            format_percent(overall.get("precision")),
            f"of the mapped area is labelled as the class{mean_over}",
            format_percent_range(ends.get("precision")),
        ),
        *_mapped_area(run.score(measure), overview),
    ]


def _headline_where(subject: Subject, run: TrainedRun) -> str:
    """Return ", in place" or ", elsewhere" for the tiles of the headline; empty if they are both, or it is unknown."""
    measure = headline_split(subject)
    if subject.folds and measure == "test":
        return ", elsewhere" if subject.folds.places else ""
    table = run.score(measure)
    return f", {table.where}" if table and table.where else ""


def _place_figures(subject: Subject, run: TrainedRun) -> list[KeyFigure]:
    """Return the IoU in place and elsewhere, as far as the headline's does not say it."""
    measure = headline_split(subject)
    if subject.folds and measure == "test":
        here = subject.folds.in_place_scores(subject.leader.name)
        meaning = "on test tiles of the places trained in"
        return [_part_figure("in place", here.overall, here.overall_intervals, meaning)] if here else []
    table = run.score(measure)
    if table is None or not table.places.parts:
        return []
    if not table.where:
        return [
            _part_figure(where, part.overall, part.overall_intervals, f"on {pluralise(part.tiles, 'tile')}")
            for where, part in table.places.parts.items()
        ]
    others = [other for other in run.scores if other.where and other.where != table.where and other.split == "test"]
    return [
        _part_figure(other.where, other.overall, other.overall_intervals, f"on tiles of {Path(other.tiles).name}")
        for other in others
    ][:1]


def _part_figure(
    where: str, overall: Mapping[str, float | None], intervals: Mapping[str, Interval], meaning: str
) -> KeyFigure:
    interval = format_estimate_interval(intervals.get("iou"))
    return KeyFigure(f"IoU {where}", format_number(overall.get("iou")), meaning, interval)


def _mapped_area(table: ScoreTable | None, overview: MapOverview | None) -> list[KeyFigure]:
    """Return the mapped area of the largest class: of the map, or without one the fraction of the scored tiles."""
    if overview is not None:
        name = overview.shown_classes[0]
        area = overview.areas.get(name, 0.0)
        meaning = f"{name}: {format_percent(area / overview.total)} of {overview.path.name}"
        return [KeyFigure("Mapped area", overview.area_text(area), meaning)]
    if table is None:
        return []
    counts, first = np.array(table.confusion, np.float64), 1 if table.scheme.binary else 0
    if table.scheme.overlapping:
        mapped, labelled, total = counts[:, :, 1].sum(axis=1), counts[:, 1].sum(axis=1), counts[0].sum()
    else:
        mapped, labelled, total = counts.sum(axis=0), counts.sum(axis=1), counts.sum()
    if not total:
        return []
    index = first + int(mapped[first:].argmax())
    fractions = [format_percent(float(part[index] / total)) for part in (mapped, labelled)]
    where = f"of the {SPLIT_NAMES.get(table.split, table.split)} area"
    meaning = f"{where} is mapped as {table.classes[index]}, {fractions[1]} is labelled so"
    return [KeyFigure("Mapped area", fractions[0], meaning)]


def subject_headline_scores(
    subject: Subject, run: TrainedRun
) -> tuple[dict[str, float | None], dict[str, Interval]] | None:
    """Return the scores and intervals of the headline: over all folds, or of the run; None if there are none."""
    measure = headline_split(subject)
    if subject.folds and measure == "test":
        for one in subject.folds.variants:
            if one.variant == subject.leader.name:
                return one.overall, one.overall_intervals
    table = run.score(measure)
    return (table.overall, table.overall_intervals) if table else None


def _class_sentence(table: ScoreTable, legend: Legend) -> str:
    if not legend.binary:
        scored = [score for score in table.per_class if finite_values([score.iou])]
        best, worst = (choose(scored, key=lambda score: score.iou or 0) for choose in (max, min))
        return (
            f"The best class is {best.name} (IoU {format_number(best.iou)}), the worst {worst.name} "
            f"(IoU {format_number(worst.iou)})."
        )
    name = legend.names[1]
    recall, precision = table.overall.get("recall"), table.overall.get("precision")
    return (
        f"Of the area labelled {name}, {format_percent(recall)} is mapped as {name} (recall); "
        f"of the area mapped as {name}, {format_percent(precision)} is labelled {name} (precision)."
    )


def _seed_sentences(subject: Subject) -> list[str]:
    if subject.kind == "run":
        return []
    if subject.folds:
        folds = "place, in all other places" if subject.folds.places else "fold, on all other folds"
        return [f"Each network was trained once per {folds}; ± is the standard deviation over folds."]
    seeds = min(len(variant.rows) for variant in subject.variants)
    if seeds > 1:
        return [f"Each network was trained with {seeds} random seeds; ± is the standard deviation over seeds."]
    if headline_iou(subject).has_interval:
        return [
            "Each network was trained once; another seed can change the IoU by a few hundredths, which the confidence "
            "interval does not include."
        ]
    return ["Each network was trained once; differences of a few hundredths can be due to chance."]
