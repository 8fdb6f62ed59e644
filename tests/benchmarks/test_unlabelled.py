"""The pseudo-label benchmark: labelled and unlabelled tiles, the teacher's pseudo-labels, the table."""

from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

import unlabelled
from geograft.dataset.tileset import TileSet
from geograft.geo.rasters.raster import close_labels
from geograft.legend import IGNORE
from tests.support.rasters import read_labels
from tests.support.runs import PixelwisePredictor, make_run
from unlabelled import TEACHER, PseudoLabelTrial, TrialResults, pseudo_labels, student_name, table_rows


class Teacher(PixelwisePredictor):
    """Predicts class 1 with probability 0.95 in the upper half of every window, and class 0 with 0.8 below."""

    def predict_run(self, seen: ndarray) -> ndarray:
        probabilities = np.full((len(seen), 2, *seen.shape[2:]), 0.8, np.float32)
        probabilities[:, 1] = 0.2
        half = seen.shape[2] // 2
        probabilities[:, 0, :half], probabilities[:, 1, :half] = 0.05, 0.95
        return probabilities


@pytest.fixture
def trial(tiles: Path, tmp_path: Path) -> PseudoLabelTrial:
    return PseudoLabelTrial(TileSet.open(tiles), 25, 0, tmp_path / "trial", tmp_path / "none.safetensors")


def test_every_training_tile_is_labelled_or_unlabelled_and_labelled_ones_are_repeated(trial: PseudoLabelTrial) -> None:
    train = trial.tile_set.split("train")
    assert len(trial.labelled) == round(len(train) / 4)
    assert {*trial.labelled, *trial.unlabelled} == set(train)
    assert len(trial.labelled) + len(trial.unlabelled) == len(train)
    assert trial.repeats * len(trial.labelled) >= len(trial.unlabelled) / 2 > (trial.repeats - 1) * len(trial.labelled)


def test_a_teacher_and_its_student_take_equally_many_steps(
    trial: PseudoLabelTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(
        PseudoLabelTrial, "train", lambda _, tiles, __, repeat, ___: shown.append(len(tiles) * repeat) or Path("run")
    )
    monkeypatch.setattr(unlabelled, "pseudo_labels", lambda *_: {})
    unlabelled.teacher(trial)
    unlabelled.student(trial, 0.9)
    assert shown[0] == pytest.approx(shown[1], abs=len(trial.labelled) / 2)


def test_a_teacher_labels_confident_pixels_of_unlabelled_tiles_only(
    trial: PseudoLabelTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Teacher)
    # Windows side by side are the tiles.
    make_run(trial.folder / "teacher", trial.tile_set.meta.legend, overlap_px=0)
    masks = trial.folder / "masks"
    quality = pseudo_labels(trial, 0.9, masks)
    truths = []
    for tile in trial.unlabelled:
        truth = read_labels(trial.tile_set.mask_path(tile.scene), tile.window)
        label = read_labels(masks / f"{tile.scene}.tif", tile.window)
        assert (label[:16] == 1).all()
        assert (label[16:] == IGNORE).all()
        truths.append(truth[:16] == 1)
    assert quality == {"labelled": 0.5, "accuracy": pytest.approx(np.mean(truths))}
    for tile in (*trial.labelled, *trial.tile_set.split("val")):
        truth = read_labels(trial.tile_set.mask_path(tile.scene), tile.window)
        assert (read_labels(masks / f"{tile.scene}.tif", tile.window) == truth).all()
    close_labels()


def test_the_table_has_the_gain_by_seed_and_its_interval(tmp_path: Path) -> None:
    results = TrialResults(tmp_path / "results.json")
    for seed in (0, 1):
        for name, hits in ((TEACHER, 50), (student_name(0.9), 60 + 10 * seed)):
            counts = [[[100, 0], [100 - hits, hits]]] * 4
            results.scores[f"10 %, seed {seed}, {name}"] = {"confusion": counts, "labelled": 0.5, "accuracy": 0.75}
    teacher, student = table_rows(results, [10], [0.9], [0, 1])
    assert teacher[1].startswith("0.500")
    assert student[1:] == ["0.650 (0.650 to 0.650)", "+0.150 (+0.150 to +0.150)", "+0.100, +0.200", "50.0%", "75.0%"]


def test_cached_results_are_not_trained_again(
    trial: PseudoLabelTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unlabelled, "teacher", lambda _: Path("teacher"))
    monkeypatch.setattr(unlabelled, "student", lambda *_: (Path("student"), {"labelled": 0.5, "accuracy": 0.5}))
    monkeypatch.setattr(unlabelled, "score_run", lambda *_: {"confusion": []})
    TrialResults(tmp_path / "results.json").fill(trial, [0.9])
    monkeypatch.setattr(unlabelled, "score_run", lambda *_: pytest.fail("computed again"))
    TrialResults(tmp_path / "results.json").fill(trial, [0.9])
