"""The experiment with tiles without labels: which tiles are which, what a teacher's labels are, the table."""

from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

import unlabelled
from geograft.dataset.tileset import TileSet
from geograft.geo.rasters.raster import close_labels, read_labels
from geograft.legend import IGNORE
from unlabelled import TEACHER, Place, Shelf, name_of, pseudo_labels, rows_of


class Teacher:
    """Is 0.95 sure of class 1 in the upper half of every tile, and 0.8 of class 0 below."""

    @classmethod
    def load(cls, _run: Path) -> "Teacher":
        return cls()

    def __call__(self, images: ndarray, _valid: ndarray) -> ndarray:
        likely = np.full((len(images), 2, *images.shape[2:]), 0.8, np.float32)
        likely[:, 1] = 0.2
        half = images.shape[2] // 2
        likely[:, 0, :half], likely[:, 1, :half] = 0.05, 0.95
        return likely


@pytest.fixture
def place(tiles: Path, tmp_path: Path) -> Place:
    return Place(TileSet.open(tiles), 25, 0, tmp_path / "place", tmp_path / "none.safetensors")


def test_every_training_tile_is_labelled_or_not_and_labelled_ones_come_often_enough(place: Place) -> None:
    train = place.whole.split("train")
    assert len(place.labelled) == round(len(train) / 4)
    assert {*place.labelled, *place.others} == set(train)
    assert len(place.labelled) + len(place.others) == len(train)
    assert place.times * len(place.labelled) >= len(place.others) / 2 > (place.times - 1) * len(place.labelled)


def test_a_teacher_and_its_student_take_as_many_steps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(
        Place, "trained", lambda _, tiles, __, repeat, ___: shown.append(len(tiles) * repeat) or Path("run")
    )
    monkeypatch.setattr(unlabelled, "pseudo_labels", lambda *_: {})
    unlabelled.teacher(place)
    unlabelled.student(place, 0.9)
    assert shown[0] == pytest.approx(shown[1], abs=len(place.labelled) / 2)


def test_a_teacher_labels_what_it_is_sure_of_where_there_are_no_labels(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unlabelled, "Predictor", Teacher)
    masks = place.folder / "masks"
    said = pseudo_labels(place, 0.9, masks)
    truths = []
    for tile in place.others:
        truth = read_labels(place.whole.mask_path(tile.scene), tile.window)
        label = read_labels(masks / f"{tile.scene}.tif", tile.window)
        assert (label[:16] == 1).all()
        assert (label[16:] == IGNORE).all()
        truths.append(truth[:16] == 1)
    assert said == {"labelled": 0.5, "right": pytest.approx(np.mean(truths))}
    for tile in (*place.labelled, *place.whole.split("val")):
        truth = read_labels(place.whole.mask_path(tile.scene), tile.window)
        assert (read_labels(masks / f"{tile.scene}.tif", tile.window) == truth).all()
    close_labels()


def test_the_table_has_the_gain_by_seed_and_its_interval(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "results.json")
    for seed in (0, 1):
        for name, hits in ((TEACHER, 50), (name_of(0.9), 60 + 10 * seed)):
            counts = [[[100, 0], [100 - hits, hits]]] * 4
            shelf.points[f"10 %, seed {seed}, {name}"] = {"confusion": counts, "labelled": 0.5, "right": 0.75}
    teacher, student = rows_of(shelf, [10], [0.9], [0, 1])
    assert teacher[1].startswith("0.500")
    assert student[1:] == ["0.650 (0.650 to 0.650)", "+0.150 (+0.150 to +0.150)", "+0.100, +0.200", "50.0%", "75.0%"]


def test_what_is_there_is_not_trained_again(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled, "teacher", lambda _: Path("teacher"))
    monkeypatch.setattr(unlabelled, "student", lambda *_: (Path("student"), {"labelled": 0.5, "right": 0.5}))
    monkeypatch.setattr(unlabelled, "point", lambda *_: {"confusion": []})
    Shelf(tmp_path / "results.json").fill(place, [0.9])
    monkeypatch.setattr(unlabelled, "point", lambda *_: pytest.fail("done again"))
    Shelf(tmp_path / "results.json").fill(place, [0.9])
