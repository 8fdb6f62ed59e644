"""`geograft report`: the page shows the values in the files, is self-contained, and notes missing files."""

import base64
import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from geograft.card import WEIGHTS, ModelCard
from geograft.commands.audit import audit
from geograft.commands.compare import compare
from geograft.commands.evaluate import evaluate
from geograft.commands.prepare import prepare
from geograft.commands.report import report
from geograft.commands.report.headline import headline, lead_sentence, remarks
from geograft.commands.report.intervals import format_estimate_interval, interval_of, seed_mean_iou
from geograft.commands.report.pictures import (
    RankedTile,
    evenly_spaced,
    example_indices,
    extremes,
)
from geograft.commands.report.scores import ScoreTable
from geograft.commands.report.sources import NetworkRuns as Compared
from geograft.commands.report.sources import RunSummary, Subject, TrainedRun, read_subject
from geograft.commands.report.text import format_mean_std
from geograft.commands.train import train
from geograft.config import ModelConfig, PrepareConfig, Recipe, Variant
from geograft.dataset.sources import MaskSource
from geograft.dataset.thumbnails import read_thumbnail
from geograft.dataset.tileset import Tile, TileSet
from geograft.errors import InputError, OutputError
from geograft.files import write_json
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.legend import Legend
from geograft.training.history import Epoch, History, read_history
from tests.support.rasters import write_raster

pytestmark = pytest.mark.usefixtures("only_torch")

QUICK = Recipe(title="Fields & <b>more</b>").with_settings(
    model={"architecture": "unet"}, train={"epochs": 2, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"}
)
VARIANTS = (Variant("U-Net, slow", train={"decoder_lr": 1e-4}), Variant("U-Net <quick>"))
VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def comparison(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(QUICK, variants=VARIANTS, seeds=(0, 1))
    folder = compare(tiles, recipe, tmp_path_factory.mktemp("comparisons") / "fields").folder
    for place in folder.glob("*/seed*"):
        evaluate(place, "test")
    return folder


@pytest.fixture(scope="module")
def page(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    result = report(comparison, tmp_path_factory.mktemp("pages") / "page.html")
    assert result.notes == ()
    assert result.lines() == [f"report: {result.path}"]
    return result.path.read_text(encoding="utf-8")


@pytest.fixture
def run(comparison: Path, tmp_path: Path) -> Path:
    """A copy of a run folder that a test may damage."""
    return Path(shutil.copytree(comparison / "u-net-quick" / "seed0", tmp_path / "run"))


def test_the_page_is_self_contained(page: str) -> None:
    found = Page(page)
    for _, attrs in found.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), attrs[name][:80]
        assert "url(" not in attrs.get("style", "")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert found.all("html")[0]["lang"] == "en"
    assert len(page) < 3_000_000


def test_every_section_is_listed_in_the_contents(page: str) -> None:
    found = Page(page)
    parts = [
        "comparison", "scores", "calibration", "leakage", "training",
        "samples", "extremes", "data", "network", "settings",
    ]  # fmt: skip
    assert found.ids == parts
    assert [attrs["href"] for attrs in found.all("a")] == [f"#{part}" for part in parts]


def test_every_image_decodes_and_has_its_size_and_an_alternative_text(page: str) -> None:
    pictures = Page(page).all("img")
    assert all(picture["alt"].strip() for picture in pictures)
    photographs = [picture for picture in pictures if picture["src"].startswith("data:image/jpeg;base64,")]
    for picture in photographs:
        content = base64.b64decode(picture["src"].partition(",")[2])
        height, width = imread(io.BytesIO(content), format="jpg").shape[:2]
        assert (picture["width"], picture["height"]) == (str(width), str(height))
    hero, samples, pairs, scenes, curves, graphs = 3, 4 * (2 + len(VARIANTS)), 6 * 2, 1, 2, 1
    calibration, variograms = 2, 1
    assert len(photographs) == hero + samples + pairs + scenes
    assert len(pictures) == len(photographs) + curves + graphs + calibration + variograms
    sources = Page(page).all("source")
    assert len(sources) == curves * len(("narrow and dark", "dark", "narrow")) + calibration
    for source in sources:
        assert b"<svg" in base64.b64decode(source["srcset"].partition(",")[2])


def test_the_comparison_table_shows_the_values_of_comparison_json(page: str, comparison: Path) -> None:
    rows = json.loads((comparison / "comparison.json").read_text())["rows"]
    table = [row for row in Page(page).rows if row[0].startswith("U-Net")]
    assert len(table) == len(VARIANTS)
    for shown, variant in zip(table, VARIANTS, strict=True):
        mine = [row for row in rows if row["variant"] == variant.name]
        scores = [
            json.loads((comparison / row["run"] / "scores-test.json").read_text())["overall"]["iou"] for row in mine
        ]
        assert shown[0].startswith(variant.name)
        assert shown[1] == f"{mine[0]['parameters']:,} {mine[0]['trainable']:,} trainable"
        epochs = ", ".join(str(row["best_epoch"]) for row in mine)
        assert shown[2] == f"{format_mean_std([row['best_val_loss'] for row in mine], 3)} epoch {epochs}"
        assert shown[3] == format_mean_std([row["gap"] for row in mine], 3)
        assert shown[4] == format_mean_std([row["iou"] for row in mine])
        variant_read = next(v for v in read_subject(comparison).variants if v.name == variant.name)
        estimate = seed_mean_iou(variant_read, "test")
        assert estimate is not None
        assert shown[5] == f"{format_mean_std(scores)} {format_estimate_interval(interval_of(estimate))}".strip()


def test_the_standard_deviation_is_over_the_seeds() -> None:
    values = [0.5, 0.6, 0.8]
    assert format_mean_std(values, 3) == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert format_mean_std([0.5]) == "0.50"
    assert format_mean_std([0.5, float("nan"), None]) == "0.50"
    assert format_mean_std([]) == "–"
    assert format_mean_std([0.5, 0.503]) == "0.50 ± 0.002"


def test_the_score_tables_show_the_values_of_the_scores_file(page: str, comparison: Path) -> None:
    best = read_subject(comparison).run
    assert best is not None
    content = json.loads((best.folder / "scores-test.json").read_text())
    rows = {row[0]: row for row in Page(page).rows}
    for score in content["per_class"]:
        shown = rows[score["class"]]
        # The confusion matrix has a row of that name too; the last one wins.
        total = sum(map(sum, content["confusion"]))
        share = content["confusion"][content["classes"].index(score["class"])][1] / total
        assert shown[2].replace("\u00a0", " ").rstrip(" %").lstrip("<> ") in (
            f"{100 * share:.0f}",
            f"{100 * share:.1f}",
        )
    first = next(row for row in Page(page).rows if row[0] == "fields")
    low, high = content["per_class"][1]["intervals"]["iou"]
    assert first[1] == f"{content['per_class'][1]['iou']:.2f} {low:.2f}\u00a0to {high:.2f}"
    assert first[5] == f"{content['per_class'][1]['pixels']:,}"


def test_text_from_files_is_escaped(page: str) -> None:
    assert "<quick>" not in page
    assert "U-Net &lt;quick&gt;" in page
    assert "Fields & <b>more</b>" in Page(page).words


def test_class_fractions_sum_to_one(page: str) -> None:
    fractions = [float(fraction) for fraction in re.findall(r"--fraction: ([\d.e-]+)", page)]
    assert len(fractions) == 3 * 2
    for start in range(0, len(fractions), 2):
        assert sum(fractions[start : start + 2]) == pytest.approx(1)


def test_a_single_run_has_a_page(run: Path) -> None:
    assert report(run).path == run / "report.html"
    found = Page((run / "report.html").read_text(encoding="utf-8"))
    assert found.ids == [
        "scores", "calibration", "leakage", "training", "samples", "extremes", "data", "network", "settings",
    ]  # fmt: skip
    scores = json.loads((run / "scores-test.json").read_text())
    low, high = scores["overall_intervals"]["iou"]
    iou = f"IoU of {scores['overall']['iou']:.2f} (95 % confidence interval {low:.2f} to {high:.2f}) on"
    assert f"Fields is mapped with an {iou} {scores['interval']['units']} held-out blocks." in found.words
    assert f"All {scores['interval']['units']} blocks lie in one scene" in found.words
    assert "Reliability diagram" in found.words
    checked = audit(Path(json.loads((run / "tiles.json").read_text())["tiles"]))
    # What to do about it is for `geograft audit`.
    conclusion = checked.conclusion.removesuffix(checked.advice)
    assert " ".join(conclusion.split()) in found.words.replace("\u00a0", " ")
    assert [row[2] for row in found.rows if row[0] in ("validation", "test")] == ["0\u00a0%", "0\u00a0%"]
    (run / "scores-test.json").unlink()
    report(run)
    words = Page((run / "report.html").read_text(encoding="utf-8")).words
    assert f"IoU of {read_history(run).best.val_iou:.2f} on" in words
    assert "validation tiles." in words


def test_a_run_of_several_classes_shows_labels_map_and_misclassified_pixels(tmp_path: Path) -> None:
    stripes = np.arange(96) // 8 % 3 + 1
    masks = np.broadcast_to(stripes, (1, 96, 96)).astype(np.uint8)
    for name in ("a", "b", "c"):
        write_raster(tmp_path / "images" / f"{name}.tif", np.repeat(masks * 60, 4, axis=0), crs=None)
        write_raster(tmp_path / "masks" / f"{name}.tif", masks, crs=None)
    source = MaskSource(tmp_path / "images", tmp_path / "masks", {1: "wheat", 2: "maize", 3: "fallow"})
    config = PrepareConfig(tile_px=32, overlap=0.0, split="scene", val=0.33, test=0.33)
    tiles = prepare(source, tmp_path / "tiles", config)
    run = train(tiles.folder, tmp_path / "run", QUICK).run
    evaluate(run, "test")
    assert report(run).notes == ()
    found = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "3 classes are mapped with a mean IoU of" in found.words
    assert found.words.count("misclassified pixels") == 6


def test_a_missing_tile_set_is_noted_on_the_page(run: Path, tmp_path: Path) -> None:
    (run / "tiles.json").write_text(json.dumps({"tiles": str(tmp_path / "gone")}))
    result = report(run)
    assert len(result.notes) == 1
    assert str(tmp_path / "gone") in result.notes[0]
    assert result.lines()[0] == f"Note: {result.notes[0]}"
    found = Page(result.path.read_text(encoding="utf-8"))
    assert found.ids == ["scores", "calibration", "training", "network", "settings"]
    # A command in the note is an element of its own.
    assert result.notes[0].replace("`", "").replace(" ", "") in found.words.replace(" ", "")


def test_a_page_without_weights_has_no_maps(run: Path) -> None:
    (run / WEIGHTS).write_bytes(b"not weights")
    result = report(run)
    assert len(result.notes) == 1
    assert WEIGHTS in result.notes[0]
    parts = ["scores", "calibration", "leakage", "training", "data", "network", "settings"]
    assert Page(result.path.read_text(encoding="utf-8")).ids == parts


def test_a_changed_tile_set_is_noted_on_the_page(run: Path) -> None:
    card = json.loads((run / "card.json").read_text())
    write_json(run / "card.json", card | {"data_fingerprint": "another"})
    tiles = json.loads((run / "tiles.json").read_text())["tiles"]
    assert [tiles in note for note in report(run).notes] == [True]


def test_scores_on_another_tile_set_are_not_called_held_out(run: Path, tmp_path: Path) -> None:
    scores = json.loads((run / "scores-test.json").read_text())
    write_json(run / "scores-test.json", scores | {"tiles": str(tmp_path / "another place")})
    words = Page(report(run).path.read_text(encoding="utf-8")).words
    assert "held-out" not in words
    assert "blocks of the test split." in words
    assert "tiles of another place" in words


def test_old_scores_are_noted_with_the_command_that_updates_them(run: Path) -> None:
    scores = json.loads((run / "scores-test.json").read_text())
    old = ("name", "split", "tiles", "tiles_scored", "classes", "confusion", "per_class", "per_scene", "notes")
    new = {key: scores[key] for key in old} | {"overall": {key: scores["overall"][key] for key in ("iou", "f1")}}
    write_json(run / "scores-test.json", new)
    (note,) = report(run).notes
    assert f"geograft evaluate {run} --split test" in note
    found = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "calibration" not in found.ids
    assert "held-out test tiles" in found.words


def test_areas_of_a_labelled_sample_are_on_the_page(run: Path) -> None:
    estimate = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    row = {"class": "fields", "mapped_area": 2.0, "area": estimate, "users_accuracy": estimate}
    area = {"map": "map.tif", "headline": "fields covers 0.5 m2.", "unit": "m2", "labelled": 50}
    write_json(run / "area.json", area | {"classes": [row | {"producers_accuracy": estimate}]})
    found = Page(report(run).path.read_text(encoding="utf-8"))
    assert "area" in found.ids
    assert "fields covers 0.5 m2." in found.words


def test_missing_runs_of_a_comparison_are_noted(comparison: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(comparison, tmp_path / "comparison"))
    shutil.rmtree(folder / "u-net-slow")
    result = report(folder)
    assert ["u-net-slow/seed0, u-net-slow/seed1" in note for note in result.notes] == [True]
    assert len([row for row in Page(result.path.read_text(encoding="utf-8")).rows if row[0].startswith("U-Net")]) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("comparison.json", '{"title": "x", "rows": []}', "comparison.json"),
        ("comparison.json", '{"title": "x"}', "comparison.json: rows"),
        ("comparison.json", "nonsense", "comparison.json"),
        ("scores-test.json", "{}", "scores-test.json: name"),
        ("recipe.toml", "= x", "recipe.toml"),
        ("history.csv", ",".join(field.name for field in fields(Epoch)) + "\n", "history.csv"),
        ("history.csv", "epoch\nx\n", "history.csv"),
        ("card.json", "{}", "card.json"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        report(run)
    assert not (run / "report.html").exists()


def test_other_folders_and_file_names_are_rejected(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"card\.json.*comparison\.json"):
        report(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "nothing"))):
        report(tmp_path / "nothing")
    with pytest.raises(OutputError, match=r"map\.tif.*\.html"):
        report(run, tmp_path / "map.tif")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html"):
        report(run, tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == "mine"


LEGEND = Legend(("rest", "tree"))


def compared(name: str, val: Sequence[float], test: Sequence[float] = ()) -> Compared:
    """Return a network with these IoUs, one per seed."""
    rows = tuple(RunSummary(name, i, f"{name}/{i}", 9, 9, 1 - iou, 1, iou, 0.1, 60.0) for i, iou in enumerate(val))
    runs = tuple(made_run(name, iou, test[i : i + 1]) for i, iou in enumerate(val))
    return Compared(name, rows, runs)


def made_run(name: str, val: float, test: Sequence[float]) -> TrainedRun:
    epoch = Epoch(1, 0.5, val, val, val, val, 1 - val, val, val, 0.8, 0.7, 1e-3, 60.0, 10.0)
    card = ModelCard(name, ModelConfig(), "random", LEGEND, ("red",), "uint8", (0.0,), (1.0,), 32, None, 0.5, 1)
    overall = {"iou": test[0], "precision": 0.8, "recall": 0.7} if test else {}
    scores = (ScoreTable("test", "test", "tiles", LEGEND.names, ((1, 1), (1, 1)), overall, (), (), 23),) if test else ()
    return TrainedRun(Path(name), card, History((epoch,)), scores, {})


def test_the_headline_names_class_score_and_best_network() -> None:
    networks = (compared("plain", [0.5], [0.52]), compared("pretrained", [0.6], [0.61]))
    subject = Subject("comparison", Path(), "t", networks)
    assert headline(subject, {"test": 0.0}, 20) == "Tree is mapped with an IoU of 0.61 on 23 held-out test tiles."
    assert lead_sentence(subject) == "The IoU of “pretrained” is 0.09 higher than that of “plain”."
    assert remarks(subject)[0] == (
        "Of the area labelled tree, 70\u00a0% is mapped as tree (recall); "
        "of the area mapped as tree, 80\u00a0% is labelled tree (precision)."
    )
    assert "trained once" in remarks(subject)[-1]


def test_the_headline_shows_leakage_and_a_lower_score_than_the_runner_up() -> None:
    networks = (compared("plain", [0.5], [0.64]), compared("pretrained", [0.6], [0.61]))
    subject = Subject("comparison", Path(), "t", networks)
    assert subject.leader.name == "pretrained", "test scores are not used for selection"
    text = headline(subject, {"test": 0.94}, 20)
    assert text == (
        "Tree is mapped with an IoU of 0.61 on 23 test tiles, with 94\u00a0% of the pixels also in training tiles."
    )
    assert lead_sentence(subject) == "The IoU of “pretrained” is 0.03 lower than that of “plain”."
    assert "held-out" not in headline(subject, {}, 20), "unknown leakage"


def test_the_headline_falls_back_on_validation_and_means_over_seeds() -> None:
    networks = (compared("a", [0.5, 0.7], [0.4, 0.5]), compared("b", [0.56, 0.635]))
    subject = Subject("comparison", Path(), "t", networks)
    assert headline(subject, {"val": 0.0}, 1) == "Tree is mapped with an IoU of 0.60 on 1 validation tile."
    assert lead_sentence(subject) == "The IoU of “a” and “b” differs by less than 0.01."
    single = Subject("run", Path(), "t", (Compared("map", (), (made_run("r", 0.5, ()),)),))
    assert headline(single, {}, None) == "Tree is mapped with an IoU of 0.50 on validation tiles."


def test_a_network_with_nan_scores_is_never_best() -> None:
    networks = (compared("broken", [float("nan")]), compared("plain", [0.1]))
    assert Subject("comparison", Path(), "t", networks).leader.name == "plain"


@given(st.lists(st.floats(0, 1), max_size=40))
def test_extremes_are_the_ends_and_the_middle(ious: list[float]) -> None:
    ranked = [RankedTile(index, iou) for index, iou in enumerate(sorted(ious))]
    groups = extremes(ranked)
    shown = [tile for group in groups.values() for tile in group]
    assert len(set(shown)) == len(shown) == (min(len(ious), 3) if len(ious) < 6 else 6)
    if len(ious) >= 3:
        assert groups["Best"][0] == ranked[-1]
        assert groups["Worst"][0] == ranked[0]
        middle = np.median([tile.iou for tile in ranked])
        assert min(t.iou for t in groups["Median"]) <= middle <= max(t.iou for t in groups["Median"]) or len(ious) < 6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(1, 6))
def test_sample_tiles_are_ordered_by_class_fraction(shares: list[float], count: int) -> None:
    tiles = [Tile("s", Window(0, 0, 8, 8), "val", 1.0, (1 - share, share)) for share in shares]
    chosen = example_indices(tiles, count)
    assert 1 <= len(chosen) <= count
    assert [shares[index] for index in chosen] == sorted(shares[index] for index in chosen)
    if any(share > 0 for share in shares):
        assert all(shares[index] > 0 for index in chosen)


@given(st.integers(1, 500), st.integers(1, 60))
def test_evenly_spaced_indices_include_both_ends(count: int, most: int) -> None:
    places = evenly_spaced(count, most)
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    assert places[0] == 0
    assert most == 1 or places[-1] == count - 1


def test_a_thumbnail_is_the_mean_of_valid_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 1300, 700), dtype=np.uint8)
    pixels[:, :100, :100] = 0
    write_raster(tmp_path / "image.tif", pixels, nodata=0)
    factor, shape = 7, (1300 // 7, 100)
    with Image.open(tmp_path / "image.tif") as image:
        small, known = read_thumbnail(image, [1, 3], shape, factor)
    whole = np.where(pixels == 0, np.nan, pixels)[[0, 2], : shape[0] * factor]
    squares = whole.reshape(2, shape[0], factor, shape[1], factor).swapaxes(2, 3).reshape(2, *shape, -1)
    empty = np.isnan(squares).all(axis=(0, 3))
    assert (known == ~empty).all()
    assert small[:, known] == pytest.approx(np.nanmean(squares[:, known], axis=-1), rel=1e-5)


def test_splits_are_drawn_at_their_tiles(tiles: Path) -> None:
    tile_set = TileSet.open(tiles)
    picture = tile_set.picture(tile_set.meta.scenes[0].name, 256)
    assert picture.shape == (256, 256, 3)
    bare = np.ones((256, 256), bool)
    for tile in tile_set.tiles:
        bare[tile.window.slices] = False
    assert (picture[bare].max(axis=1) == picture[bare].min(axis=1)).all(), "pixels outside all tiles are grey"
    for tile in tile_set.split("test"):
        inside = picture[tile.window.pad(-4).slices].astype(int)
        assert (inside[..., 0] - inside[..., 2]).mean() > 20, "test tiles are tinted vermilion"


def test_rows_of_a_comparison_are_read_back_unchanged(comparison: Path) -> None:
    content = json.loads((comparison / "comparison.json").read_text())
    read = [asdict(row) for variant in read_subject(comparison).variants for row in variant.rows]
    assert read == content["rows"]
