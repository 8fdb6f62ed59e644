"""The content of a report page, section by section."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from geograft.commands.audit import Audit, audit_tile_set
from geograft.commands.report.calibration import (
    calibration_figures,
    calibration_summary,
    figures_explanation,
    other_calibrations,
    threshold_summary,
)
from geograft.commands.report.headline import (
    Evidence,
    KeyFigure,
    evidence,
    headline,
    headline_split,
    key_figures,
    lead_sentence,
    outdated_scores_notes,
    remarks,
)
from geograft.commands.report.leakage import LeakageSection, imbalance_summary, leakage_section, leaked_fractions
from geograft.commands.report.overview import MapOverview, maker_of, maker_sentence
from geograft.commands.report.pictures import example_indices, extremes, map_examples, rank_tiles, select_scenes
from geograft.commands.report.sources import Subject, TrainedRun, tile_set_of
from geograft.commands.report.tables import Bar, NetworkRow, Table, area_table, class_bars, network_rows, score_tables
from geograft.commands.report.text import (
    GRAPHS_EXPLANATION,
    INTERVALS_EXPLANATION,
    data_summary,
    kicker,
    ranking_explanation,
    samples_explanation,
    scores_explanation,
    scores_title,
    settings_groups,
    training_curves_explanation,
)
from geograft.commands.report.view import (
    PageFigure,
    PageImage,
    class_legend,
    error_legend,
    error_row,
    network_graphs,
    sample_row,
    scene_image,
    split_legend,
    training_curves,
)
from geograft.config import InferenceConfig
from geograft.dataset.autocorrelation import estimate_autocorrelation
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import GeograftError, InputError
from geograft.mapping.held_out import predict_classes
from geograft.mapping.models import RunModel

SAMPLE_TILES = 4


@dataclass(frozen=True)
class ScoreSection:
    """The tables of one score file."""

    title: str
    explanation: str
    tables: list[Table]


@dataclass
class Page:
    """The data for the template. Empty sections are left out of the page."""

    title: str
    kicker: str
    headline: str = ""
    lead: str = ""
    """The difference between the best network and the runner-up."""
    remarks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    key_figures: list[KeyFigure] = field(default_factory=list)
    evidence: Evidence | None = None
    """The number of independent units that were scored."""
    hero: list[PageImage] = field(default_factory=list)
    map: PageImage | None = None
    """Overview of the map."""
    network: str = ""
    """Name of the network whose maps and scores are shown."""
    comparison: list[NetworkRow] = field(default_factory=list)
    scores: list[ScoreSection] = field(default_factory=list)
    calibration: list[str] = field(default_factory=list)
    """Sentences on the calibration of the probabilities."""
    calibration_figures: list[PageFigure] = field(default_factory=list)
    areas: list[tuple[str, Table]] = field(default_factory=list)
    """Area estimates from labelled samples: a sentence and a table each."""
    leakage: LeakageSection | None = None
    training_curves: list[PageFigure] = field(default_factory=list)
    samples: list[list[PageImage]] = field(default_factory=list)
    extremes: dict[str, list[list[PageImage]]] = field(default_factory=dict)
    class_bars: list[Bar] = field(default_factory=list)
    scenes: list[PageImage] = field(default_factory=list)
    more_scenes: int = 0
    graphs: list[PageImage] = field(default_factory=list)
    settings: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    explanations: dict[str, str] = field(default_factory=dict)
    """Text by section."""
    legends: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Names and colours by section."""


def build_page(subject: Subject, overview: MapOverview | None = None, tile_set: Path | None = None) -> Page:
    """Return the content of the page on a run or a comparison, with the overview of a map if there is one.

    `tile_set` is the current path of the tile set, if it was moved.
    """
    page = Page(subject.title, kicker(subject), notes=[*subject.notes, *outdated_scores_notes(subject)])
    tiles = _tiles(subject, page, tile_set)
    audit = audit_tile_set(tiles) if tiles else None
    leaked = leaked_fractions(audit, tiles, subject.run) if tiles and audit and subject.run else {}
    page.headline = headline(subject, leaked, len(tiles.split("val")) if tiles else None)
    page.lead, page.remarks = lead_sentence(subject), remarks(subject)
    page.evidence = evidence(subject) if subject.run else None
    page.training_curves = training_curves(subject)
    page.explanations["training"] = training_curves_explanation(subject)
    if subject.kind == "comparison":
        page.comparison = network_rows(subject)
    if subject.run:
        _add_run(page, subject, subject.run)
        page.key_figures = key_figures(subject, subject.run, overview)
        _if_possible(page, "network graph", lambda: page.graphs.extend(network_graphs(subject)))
    if overview:
        _add_map(page, subject, overview)
    if tiles and audit:
        _add_audit(page, tiles, audit)
        page.class_bars = class_bars(audit, tiles.meta.legend)
        page.explanations["data"] = f"{data_summary(tiles)} {imbalance_summary(audit)}".rstrip()
        _if_possible(page, "scene thumbnails", lambda: _add_scenes(page, tiles))
        _if_possible(page, "maps", lambda: _add_pictures(page, subject, tiles))
    return page


def _if_possible(page: Page, what: str, add: Callable[[], None]) -> None:
    """Add a section to the page, or a note if its files cannot be read."""
    try:
        add()
    except GeograftError as error:
        page.notes.append(f"This page has no {what}: {error}")


def _tiles(subject: Subject, page: Page, path: Path | None) -> TileSet | None:
    """Open the tile set; add a note to the page if it is missing or has changed."""
    if subject.run is None:
        return None
    try:
        tiles = TileSet.open(path) if path else tile_set_of(subject.run)
    except InputError as error:
        page.notes.append(f"This page has no images of the data: {error}")
        return None
    if tiles.meta.fingerprint != subject.run.card.data_fingerprint:
        page.notes.append(f"{tiles.folder} has changed since training: images and tile counts show its current state.")
    return tiles


def _add_run(page: Page, subject: Subject, run: TrainedRun) -> None:
    page.network = subject.leader.name
    page.scores = [
        ScoreSection(scores_title(table), scores_explanation(table), score_tables(table)) for table in run.scores
    ]
    sentences = [INTERVALS_EXPLANATION] if any(table.interval for table in run.scores) else []
    sentences += ["The scores below are from one fold: the run whose maps are shown."] if subject.folds else []
    page.explanations["scores"] = " ".join(sentences)
    page.areas = [(area.headline, area_table(area)) for area in run.areas]
    table = run.score(headline_split(subject))
    if table is not None:
        page.calibration = calibration_summary(table)
        page.calibration_figures = calibration_figures(table)
        page.explanations["calibration"] = " ".join(
            [*other_calibrations(run, table), threshold_summary(run, table)]
        ).strip()
        page.explanations["calibration_figures"] = figures_explanation(table)
    page.settings = settings_groups(run)
    page.explanations["graphs"] = GRAPHS_EXPLANATION


def _add_map(page: Page, subject: Subject, overview: MapOverview) -> None:
    """Add the overview of the map, and which network made it if it is not the one with the scores."""
    page.map, page.explanations["map"] = overview.image, overview.summary
    page.legends["map"] = class_legend(overview.card.legend)
    if sentence := maker_sentence(subject, overview):
        page.notes.append(sentence)
    maker = maker_of(subject, overview.card)
    page.comparison = [replace(row, made_map=maker is not None and row.name == maker.name) for row in page.comparison]


def _add_audit(page: Page, tiles: TileSet, audit: Audit) -> None:
    """Add the leakage section; without the spatial autocorrelation if an image cannot be read."""
    page.leakage = leakage_section(audit)

    def add() -> None:
        page.leakage = leakage_section(replace(audit, autocorrelation=estimate_autocorrelation(tiles)))

    if audit.held_out and "train" in audit.tiles:
        _if_possible(page, "spatial autocorrelation", add)


def _add_scenes(page: Page, tiles: TileSet) -> None:
    scenes = select_scenes(tiles)
    page.scenes = [scene_image(tiles, scene, len(scenes)) for scene in scenes]
    page.more_scenes = len(tiles.meta.scenes) - len(scenes)
    page.legends["splits"] = split_legend()


def _add_pictures(page: Page, subject: Subject, tiles: TileSet) -> None:
    """Run the networks on tiles not used for training, and add their maps to the page."""
    split: Split = "val" if tiles.split("val") else "test"
    samples, legend = tiles.samples(split), tiles.meta.legend
    models = {
        v.name: RunModel.open(v.best_run.folder, InferenceConfig(), compare=False)
        for v in subject.variants
        if v.best_run
    }
    maps = {name: partial(predict_classes, model, tiles) for name, model in models.items()}
    if not len(samples):
        return
    shown = map_examples(samples, example_indices(samples.tiles, SAMPLE_TILES, legend.overlapping), maps, legend)
    page.samples = [sample_row(sample, legend, place) for place, sample in shown]
    ranked = rank_tiles(samples, maps[page.network], legend)
    for name, group in extremes(ranked).items():
        shown = map_examples(samples, [tile.index for tile in group], {page.network: maps[page.network]}, legend)
        page.extremes[name] = [error_row(sample, legend, page.network, place) for place, sample in shown]
        if name == "Median":
            page.hero = sample_row(shown[0][1], legend, shown[0][0])
    page.legends |= {"classes": class_legend(legend), "errors": error_legend(legend)}
    page.explanations["samples"] = samples_explanation(legend, split)
    page.explanations["extremes"] = ranking_explanation(
        len(ranked), len(samples), page.network if page.comparison else "", split
    )
