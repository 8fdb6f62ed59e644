"""The words and numbers of a report, for readers who are no statisticians."""

from collections.abc import Mapping
from pathlib import Path

from tilth.geo.tileset import TileSet
from tilth.legend import Legend
from tilth.verbs.audit import Audit
from tilth.verbs.report.numbers import DASH, duration, fixed, metres, percent, plural, with_spread
from tilth.verbs.report.pictures import MOST_RANKED
from tilth.verbs.report.sources import Run, ScoreTable, Subject, known, mean

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
IOU_IN_WORDS = (
    "IoU (intersection over union) is the area that label and map agree on, divided by the area that either of them "
    "gives to the class. 1 is a perfect map, 0 a map with nothing right."
)

GRAPHS_IN_WORDS = (
    "Down the left the image becomes ever smaller maps of features, up the right they become a map of its own size. "
    "Each sheet is a map of features; the lines across carry detail from left to right."
)


def target(legend: Legend) -> str:
    """Return what is mapped: the class of interest of two, else how many classes there are."""
    return legend.names[1] if legend.binary else f"{len(legend.names)} classes"


def headline(subject: Subject, leaks: Mapping[str, float], val_tiles: int | None) -> str:
    """Return the one sentence that says what was mapped, on what, how well, and which network is ahead.

    `leaks` holds by split the share of its pixels that training tiles hold too, where that is known.
    """
    run, measure = subject.run, headline_score(subject)
    if run is None:
        return f"{plural(len(subject.variants), 'network')} compared"
    table = run.score(measure)
    values = subject.leader.values(measure)
    legend = run.card.legend
    verb = "is mapped with IoU" if legend.binary else "are mapped with a mean IoU of"
    where = tiles_in_words(measure, table.tiles_scored if table else val_tiles, leaks.get(measure))
    sentence = f"{_capital(target(legend))} {verb} {fixed(mean(values))} on {where}"
    ahead = lead_in_words(subject, measure)
    return f"{sentence}; {ahead}." if ahead else f"{sentence}."


def headline_score(subject: Subject) -> str:
    """Return "test" when every network has scores on the test tiles, else "val"."""
    return "test" if all(variant.values("test") for variant in subject.variants) else "val"


def tiles_in_words(split: str, count: int | None, leak: float | None) -> str:
    """Return how many tiles of which part, and whether training saw their ground."""
    part = SPLIT_NAMES.get(split, split)
    tiles = f"{part} tiles" if count is None else plural(count, f"{part} tile")
    if not leak:
        return f"{tiles} that training never saw" if split == "test" and leak is not None else tiles
    return f"{tiles}, {percent(leak)} of whose pixels training saw"


def lead_in_words(subject: Subject, measure: str) -> str:
    """Return how far the leader is ahead of the next network, or behind it; nothing for a single network."""
    leader = subject.leader
    others = [variant for variant in subject.variants if variant is not leader and variant.values(measure)]
    if not others or not leader.values(measure):
        return ""
    rival = max(others, key=lambda variant: mean(variant.values(measure)))
    lead = mean(leader.values(measure)) - mean(rival.values(measure))
    if abs(lead) < 0.005:
        return f"“{leader.name}” and “{rival.name}” are level"
    return f"“{leader.name}” is {'ahead of' if lead > 0 else 'behind'} “{rival.name}” by {fixed(abs(lead))}"


def remarks(subject: Subject) -> list[str]:
    """Return what to know about the headline, a sentence each."""
    run = subject.run
    if run is None:
        return []
    measure = headline_score(subject)
    table = run.score(measure)
    found = [_in_plain_words(table, run.card.legend)] if table and known([table.iou]) else []
    if measure == "val":
        found.append("The epoch was chosen on these tiles, so expect a little less elsewhere.")
    found += [elsewhere_in_words(other) for other in run.scores if other.name not in (measure, "val", "train")]
    return [*found, *_seeds_in_words(subject)]


def elsewhere_in_words(table: ScoreTable) -> str:
    """Return one sentence on scores that are not the headline's."""
    tiles = plural(table.tiles_scored, f"{table.split} tile")
    return f"On “{table.name}” ({tiles} of {Path(table.tiles).name}) the IoU is {fixed(table.iou)}."


def facts(subject: Subject, run: Run) -> list[tuple[str, str, str]]:
    """Return the figures at the page's head: name, value, explanation."""
    measure = headline_score(subject)
    table, best = run.score(measure), run.best
    found, right = (
        (table.overall.get("recall"), table.overall.get("precision"))
        if table
        else (best.val_recall, best.val_precision)
    )
    mean_over = "" if run.card.legend.binary else ", mean over the classes"
    return [
        (
            "IoU",
            with_spread(subject.leader.values(measure)),
            f"agreement on {SPLIT_NAMES[measure]} tiles{mean_over}",
        ),
        ("Found", percent(found), f"of the labelled area is mapped so (recall{mean_over})"),
        ("Right", percent(right), f"of the mapped area is labelled so (precision{mean_over})"),
        ("Trained", duration(run.seconds), f"{plural(len(run.history.epochs), 'epoch')}; number {best.epoch} was best"),
    ]


def kicker(subject: Subject) -> str:
    """Return the line over the headline."""
    if subject.kind == "run":
        return f"Run · {subject.title}"
    return f"Comparison of {plural(len(subject.variants), 'network')} · {subject.title}"


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
    return f"Tiles of the {SPLIT_NAMES[split]} part, which trained no network, chosen by their labels: {order}."


def extremes_in_words(ranked: int, count: int, network: str, split: str) -> str:
    """Return among which tiles the best and the worst were looked for; `network` is empty where there is but one."""
    tiles = plural(ranked, f"{SPLIT_NAMES[split]} tile") + ("" if count <= MOST_RANKED else f" out of {count:,}")
    return (
        f"By the IoU{f' of “{network}”' if network else ''} on each of {tiles} where label or map show enough to tell. "
        "The worst tiles say most about where the map cannot be trusted, or where the labels cannot."
    )


def data_in_words(tiles: TileSet, found: Audit) -> str:
    """Return how much data there is, and whether the split leaks."""
    size = f"{plural(len(tiles.meta.scenes), 'scene')}, {plural(len(tiles.tiles), 'tile')}"
    return f"{size} of {tiles.meta.settings.tile_px} × {tiles.meta.settings.tile_px} pixels. {found.verdict}"


def leaks(found: Audit, tiles: TileSet, run: Run) -> dict[str, float]:
    """Return by split the share of its pixels that training tiles hold too, where that is known for sure.

    It is not where a group of scenes is divided, nor for test scores of another tile set than trained the run.
    """
    if found.divided_groups:
        return {}
    test = run.score("test")
    elsewhere = test is not None and Path(test.tiles).resolve() != tiles.folder.resolve()
    return {held.split: held.overlap.pixel_share for held in found.held if not (held.split == "test" and elsewhere)}


def scores_title(table: ScoreTable) -> str:
    """Return which tiles the scores are of."""
    tiles = (
        f"{plural(table.tiles_scored, f'{SPLIT_NAMES.get(table.split, table.split)} tile')} of {Path(table.tiles).name}"
    )
    accuracy = f"{percent(table.overall.get('accuracy'))} of the labelled pixels are right"
    return f"{_capital(table.name)}: {tiles}; {accuracy}"


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
        ("bands", ", ".join(card.band_names)),
        ("number format", card.dtype),
        ("scaling, mean", ", ".join(f"{value:.4g}" for value in card.mean)),
        ("scaling, deviation", ", ".join(f"{value:.4g}" for value in card.std)),
        ("ground resolution", metres(card.resolution_m)),
        ("threshold", str(card.threshold)),
        ("fingerprint of the data", card.data_fingerprint or DASH),
    ]
    groups = {**recipe, "network": network, "versions": list(card.versions.items())}
    return {name: pairs for name, pairs in groups.items() if pairs}


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
    seeds = min(len(variant.rows) for variant in subject.variants)
    if seeds == 1:
        return ["Each network was trained once: differences of a few hundredths can be chance."]
    return [f"Each network was trained {seeds} times from different random starts; ± is their standard deviation."]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
