"""The text of a report: numbers as strings, explanations of the figures, and the settings."""

import math
from collections.abc import Sequence
from pathlib import Path

from geograft.commands.report.pictures import MAX_RANKED_TILES
from geograft.commands.report.scores import IntervalInfo, ScoreTable
from geograft.commands.report.sources import Subject, TrainedRun, mean, standard_deviation
from geograft.dataset.tileset import TileSet
from geograft.geo.coverage import SAMPLE
from geograft.legend import Legend
from geograft.metrics.intervals import MIN_UNITS
from geograft.text import pluralise

DASH = "–"
NBSP = "\u00a0"
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
IOU_EXPLANATION = (
    "IoU (intersection over union): the area where label and map agree on a class, divided by the area that either "
    "assigns to it. 1 is a perfect map; 0 means no overlap."
)
INTERVALS_EXPLANATION = (
    f"Small figures are 95{NBSP}% confidence intervals: an interval computed this way contains the true value in about "
    "19 of 20 cases. They are bootstrap intervals over whole scenes, blocks or areas, because neighbouring pixels are "
    "not independent."
)
GRAPHS_EXPLANATION = (
    "Left: the encoder turns the image into smaller feature maps. Right: the decoder upsamples them to the class map. "
    "Each stack is one step's feature maps; more sheets mean more channels. Dashed lines are skip connections."
)


def format_number(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals; a dash for None and NaN.

    >>> format_number(0.614), format_number(None)
    ('0.61', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_mean_std(values: Sequence[float | None], digits: int = 2) -> str:
    """Return the mean, with the standard deviation if there are two values or more.

    >>> format_mean_std([0.5, 0.7])
    '0.60 ± 0.14'
    """
    std = standard_deviation(values)
    if std is None:
        return format_number(mean(values), digits)
    return f"{format_number(mean(values), digits)} ± {format_number(std, digits + (0 < std < 0.5 / 10**digits))}"


def format_percent(fraction: float | None) -> str:
    """Return a fraction as a percentage, with non-breaking spaces.

    Never rounds a positive fraction to 0 %, nor one below 1 to 100 %.

    >>> [format_percent(fraction).replace(NBSP, " ") for fraction in (0.714, 0.001, 0.0001, 0.9999, 0)]
    ['71 %', '0.1 %', '< 0.1 %', '> 99.9 %', '0 %']
    """
    if fraction is None or math.isnan(fraction):
        return DASH
    if 0 < fraction < 0.0005:
        text = "< 0.1 %"
    elif 0.9995 <= fraction < 1:
        text = "> 99.9 %"
    else:
        text = f"{100 * fraction:.{1 if 0 < fraction < 0.1 or 0.99 <= fraction < 1 else 0}f} %"
    return text.replace(" ", NBSP)


def format_percent_range(interval: tuple[float, float] | None) -> str:
    """Return an interval of fractions as percentages; empty for None.

    >>> format_percent_range((0.69, 0.82)).replace(NBSP, " ")
    '69 % to 82 %'
    """
    return "" if interval is None else f"{format_percent(interval[0])} to {format_percent(interval[1])}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> format_duration(41.2), format_duration(200), format_duration(4320)
    ('41 s', '3 min 20 s', '1 h 12 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_area(area_m2: float) -> str:
    """Return an area in square metres, from one hectare in hectares, from 100 square kilometres in those.

    >>> [format_area(area).replace(NBSP, " ") for area in (163.4, 25_400, 5_000_000, 123_000_000)]
    ['163 m²', '2.54 ha', '500 ha', '123 km²']
    """
    unit, size = ("m²", 1.0) if area_m2 < 1e4 else ("ha", 1e4) if area_m2 < 1e8 else ("km²", 1e6)
    value = area_m2 / size
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}{NBSP}{unit}"


def format_length(resolution_m: float | None) -> str:
    """Return a length in centimetres or metres; a dash for None.

    >>> format_length(0.1), format_length(1.24), format_length(None)
    ('10 cm', '1.24 m', '–')
    """
    if resolution_m is None:
        return DASH
    return f"{100 * resolution_m:.3g} cm" if resolution_m < 1 else f"{resolution_m:.3g} m"


def kicker(subject: Subject) -> str:
    """Return the line above the headline."""
    if subject.kind == "run":
        return f"Run · {subject.title}"
    return f"Comparison of {pluralise(len(subject.variants), 'network')} · {subject.title}"


def training_curves_explanation(subject: Subject) -> str:
    """Return how to read the training curves."""
    seeds = max(len(variant.runs) for variant in subject.variants)
    thin = " Thin lines are single seeds, thick lines their mean." if seeds > 1 else ""
    if subject.kind == "run" and subject.run:
        epochs = pluralise(len(subject.run.history.epochs), "epoch")
        thin += f" {epochs} took {format_duration(subject.run.seconds)}."
    return (
        "Training minimises the loss. Dashed lines: training tiles; solid lines: validation tiles. The dot marks the "
        f"epoch with the lowest validation loss, whose weights are saved.{thin}"
    )


def samples_explanation(legend: Legend, split: str) -> str:
    """Return how the sample tiles were chosen."""
    order = (
        f"from a low to a high fraction of {legend.names[1]}"
        if legend.binary
        else "from a single class to a mix of classes"
    )
    order = "from low to high class cover" if legend.overlapping else order
    mixed = " Pixels of several classes have the mean of their colours." if legend.overlapping else ""
    return f"Tiles of the {SPLIT_NAMES[split]} split, not used for training, chosen by their labels: {order}.{mixed}"


def ranking_explanation(ranked: int, count: int, network: str, split: str) -> str:
    """Return how the tiles were ranked; `network` is empty for the report of a single run."""
    tiles = pluralise(ranked, f"{SPLIT_NAMES[split]} tile")
    sample = "" if count <= MAX_RANKED_TILES else f", a sample of all {count:,}"
    return (
        f"Ranked by the IoU{f' of “{network}”' if network else ''} on {tiles}{sample}. Tiles with too few labelled or "
        "mapped pixels are left out. The worst tiles show where the map or the labels are least reliable."
    )


def data_summary(tiles: TileSet) -> str:
    """Return the number of scenes and tiles, and the tile size."""
    size = f"{pluralise(len(tiles.meta.scenes), 'scene')}, {pluralise(len(tiles.tiles), 'tile')}"
    return f"{size} of {tiles.meta.settings.tile_px} × {tiles.meta.settings.tile_px} pixels."


def scores_title(table: ScoreTable) -> str:
    """Return the scored tiles and the accuracy, as the title of a score section."""
    tiles = pluralise(table.tiles_scored, f"{SPLIT_NAMES.get(table.split, table.split)} tile")
    name = "accuracy over pixels and classes" if table.scheme.overlapping else "overall accuracy"
    accuracy = format_percent(table.overall.get("accuracy"))
    return f"{capitalize_first(table.name)}: {tiles} of {Path(table.tiles).name}, {name} {accuracy}"


def scores_explanation(table: ScoreTable) -> str:
    """Return what the confidence intervals are over, and how to read kappa and the object scores."""
    interval = table.interval
    elsewhere = "; other areas may differ more" if interval and interval.unit not in ("scene", "group") else ""
    sentences = [f"Confidence intervals: bootstrap over {interval.description}{elsewhere}."] if interval else []
    if interval and interval.units < MIN_UNITS:
        sentences += interval_warnings(interval, table.scene_count)[:1]
    if "kappa" in table.overall:
        sentences.append("Cohen's kappa is the accuracy corrected for chance: 1 is perfect, 0 is chance level.")
    objects = table.objects
    if objects and objects.count_error is not None:
        direction = "more" if objects.count_error > 0 else "fewer"
        sentences.append(
            f"Of {objects.labelled:,} labelled objects of {objects.name}, {objects.matched:,} match a mapped object; "
            f"the map has {format_percent(abs(objects.count_error))} {direction} objects than the labels."
        )
    return " ".join(sentences)


def interval_warnings(interval: IntervalInfo | None, scenes: int) -> list[str]:
    """Return the limits of an interval in sentences: too few units, or all blocks or areas in a few scenes."""
    if interval is None:
        return []
    units = pluralise(interval.units, interval.unit)
    if interval.units < 2:
        return [f"Only {units} was scored, so there is no confidence interval."]
    sentences = []
    if interval.units < MIN_UNITS:
        sentences.append(
            f"Only {units} were scored, too few for a reliable confidence interval: the true value may lie outside it."
        )
    where = "one scene" if scenes == 1 else pluralise(scenes, "scene")
    if interval.unit == SAMPLE:
        sentences.append(f"The {units} are a sample of {where}; other places may differ more.")
    elif interval.unit not in ("scene", "group"):
        sentences.append(f"All {units} lie in {where}; other areas may differ more.")
    return sentences


def settings_groups(run: TrainedRun) -> dict[str, list[tuple[str, str]]]:
    """Return the recipe, the network's input and the versions by group, as pairs of name and value."""
    card = run.card
    recipe = {
        name: [(key, str(value)) for key, value in table.items()]
        for name, table in run.recipe.items()
        if isinstance(table, dict)
    }
    thresholds = card.output_thresholds if card.legend.overlapping else (card.threshold,)
    network = [
        ("encoder weights", card.weights_from),
        ("bands", ", ".join(card.band_names[: card.bands])),
        *(("index", f"{index.name} = {index.formula}") for index in card.indices),
        ("image dtype", card.dtype),
        ("band means", ", ".join(f"{value:.4g}" for value in card.mean)),
        ("band standard deviations", ", ".join(f"{value:.4g}" for value in card.std)),
        ("resolution", format_length(card.resolution_m)),
        ("threshold", ", ".join(f"{threshold:.4g}" for threshold in thresholds)),
        ("data fingerprint", card.data_fingerprint or DASH),
    ]
    groups = {**recipe, "network": network, "versions": list(card.versions.items())}
    return {name: pairs for name, pairs in groups.items() if pairs}


def capitalize_first(text: str) -> str:
    """Return a text with its first letter capitalised and the rest unchanged."""
    return text[:1].upper() + text[1:]
