"""`geograft go`: what it makes from a project, what it repeats after changes, and what it refuses."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile
from shapely import box
from shapely.geometry.base import BaseGeometry

from geograft.card import CARD
from geograft.cli import main
from geograft.commands import go as steps
from geograft.commands import project_work
from geograft.commands.go import Outcome, go
from geograft.commands.predict import Prediction, predict
from geograft.commands.project import project
from geograft.config import EvaluateConfig, ModelConfig, PredictConfig, PrepareConfig, SuggestConfig, TrainConfig
from geograft.config.recipes import AreaConfig
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.geo.grid import Window
from geograft.geo.vectors.label_file import Area, Label, read_label_file, write_label_file
from geograft.geo.vectors.reader import read_frame
from geograft.locks import lock_output
from tests.support.gis import qgis_project
from tests.support.rasters import TENTH_METRE, textured, write_raster

SIZE, SIDE = 192, 16
CPU: dict[str, Any] = {"device": "cpu", "backend": "torch"}
QUICK: dict[str, Any] = {
    "prepare": PrepareConfig(tile_px=32, buffer_px=4),
    "model": ModelConfig(architecture="unet"),
    "train": TrainConfig(epochs=1, device="cpu"),
    "evaluate": EvaluateConfig(**CPU),
    "predict": PredictConfig(**CPU, probabilities="uint8"),
    "suggest": SuggestConfig(**CPU, tiles=3),
}
TRAINING = ((0, 0), (0, 96))
"""Rows and columns of the training areas, 64 pixels wide and high."""
ALL = ("train", "map scene", "suggest", "report")


def square(row: int, col: int, side: int) -> BaseGeometry:
    return box(*(TENTH_METRE @ (col, row + side)), *(TENTH_METRE @ (col + side, row)))


def label(folder: Path, training: int, scoring: int, class_name: str = "field") -> None:
    """Label areas of the project: every second square of 16 pixels is a field."""
    path = folder / "labels.gpkg"
    content = read_label_file(path)
    random = [area for area in content.areas if area.origin == "random"]
    drawn = [Area(square(*corner, 64), "training", labelled=i < training) for i, corner in enumerate(TRAINING)]
    areas = [Area(a.shape, "scoring", "random", a.rank is not None and a.rank <= scoring, a.rank) for a in random]
    fields = [square(row, col, SIDE) for row in range(0, SIZE, 2 * SIDE) for col in range(0, SIZE, 2 * SIDE)]
    write_label_file(path, [*areas, *drawn], [Label(field, class_name) for field in fields], content.crs)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A project with two labelled training areas, after its first `go`."""
    folder = tmp_path_factory.mktemp("go") / "new"
    pixels = textured(3, SIZE, SIZE) // 4
    for row in range(0, SIZE, 2 * SIDE):
        for col in range(0, SIZE, 2 * SIDE):
            pixels[:, row : row + SIDE, col : col + SIDE] += 150
    image = write_raster(folder.parent / "scene.tif", pixels)
    made = project(folder, image, ["field"], AreaConfig(3, 24, seed=1))
    (folder / "project.toml").write_text(replace(made.settings, **QUICK).toml())
    label(folder, training=2, scoring=0)
    return folder, go(folder)


@pytest.fixture
def folder(first: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of that project, with its image."""
    shutil.copytree(first[0].parent, tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy" / "new"


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make steps fail that must not be done."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a step was repeated")

    return lambda *names: [monkeypatch.setattr(steps, name, fail) for name in names] and None


# ------------------------------------------------------------------------------------------------------ what it makes


def test_without_scoring_areas_there_is_a_map_and_no_score(first: tuple[Path, Outcome]) -> None:
    folder, outcome = first
    assert outcome.repeated == ALL
    assert not (folder / "run" / "scores-test.json").exists()
    assert any("number 1" in note for note in outcome.notes)
    with rasterio.open(folder / "maps" / "scene.tif") as raster:
        assert raster.shape == (SIZE, SIZE)
    assert "class" in read_frame(folder / "maps" / "scene.gpkg")
    assert len(read_frame(folder / "suggested.gpkg")) == 3
    assert sorted(path.name for path in (folder / ".go").iterdir()) == ["done.json", "inputs.json"]


def test_a_second_call_repeats_nothing(first: tuple[Path, Outcome], forbid: Callable[..., None]) -> None:
    folder, before = first
    forbid("prepare", "train", "calibrate", "predict", "polygons", "suggest", "report")
    again = go(folder)
    assert again.repeated == ()
    assert again.steps == before.steps
    assert any("Nothing has changed" in line for line in again.lines())


def test_labels_outside_of_labelled_areas_do_not_count(
    first: tuple[Path, Outcome], forbid: Callable[..., None]
) -> None:
    folder, _ = first
    content = read_label_file(folder / "labels.gpkg")
    before = (folder / "labels.gpkg").read_bytes()
    forbid("prepare", "train")
    polygons = content.polygons_in(None)
    labels = [Label(shape, "field") for shape in polygons.shapes] + [Label(square(150, 150, 20), "field")]
    write_label_file(folder / "labels.gpkg", content.areas, labels, content.crs)
    try:
        assert go(folder).repeated == ()
    finally:
        (folder / "labels.gpkg").write_bytes(before)


# ------------------------------------------------------------------------------------------------- what is mapped first

VIEW = Window(32, 64, 64, 48)
AT_VIEW = "scene@32,64,64,48"


def test_the_window_that_is_asked_for_is_mapped_first_with_the_pixels_of_the_whole_map(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(folder, training=2, scoring=1)
    views, older = folder / ".views", (folder / "maps" / "scene.tif").read_bytes()
    (views / "left").mkdir(parents=True)  # of a process that was killed
    seen = {}

    def whole(run: Path, image: Path, out: Path, settings: PredictConfig) -> Prediction:
        assert (folder / "maps" / "scene.tif").read_bytes() == older
        seen.update({path.name: path.read_bytes() for path in views.iterdir()})
        return predict(run, image, out, settings)

    monkeypatch.setattr(steps, "predict", whole)
    assert go(folder, first=[AT_VIEW]).repeated == ("train", "evaluate", *ALL[1:])
    assert {"scene.tif", "scene.probabilities.tif"} <= set(seen) and "left" not in seen
    for name in ("scene.tif", "scene.probabilities.tif"):
        with MemoryFile(seen[name]) as file, file.open() as part, rasterio.open(folder / "maps" / name) as map_of_all:
            mapped = np.zeros((SIZE, SIZE), bool)
            mapped[VIEW.slices] = True
            assert ((part.read() == 255) == ~mapped).all()
            assert (part.read()[:, mapped] == map_of_all.read()[:, mapped]).all()
    assert not views.exists()
    # What is mapped already is not mapped again, not even a part of it.
    monkeypatch.setattr(steps, "predict_window", stop)
    assert go(folder, first=[AT_VIEW]).repeated == ()


def test_an_interrupted_map_leaves_no_view_and_one_without_pixels_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(folder, training=2, scoring=1)
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(steps, "predict", stop)
        go(folder, first=[AT_VIEW])
    assert not (folder / ".views").exists()

    def no_pixel(*_: Any) -> None:
        raise InputError("no valid pixel")

    monkeypatch.setattr(steps, "predict_window", no_pixel)
    assert go(folder, first=[AT_VIEW]).repeated == ("map scene", "suggest", "report")


@pytest.mark.parametrize(
    "text", ["seen", "scene@0,0,8", "scene@0,0,0,8", "scene@0,0,8,193", "scene@190,0,3,8", "scene@-1,0,8,8", "scene@"]
)
def test_what_cannot_be_mapped_first_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(SettingError, match="--first"):
        go(folder, first=[text])


# --------------------------------------------------------------------------------------------------- interrupted calls


class StopError(Exception):
    """Stands for a signal."""


def stop(*_: Any, **__: Any) -> None:
    raise StopError


def test_an_interrupted_call_is_resumed_and_edited_files_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forbid: Callable[..., None]
) -> None:
    label(folder, training=2, scoring=2)
    run, labels = (folder / "run" / CARD).read_bytes(), (folder / "labels.gpkg").read_bytes()
    (folder / "project.qgz").write_bytes(b"edited by a person")

    def interrupted_at(step: str, module: Any = steps) -> None:
        with monkeypatch.context() as patch, pytest.raises(StopError):
            patch.setattr(module, step, stop)
            go(folder)

    interrupted_at("calibrate")
    # Until the new run is finished, the last one stays.
    assert (folder / "run" / CARD).read_bytes() == run
    forbid("prepare")
    interrupted_at("replace_folder", project_work)
    forbid("train", "calibrate")
    interrupted_at("polygons")
    assert (folder / "run" / CARD).read_bytes() != run
    assert (folder / "run" / "scores-test.json").exists()
    forbid("predict", "evaluate")
    assert go(folder).repeated == ("map scene", "suggest", "report")
    assert (folder / "project.qgz").read_bytes() == b"edited by a person"
    assert (folder / "labels.gpkg").read_bytes() == labels
    # Other settings of one step repeat that step.
    monkeypatch.undo()
    forbid("prepare", "train", "calibrate", "suggest", "evaluate")
    monkeypatch.setattr(steps, "report", lambda *_, **__: Outcome(folder, {}, ()))
    assert (folder / "maps" / "scene.probabilities.tif").exists()
    path = folder / "project.toml"
    path.write_text(path.read_text().replace('probabilities = "uint8"\n', ""))
    assert go(folder).repeated == ("map scene", "report")
    assert not (folder / "maps" / "scene.probabilities.tif").exists()


# ------------------------------------------------------------------------------------------------------------ refusals


def test_labels_that_cannot_be_trained_on_are_refused(folder: Path) -> None:
    label(folder, training=0, scoring=3)
    with pytest.raises(InputError, match="no labelled training area"):
        go(folder)
    label(folder, training=2, scoring=0, class_name="filed")
    with pytest.raises(InputError, match="filed"):
        go(folder)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder / "project.toml").unlink(), InputError),
        (lambda folder: (folder / "project.toml").write_text("title = 'a'"), SettingError),
        (lambda folder: (folder / "labels.gpkg").write_bytes(b"SQLite format 3\0"), InputError),
        (lambda folder: (folder / "labels.gpkg").unlink(), InputError),
        (lambda folder: (folder / ".go" / "done.json").unlink(), OutputError),
        (lambda folder: (folder.parent / "scene.tif").unlink(), InputError),
        (lambda folder: (folder / "suggested.gpkg-wal").write_bytes(b"edits"), OutputError),
    ],
    ids=["no project", "settings", "damaged labels", "no labels", "run of others", "no image", "open elsewhere"],
)
def test_damaged_projects_are_refused(
    folder: Path, damage: Callable[[Path], object], error: type[GeograftError]
) -> None:
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(error):
        go(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_second_process_is_refused(first: tuple[Path, Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    with lock_output(first[0]), pytest.raises(SystemExit) as ended:
        main(["go", str(first[0])])
    assert "being written by process" in str(ended.value.code)


# ---------------------------------------------------------------------------------------------------------------- QGIS


def test_qgis_shows_the_results_in_the_project(first: tuple[Path, Outcome], tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    pairs = "scene: polygons=labels,label next=areas"
    found = qgis_project(first[0] / "project.qgz", "--picture", str(picture), "--paste", pairs)
    assert found["groups"]["Results"] == ["label next", "scene: polygons", "scene: map"]
    assert found["not_shown"] == []
    assert all(layer["valid"] for layer in found["layers"].values())
    polygons = found["layers"]["scene: polygons"]
    assert polygons["constants"] == {"origin": "'suggested'"}
    # What is copied to labels.gpkg is marked as suggested.
    assert {"class": "field", "origin": "suggested"}.items() <= found["pasted"]["labels"].items()
    area = {"role": "training", "origin": "suggested", "labelled": False, "rank": 1}
    assert area.items() <= found["pasted"]["areas"].items()
    assert polygons["legend"] == ["field"]
    assert polygons["read_only"]
    assert [name for name, layer in found["layers"].items() if not layer["shown"]] == ["scene: map"]
    assert found["layers"]["scene: map"]["legend"][1:] == ["background", "field"]
    with Image.open(picture) as drawn:
        assert np.ptp(np.asarray(drawn)) > 0
