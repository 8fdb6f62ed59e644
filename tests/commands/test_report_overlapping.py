"""Reports, figures and comparisons with overlapping classes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geograft.commands.compare import compare
from geograft.commands.curve import curve
from geograft.commands.evaluate import evaluate
from geograft.commands.report import report
from geograft.commands.report.calibration import calibration_figures, calibration_summary, constant_brier_score
from geograft.commands.report.intervals import seed_mean_iou
from geograft.commands.report.scores import ScoreTable, read_json
from geograft.commands.report.sources import read_subject
from geograft.commands.report.tables import score_tables
from geograft.commands.train import train
from geograft.config import Variant
from geograft.figures.pictures import (
    ExampleTile,
    class_picture,
    error_picture,
    examples_figure,
    grey,
    label_picture,
    tile_iou,
)
from geograft.figures.style import rgb
from tests.commands.test_report import Page
from tests.commands.test_train import SMALL
from tests.support.overlapping import LEGEND, overlapping_set

pytestmark = pytest.mark.usefixtures("only_torch")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiles = overlapping_set(tmp_path_factory.mktemp("overlapping") / "tiles")
    run = train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL.with_settings(train={"decoder_lr": 0.01})).run
    evaluate(run, "test")
    return run


def test_the_page_shows_the_scores_of_each_class(run: Path, tmp_path: Path) -> None:
    report(run, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    said = " ".join(" ".join(page.text).split())
    table = read_json(run / "scores-test.json", ScoreTable)
    assert "2 classes are mapped with a mean IoU of" in said
    assert "from low to high class cover" in said

    for one in table.per_class:
        assert any(row[0] == one.name and f"{one.iou:.2f}" in row[1] for row in page.rows)
    (tn, fp), (fn, tp) = np.array(table.confusion)[1]
    pixels = tn + fp + fn + tp
    row = next(row for row in page.rows if row[0] == "green" and len(row) == 5)
    assert row[1].startswith(f"{100 * tp / pixels:.0f}")
    assert row[4].startswith(f"{100 * tn / pixels:.0f}")
    # Fractions of overlapping classes may sum to more than one, so each has its own bar.
    assert text.count('class="bar"') == 2 * 3
    assert "thresholds 0.50 (red), 0.50 (green)" in said


def test_the_scores_of_the_file_match_the_evaluation(run: Path) -> None:
    table = read_json(run / "scores-test.json", ScoreTable)
    found = evaluate(run, "test")
    assert table.scheme == found.scheme
    estimate = seed_mean_iou(read_subject(run).leader, "test")
    assert estimate is not None
    own = found.headline["iou"]
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((own.value, own.low, own.high))
    tables = np.array(table.confusion, float)
    shares, pixels = tables[:, 1].sum(axis=1) / tables.sum(axis=(1, 2)), tables.sum(axis=(1, 2))
    constant = [share * (1 - share) ** 2 + (1 - share) * share**2 for share in shares]
    assert constant_brier_score(table) == pytest.approx(np.average(constant, weights=pixels))
    assert "a class" in calibration_summary(table)[0]
    assert [each.caption for each in score_tables(table)][2].startswith("Confusion matrix of each class")
    alts = [plate.alt for plate in calibration_figures(table)]
    assert [alt.split(":")[0] for alt in alts[1:]] == [f"Precision-recall curve of {name}" for name in LEGEND.names]


def test_a_comparison_with_overlapping_classes(run: Path, tmp_path: Path) -> None:
    tiles = Path(json.loads((run / "tiles.json").read_text())["tiles"])
    variants = (Variant("a"), Variant("b", train={"decoder_lr": 0.01}))
    result = compare(tiles, replace(SMALL.with_settings(train={"epochs": 1}), variants=variants), tmp_path / "out")
    assert (result.folder / "samples.png").stat().st_size > 1000
    assert all(0 <= row.iou <= 1 for row in result.rows)


def test_folds_and_a_learning_curve_count_every_pixel_once_per_class(run: Path, tmp_path: Path) -> None:
    tiles = Path(json.loads((run / "tiles.json").read_text())["tiles"])
    variants = (Variant("a"), Variant("b", train={"decoder_lr": 0.01}))
    recipe = replace(SMALL.with_settings(train={"epochs": 1}), variants=variants)
    crossed = compare(tiles, recipe, tmp_path / "folds", 2).cross_validation
    assert crossed is not None
    counts = crossed.by_unit["b"].sum(axis=0)
    # One class is unlabelled in a corner.
    assert counts.sum(axis=(1, 2)).tolist() == [256 * 256 - 49, 256 * 256]
    assert crossed.figures["b"]["iou"].value == crossed.scheme.headline(counts)["iou"]
    drawn = curve(tiles, tmp_path / "curve", recipe, (50.0, 100.0), 1)
    assert drawn.score == "mean IoU"
    assert {point.confusion.shape[1:] for point in drawn.runs} == {(2, 2, 2)}
    again = curve(tiles, tmp_path / "curve", recipe, (50.0, 100.0), 1)
    for one, other in zip(drawn.runs, again.runs, strict=True):
        assert one.scheme == other.scheme
        np.testing.assert_array_equal(one.confusion, other.confusion)
    whole = [spot for spot in drawn.points if spot.size.percent == 100]
    for spot in whole:
        own = evaluate(tmp_path / "curve" / spot.runs[0].job.run, "test", tiles=tiles, out=tmp_path / spot.variant)
        assert spot.figures["iou"].value == pytest.approx(own.headline["iou"].value)


def test_a_pixel_of_several_classes_has_the_mean_of_their_colours() -> None:
    picture = np.full((1, 4, 3), 100, np.uint8)
    classes = np.array([[[1, 0, 1, 0]], [[0, 1, 1, 255]]], np.uint8)
    found, plain = class_picture(picture, classes, LEGEND.colours), grey(picture)[0, 0].astype(float)
    red, green = (np.array(rgb(colour), float) for colour in LEGEND.colours)
    expected = [0.4 * plain + 0.6 * each for each in (red, green, (red + green) / 2)]
    assert np.abs(found[0, :3] - expected).max() <= 0.5
    assert (found[0, 3] == plain).all()


def test_a_pixel_is_misclassified_if_one_of_its_classes_is() -> None:
    picture = np.full((1, 3, 3), 100, np.uint8)
    label = np.array([[[1, 0, 1]], [[0, 1, 255]]], np.uint8)
    mapped = np.array([[[1, 0, 1]], [[0, 0, 1]]], np.uint8)
    wrong = (error_picture(picture, label, mapped) != grey(picture)).any(axis=2)
    assert wrong.tolist() == [[False, True, False]]
    assert tile_iou(label, mapped, 2) == pytest.approx(0.5)
    sample = ExampleTile(picture, label, {"network": mapped})
    assert label_picture(sample, LEGEND).shape == picture.shape
    assert examples_figure([sample], LEGEND).startswith(b"\x89PNG")
