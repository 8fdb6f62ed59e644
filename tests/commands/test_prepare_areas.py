"""`geograft prepare vector` with labels.gpkg of a project, and what the commands after it make of such a tile set."""

import json
from pathlib import Path

import numpy as np
import pytest

import geograft
from geograft.cli import app
from geograft.commands.evaluate import evaluate
from geograft.commands.review import review
from geograft.commands.train import train
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.label_file import write_label_file
from geograft.legend import IGNORE, Legend
from tests.commands.test_train import SMALL
from tests.support.labelled_areas import GRID, SCORING, TRAINING, project_areas, trees, write_project
from tests.support.rasters import read_labels
from tests.support.runs import PixelwisePredictor, make_run

pytestmark = pytest.mark.usefixtures("only_torch")

FLAGS = ["--tile-px", "48", "--buffer-px", "6", "--val", "0.25"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("areas")
    write_project(folder)
    command = ["prepare", "vector", folder / "scene.tif", "--labels", folder / "labels.gpkg", "--out", folder / "tiles"]
    app([*map(str, command), *FLAGS], result_action="return_value")
    return folder / "tiles"


def test_the_tile_set_says_what_is_scored(tiles: Path) -> None:
    assert "areas: 3 training areas, 4 of 4 random scoring areas, the test split" in TileSet.open(tiles).lines()
    content = json.loads((tiles / "tileset.json").read_text())
    assert content["settings"]["split"] == "areas"
    assert {area["kind"] for area in content["areas"]} == {"random scoring area", "block"}


def test_python_makes_the_same_tile_set(tiles: Path, tmp_path: Path) -> None:
    folder = tiles.parent
    made = geograft.prepare_vector(
        folder / "scene.tif", folder / "labels.gpkg", tmp_path / "tiles", tile_px=48, buffer_px=6, val=0.25
    )
    assert made.meta.fingerprint == TileSet.open(tiles).meta.fingerprint


def test_scores_are_over_the_random_scoring_areas(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    tile_set = TileSet.open(tiles)
    run = make_run(tmp_path / "run", Legend(("background", "tree")), data_fingerprint=tile_set.meta.fingerprint)
    result = evaluate(run, "test", tiles, tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert (content["interval"]["units"], content["interval"]["unit"]) == (4, "random scoring area")
    assert content["interval"]["description"] == "4 random scoring areas of 1 scene"
    assert [(unit["unit"], unit["row"], unit["col"]) for unit in content["per_unit"]] == [
        (f"area {number}", window.row, window.col) for number, window in enumerate(SCORING, start=4)
    ]
    labels = read_labels(tile_set.mask_path("scene"), GRID.window)
    for unit, window in zip(content["per_unit"], SCORING, strict=True):
        truth = labels[window.slices]
        assert np.sum(unit["confusion"], axis=1).tolist() == [int((truth == 0).sum()), int((truth == 1).sum())]
    assert "4 random scoring areas" in result.lines()[-1]
    assert "too narrow" in result.lines()[-1]


def test_boundaries_and_objects_are_counted_by_area(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    run = make_run(tmp_path / "run", Legend(("background", "tree")))
    config = geograft.config.EvaluateConfig(boundary_m=0.2, objects="tree")
    content = evaluate(run, "test", tiles, tmp_path / "scores.json", config=config).content("test")
    assert content["objects"]["labelled"] == 4


def test_training_and_review_use_such_a_tile_set(tiles: Path, tmp_path: Path) -> None:
    run = train(tiles, tmp_path / "run", SMALL).run
    review(run, out=tmp_path / "review")
    assert (tmp_path / "review").is_dir()


@pytest.mark.parametrize("length", [200, 30000])
def test_a_truncated_label_file_is_one_line_and_leaves_nothing(length: int, tmp_path: Path) -> None:
    source = write_project(tmp_path)
    path = tmp_path / "labels.gpkg"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"labels\.gpkg") as caught:
        geograft.prepare_vector(source.images, path, tmp_path / "tiles")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiles").exists()


def test_most_of_a_large_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_project(tmp_path)
    write_label_file(tmp_path / "labels.gpkg", project_areas(TRAINING[:1], []), trees(TRAINING[:1]), GRID.crs)
    read: list[Window] = []
    original = Image.read_counted

    def read_counted(image: Image, window: Window) -> object:
        read.append(window)
        return original(image, window)

    monkeypatch.setattr("geograft.commands.prepare.COUNT_BLOCK", (64, 64))
    monkeypatch.setattr(Image, "read_counted", read_counted)
    made = geograft.prepare_vector(source.images, source.labels, tmp_path / "tiles", tile_px=48, val=0)
    assert read == [Window(0, 0, 64, 64)]
    mask = read_labels(made.mask_path("scene"), GRID.window)
    assert (mask != IGNORE).sum() == 56 * 56
