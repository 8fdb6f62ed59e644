"""The words and numbers of a report, for readers who are no statisticians."""

from pathlib import Path

from geograft.commands.report.certainty import few_units
from geograft.commands.report.numbers import DASH, NBSP, metres, percent
from geograft.commands.report.pictures import MOST_RANKED
from geograft.commands.report.scores import ScoreTable
from geograft.commands.report.sources import Run, Subject
from geograft.dataset.tileset import TileSet
from geograft.legend import Legend
from geograft.metrics.intervals import ENOUGH_UNITS
from geograft.text import counted

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
IOU_IN_WORDS = (
    "IoU (intersection over union) is the area that label and map agree on, divided by the area that either of them "
    "gives to the class. 1 is a perfect map, 0 a map with nothing right."
)

INTERVALS_IN_WORDS = (
    f"Small print is the 95{NBSP}% interval: intervals found in this way hold the true figure about 19 times out of "
    "20. Whole pieces of ground are drawn again and again for it, as neighbouring pixels are right or wrong together."
)
GRAPHS_IN_WORDS = (
    "Down the left the image becomes ever smaller maps of features, up the right they become a map of its own size. "
    "Each sheet is a map of features; the lines across carry detail from left to right."
)


def kicker(subject: Subject) -> str:
    """Return the line over the headline."""
    if subject.kind == "run":
        return f"Run · {subject.title}"
    return f"Comparison of {counted(len(subject.variants), 'network')} · {subject.title}"


def plates_in_words(subject: Subject) -> str:
    """Return how to read the curves."""
    seeds = max(len(variant.runs) for variant in subject.variants)
    thin = " Thin lines are the single seeds, thick ones their mean." if seeds > 1 else ""
    return (
        "The loss is what training makes small. Dashed lines: tiles that train; solid lines: validation tiles, which "
        f"do not. The dot marks the epoch whose weights are kept: the one with the least validation loss.{thin}"
    )


def samples_in_words(legend: Legend, split: str) -> str:
    """Return which tiles the samples are."""
    order = f"from little {legend.names[1]} to much" if legend.binary else "from plain to mixed"
    order = "from little of any class to much of all" if legend.overlapping else order
    mixed = " A pixel of several classes has the mean of their colours." if legend.overlapping else ""
    return f"Tiles of the {SPLIT_NAMES[split]} part, which trained no network, chosen by their labels: {order}.{mixed}"


def extremes_in_words(ranked: int, count: int, network: str, split: str) -> str:
    """Return among which tiles the best and the worst were looked for; `network` is empty where there is but one."""
    tiles = counted(ranked, f"{SPLIT_NAMES[split]} tile") + ("" if count <= MOST_RANKED else f" out of {count:,}")
    return (
        f"By the IoU{f' of “{network}”' if network else ''} on each of {tiles} where label or map show enough to tell. "
        "The worst tiles say most about where the map cannot be trusted, or where the labels cannot."
    )


def data_in_words(tiles: TileSet) -> str:
    """Return how much data there is."""
    size = f"{counted(len(tiles.meta.scenes), 'scene')}, {counted(len(tiles.tiles), 'tile')}"
    return f"{size} of {tiles.meta.settings.tile_px} × {tiles.meta.settings.tile_px} pixels."


def scores_title(table: ScoreTable) -> str:
    """Return which tiles the scores are of."""
    tiles = counted(table.tiles_scored, f"{SPLIT_NAMES.get(table.split, table.split)} tile")
    what = "answers (one a pixel and class)" if table.counting.overlapping else "labelled pixels"
    accuracy = f"{percent(table.overall.get('accuracy'))} of the {what} are right"
    return f"{capital(table.name)}: {tiles} of {Path(table.tiles).name}; {accuracy}"


def scores_in_words(table: ScoreTable) -> str:
    """Return what the figures of one kind of scores are over, and what kappa and objects say."""
    over = table.interval
    more = ": other places may differ by more" if over and over.unit == "block" else ""
    found = [f"Over {over.words}{more}."] if over else []
    found += few_units(over, table.scenes)[:1] if over and over.units < ENOUGH_UNITS else []
    if "kappa" in table.overall:
        found.append("Kappa is how far the map is better than chance: 1 is perfect, 0 no better.")
    objects = table.objects
    if objects and objects.count_error is not None:
        way = "many" if objects.count_error > 0 else "few"
        found.append(
            f"Of {objects.labelled:,} labelled objects of {objects.name}, {objects.matched:,} are mapped as objects of "
            f"their own; the map counts {percent(abs(objects.count_error))} too {way}."
        )
    return " ".join(found)


def settings_in_words(run: Run) -> dict[str, list[tuple[str, str]]]:
    """Return the recipe's tables, what the network expects, and the versions, each as names and values."""
    card = run.card
    recipe = {
        name: [(key, str(value)) for key, value in table.items()]
        for name, table in run.recipe.items()
        if isinstance(table, dict)
    }
    network = [
        ("encoder weights", card.weights_from),
        ("bands", ", ".join(card.band_names[: card.bands])),
        *(("index", f"{index.name} = {index.formula}") for index in card.indices),
        ("number format", card.dtype),
        ("scaling, mean", ", ".join(f"{value:.4g}" for value in card.mean)),
        ("scaling, deviation", ", ".join(f"{value:.4g}" for value in card.std)),
        ("ground resolution", metres(card.resolution_m)),
        ("threshold", ", ".join(f"{cut:.4g}" for cut in card.cuts) if card.legend.overlapping else str(card.threshold)),
        ("fingerprint of the data", card.data_fingerprint or DASH),
    ]
    groups = {**recipe, "network": network, "versions": list(card.versions.items())}
    return {name: pairs for name, pairs in groups.items() if pairs}


def capital(text: str) -> str:
    """Return a text with its first letter as a capital."""
    return text[:1].upper() + text[1:]
