"""Scores of overlapping classes: each class is scored independently, every pixel once; means over classes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray
from scipy.special import expit
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, jaccard_score, log_loss

from geograft.card import read_card
from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.train import train
from geograft.errors import InputError
from geograft.metrics.objects import boundary_counts, object_counts
from tests.commands.test_train import SMALL
from tests.support.overlapping import LEGEND, overlapping_set
from tests.support.tilewise import SCORED, TILEWISE, split_logits

pytestmark = pytest.mark.usefixtures("only_torch")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return overlapping_set(tmp_path_factory.mktemp("overlapping") / "tiles")


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL.with_settings(train={"decoder_lr": 0.01})).run


@pytest.fixture(scope="module")
def seen(run: Path, tiles: Path) -> tuple[ndarray, ndarray, ndarray]:
    """Return truth (-1 unknown), probabilities and map of the test tiles, each (2, tiles, 32, 32)."""
    label, logits = split_logits(run, tiles, "test")
    truth, likely = np.nan_to_num(label, nan=-1).astype(int), expit(logits)
    return truth.swapaxes(0, 1), likely.swapaxes(0, 1), (likely >= 0.5).astype(np.uint8).swapaxes(0, 1)


def test_every_class_is_scored_independently(run: Path, seen: tuple[ndarray, ndarray, ndarray]) -> None:
    result = evaluate(run, "test", config=SCORED)
    content = json.loads((run / "scores-test.json").read_text())
    ious, aps = [], []
    for index, (truth, likely, mapped) in enumerate(zip(*seen, strict=True)):
        known = truth >= 0
        row = content["per_class"][index]
        assert (row["class"], row["pixels"]) == (LEGEND.names[index], (truth == 1).sum())
        theirs = confusion_matrix(truth[known], mapped[known])
        np.testing.assert_array_equal(content["confusion"][index], theirs)
        ious.append(jaccard_score(truth[known], mapped[known]))
        # Probabilities are binned in steps of 1 / 1000.
        aps.append(average_precision_score(truth[known], np.floor(likely[known] * 1000)))
        assert (row["iou"], row["average_precision"]) == (pytest.approx(ious[-1]), pytest.approx(aps[-1], abs=1e-6))
        for name, ends in row["intervals"].items():
            assert ends[0] <= row[name] <= ends[1], name
    assert content["overall"]["iou"] == content["overall"]["macro_iou"] == pytest.approx(np.mean(ious))
    assert content["overall"]["average_precision"] == pytest.approx(np.mean(aps), abs=1e-6)
    assert min(ious) > 0.8, "the classes can be learnt"
    assert any(line.split()[:1] == ["mean"] for line in result.lines())


def test_probability_scores_cover_all_pixels_and_classes(run: Path, seen: tuple[ndarray, ndarray, ndarray]) -> None:
    truth, likely, _ = seen
    known = truth >= 0
    content = evaluate(run, "test", config=SCORED).content("test")
    assert content["overall"]["brier"] == pytest.approx(np.mean((likely[known] - truth[known]) ** 2), rel=1e-5)
    assert sum(row["pixels"] for row in content["reliability"]) == known.sum()
    assert "precision_recall" not in content
    curve = content["per_class"][0]["precision_recall"]
    at = curve["threshold"].index(0.5)
    assert curve["recall"][at] == pytest.approx(content["per_class"][0]["recall"])
    assert content["decision"]["thresholds"] == [0.5, 0.5]


def test_units_sum_to_the_total_and_difference_to_itself_is_zero(run: Path) -> None:
    same = evaluate(run, "test", against=run)
    assert {(f.value, f.low, f.high) for f in same.differences["overall"].values()} == {(0, 0, 0)}
    content = same.content("test")
    assert (sum(np.array(unit["confusion"]) for unit in content["per_unit"]) == content["confusion"]).all()
    assert content["per_scene"][0]["iou"] == pytest.approx(content["overall"]["iou"])
    assert content["per_scene"][0]["pixels"] == 4096 * 4


def test_boundaries_and_objects_are_counted_per_class(run: Path, seen: tuple[ndarray, ndarray, ndarray]) -> None:
    result = evaluate(run, "test", config=replace(SCORED, boundary_m=0.2, objects="green"))
    truth, mapped = np.where(seen[0] < 0, 255, seen[0]).astype(np.uint8), seen[2].astype(np.uint8)
    tolerance, boundary, objects = 0.2 / 0.1, np.zeros((2, 4), np.int64), np.zeros(3, np.int64)
    for block in range(4):
        # Four tiles of 32 make one block of the column of blocks of the test split.
        square = [np.s_[:, i] for i in range(4 * block, 4 * block + 4)]
        whole = [
            np.block([[some[square[0]], some[square[1]]], [some[square[2]], some[square[3]]]])
            for some in (truth, mapped)
        ]
        boundary += [boundary_counts(t, m, 2, tolerance)[1] for t, m in zip(*whole, strict=True)]
        objects += object_counts(whole[0][1], whole[1][1], 1)
    assert result.counts.shapes is not None
    assert result.counts.shapes.objects is not None
    assert result.counts.shapes.boundary is not None
    np.testing.assert_array_equal(result.counts.shapes.objects.sum(axis=0), objects)
    np.testing.assert_array_equal(result.counts.shapes.boundary.sum(axis=0), boundary)


def test_tile_set_with_other_classes_raises(run: Path, tiles: Path, tmp_path: Path) -> None:
    other = overlapping_set(tmp_path / "tiles")
    meta = other / "tileset.json"
    content = json.loads(meta.read_text())
    content["legend"]["names"] = ["red", "blue"]
    meta.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"\('red', 'blue', '\(overlapping\)'\)"):
        evaluate(run, "test", tiles=other)


def test_calibrate_fits_a_threshold_per_class(run: Path, tiles: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    before = evaluate(mine, "val", config=SCORED)
    result = calibrate(mine, config=TILEWISE)
    card = read_card(mine)
    assert card == result.card
    assert card.output_thresholds == card.thresholds == result.after.thresholds
    truth, logits = (each.swapaxes(0, 1) for each in split_logits(run, tiles, "val"))
    logits = logits.astype(np.float64)
    for index, cut in enumerate(card.thresholds):
        known = np.isfinite(truth[index])
        mine_f1, half_f1 = (
            f1_score(truth[index][known] >= 0.5, logits[index][known] / card.temperature >= np.log(c / (1 - c)))
            for c in (cut, 0.5)
        )
        assert mine_f1 >= half_f1
    known = np.isfinite(truth)
    loss = log_loss(truth[known] >= 0.5, 1 / (1 + np.exp(-logits[known] / card.temperature)))
    assert result.after.log_loss == pytest.approx(loss, rel=1e-4)
    assert result.after.log_loss <= result.before.log_loss
    after = evaluate(mine, "val", config=SCORED)
    assert after.metrics["overall"]["f1"].value == pytest.approx(result.after.f1, abs=1e-3)
    assert before.metrics["overall"]["f1"].value == pytest.approx(result.before.f1, abs=1e-3)
    assert after.metrics["brier"]["brier"].value == pytest.approx(result.after.brier, abs=1e-6)
    assert any(line.startswith("threshold of green ") for line in result.lines())
