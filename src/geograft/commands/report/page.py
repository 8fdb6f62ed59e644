"""The page of a report, part by part."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from geograft.commands.audit import Audit, audit_set
from geograft.commands.report.calibration import (
    curve_in_words,
    decision_in_words,
    elsewhere_in_words,
    sureness_in_words,
    sureness_plates,
)
from geograft.commands.report.headline import Fact, facts, headline, headline_score, lead, leaks, outdated, remarks
from geograft.commands.report.leakage import Fairness, fairness, unlike_in_words
from geograft.commands.report.pictures import extremes, mapped_samples, ranked_tiles, sample_indices, shown_scenes
from geograft.commands.report.sources import Run, Subject, tile_set_of
from geograft.commands.report.tables import Bar, Network, Table, area_table, class_bars, networks, score_tables
from geograft.commands.report.text import (
    GRAPHS_IN_WORDS,
    INTERVALS_IN_WORDS,
    data_in_words,
    extremes_in_words,
    kicker,
    plates_in_words,
    samples_in_words,
    scores_in_words,
    scores_title,
    settings_in_words,
)
from geograft.commands.report.view import (
    Plate,
    Shown,
    curve_plates,
    error_row,
    error_swatches,
    graphs,
    sample_row,
    scene_shown,
    split_swatches,
    swatches,
)
from geograft.dataset.autocorrelation import likeness
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import GeograftError, InputError
from geograft.inference.predictor import Predictor
from geograft.mapping.scoring import mapped

SAMPLE_TILES = 4


@dataclass(frozen=True)
class Scored:
    """The tables of one kind of scores."""

    title: str
    words: str
    tables: list[Table]


@dataclass
class Page:
    """What the template shows. An empty part is left out of the page."""

    title: str
    kicker: str
    headline: str = ""
    lead: str = ""
    """How far the best network is ahead."""
    remarks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    hero: list[Shown] = field(default_factory=list)
    network: str = ""
    """The network whose maps and scores are shown."""
    networks: list[Network] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)
    sureness: list[str] = field(default_factory=list)
    """How right the probabilities are."""
    sureness_plates: list[Plate] = field(default_factory=list)
    areas: list[tuple[str, Table]] = field(default_factory=list)
    """What labelled samples say of the map's areas, each in a sentence and a table."""
    fairness: Fairness | None = None
    plates: list[Plate] = field(default_factory=list)
    samples: list[list[Shown]] = field(default_factory=list)
    extremes: dict[str, list[list[Shown]]] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    scenes: list[Shown] = field(default_factory=list)
    more_scenes: int = 0
    graphs: list[Shown] = field(default_factory=list)
    settings: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    """One explanation a part."""
    legends: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Names and colours, by part."""


def page_of(subject: Subject) -> Page:
    """Return what the page on a run or a comparison shows."""
    page = Page(subject.title, kicker(subject), notes=[*subject.notes, *outdated(subject)])
    tiles = _tiles(subject, page)
    found = audit_set(tiles) if tiles else None
    shares = leaks(found, tiles, subject.run) if tiles and found and subject.run else {}
    page.headline = headline(subject, shares, len(tiles.split("val")) if tiles else None)
    page.lead, page.remarks = lead(subject), remarks(subject)
    page.plates = curve_plates(subject)
    page.words |= {"plates": plates_in_words(subject)}
    if subject.kind == "comparison":
        page.networks = networks(subject)
    if subject.run:
        _add_run(page, subject, subject.run)
        _if_possible(page, "the network", lambda: page.graphs.extend(graphs(subject)))
    if tiles and found:
        _add_audit(page, tiles, found)
        page.bars = class_bars(found, tiles.meta.legend)
        page.words["data"] = f"{data_in_words(tiles)} {unlike_in_words(found)}".rstrip()
        _if_possible(page, "the scenes", lambda: _add_scenes(page, tiles))
        _if_possible(page, "the maps", lambda: _add_pictures(page, subject, tiles))
    return page


def _if_possible(page: Page, what: str, add: Callable[[], None]) -> None:
    """Add a part to the page; a note in its place where its files cannot be read."""
    try:
        add()
    except GeograftError as error:
        page.notes.append(f"This page has no pictures of {what}: {error}")


def _tiles(subject: Subject, page: Page) -> TileSet | None:
    """Open the tile set; a note on the page where it is gone or has changed."""
    if subject.run is None:
        return None
    try:
        tiles = tile_set_of(subject.run)
    except InputError as error:
        page.notes.append(f"This page has no pictures of the data: {error}")
        return None
    if tiles.meta.fingerprint != subject.run.card.data_fingerprint:
        page.notes.append(f"{tiles.folder} has changed since training: pictures and tile counts show it as it is now.")
    return tiles


def _add_run(page: Page, subject: Subject, run: Run) -> None:
    page.network = subject.leader.name
    page.facts = facts(subject, run)
    page.scores = [Scored(scores_title(table), scores_in_words(table), score_tables(table)) for table in run.scores]
    told = [INTERVALS_IN_WORDS] if any(table.interval for table in run.scores) else []
    told += ["These are of one fold: of the run whose maps are shown."] if subject.folds else []
    page.words["scores"] = " ".join(told)
    page.areas = [(found.headline, area_table(found)) for found in run.areas]
    table = run.score(headline_score(subject))
    if table is not None:
        page.sureness = sureness_in_words(table)
        page.sureness_plates = sureness_plates(table)
        page.words["sureness"] = " ".join([*elsewhere_in_words(run, table), decision_in_words(run, table)]).strip()
        page.words["curves"] = curve_in_words(table)
    page.settings = settings_in_words(run)
    page.words["graphs"] = GRAPHS_IN_WORDS


def _add_audit(page: Page, tiles: TileSet, found: Audit) -> None:
    """Say whether the test was fair; how far the ground resembles itself is left out where no image can be read."""
    page.fairness = fairness(found)

    def add() -> None:
        page.fairness = fairness(replace(found, likeness=likeness(tiles)))

    if found.held and "train" in found.tiles:
        _if_possible(page, "how far the ground resembles itself", add)


def _add_scenes(page: Page, tiles: TileSet) -> None:
    scenes = shown_scenes(tiles)
    page.scenes = [scene_shown(tiles, scene, len(scenes)) for scene in scenes]
    page.more_scenes = len(tiles.meta.scenes) - len(scenes)
    page.legends["splits"] = split_swatches()


def _add_pictures(page: Page, subject: Subject, tiles: TileSet) -> None:
    """Run the networks on tiles that did not train them, and show what they make of them."""
    split: Split = "val" if tiles.split("val") else "test"
    samples, legend = tiles.samples(split), tiles.meta.legend
    maps = {v.name: partial(mapped, Predictor.load(v.best_run.folder)) for v in subject.variants if v.best_run}
    if not len(samples):
        return
    shown = mapped_samples(samples, sample_indices(samples.tiles, SAMPLE_TILES, legend.overlapping), maps, legend)
    page.samples = [sample_row(sample, legend, place) for place, sample in shown]
    ranked = ranked_tiles(samples, maps[page.network], legend)
    for name, group in extremes(ranked).items():
        shown = mapped_samples(samples, [tile.index for tile in group], {page.network: maps[page.network]}, legend)
        page.extremes[name] = [error_row(sample, legend, page.network, place) for place, sample in shown]
        if name == "Median":
            page.hero = sample_row(shown[0][1], legend, shown[0][0])
    page.legends |= {"classes": swatches(legend), "errors": error_swatches(legend)}
    page.words["samples"] = samples_in_words(legend, split)
    page.words["extremes"] = extremes_in_words(len(ranked), len(samples), page.network if page.networks else "", split)
