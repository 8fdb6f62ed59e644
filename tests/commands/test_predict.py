"""Maps of whole rasters: what is in the file, what is refused, and what a kill leaves."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy import ndarray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from geograft.card import read_card
from geograft.commands.predict import predict
from geograft.config import ModelConfig, PredictConfig
from geograft.errors import InputError, OutputError
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.styles import sidecar_paths
from geograft.geo.rasters.tags import CARD_TAG, legend_from_tags
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.training.checkpoint import save_weights
from tests.support.full_disk import max_file_size
from tests.support.rasters import TENTH_METRE, textured, write_raster
from tests.support.runs import COVERS, TREES, ContextPredictor, PixelwisePredictor, make_run

ROOT = Path(__file__).parents[2]

LEDGER = ".map.part/ledger.json"


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every test maps with the pointwise network unless it is parametrised or says otherwise."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", getattr(request, "param", PixelwisePredictor))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def read(path: Path) -> ndarray:
    """Return the bands of a raster, with or without a place on the ground."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as raster:
            pixels: ndarray = raster.read()
    return pixels


def rows_done(folder: Path) -> int:
    """Return how many rows the strips of a ledger have, in a raster of one panel."""
    lines = (folder / "strips.tsv").read_text().splitlines()[1:]
    return sum(int(line.split("\t")[2]) for line in lines)


def left_in(folder: Path) -> set[str]:
    """Return the names of what is in a folder, without the run, the scene, and the names and styles of maps there."""
    names = {path.name for path in folder.iterdir()} - {"run", "scene.tif"}
    beside = {file.name for name in names if name.endswith(".tif") for file in sidecar_paths(folder / name)}
    return names - beside


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_map_is_the_class_of_every_pixel(tmp_path: Path, run: Path) -> None:
    pixels = textured(3, 150, 130)
    pixels[:, 20:90, 30:60] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    prediction = predict(run, (scene,), tmp_path / "map.tif")
    expected = np.where(pixels[0] / 255 >= 0.5, 2, 1)
    expected[20:90, 30:60] = 255
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], expected)
    assert prediction.maps[0].pixels == {"other": (expected == 1).sum(), "trees": (expected == 2).sum()}
    assert left_in(tmp_path) == {"map.tif"}


def test_the_file_is_cloud_optimised_and_says_what_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", COVERS)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 700, 600))
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(overlap=0.0))
    with rasterio.open(tmp_path / "map.tif") as raster, rasterio.open(scene) as source:
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (raster.crs, raster.transform, raster.shape) == (source.crs, source.transform, source.shape)
        assert (raster.count, raster.dtypes, raster.nodata) == (1, ("uint8",), 255)
        assert raster.overviews(1) == [2]
        assert raster.compression.name == "deflate"
        assert raster.colorinterp == (ColorInterp.palette,)
        for value, colour in zip(COVERS.values, COVERS.colours, strict=True):
            assert "#{:02X}{:02X}{:02X}".format(*raster.colormap(1)[value][:3]) == colour
        tags = raster.tags()
    assert {value: tags[f"CLASS_{value}"] for value in COVERS.values} == dict(
        zip(COVERS.values, COVERS.names, strict=True)
    )
    assert json.loads(tags[CARD_TAG])["name"] == "run"
    assert legend_from_tags(tags) == COVERS


def test_classes_are_named_by_their_tags_where_no_card_is() -> None:
    assert legend_from_tags({"CLASS_7": "trees", "CLASS_10": "water", "AREA_OR_POINT": "Area"}) == Legend(
        ("trees", "water"), (7, 10)
    )
    assert legend_from_tags({"AREA_OR_POINT": "Area"}) is None
    assert legend_from_tags({"CLASS_7": "trees"}) is None


@pytest.mark.parametrize("legend", [TREES, COVERS])
def test_probabilities_are_250_for_certain_and_255_for_unknown(tmp_path: Path, legend: Legend) -> None:
    run = make_run(tmp_path / "run", legend)
    pixels = textured(3, 60, 70)
    pixels[:, 10:20] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8"))
    found = read(tmp_path / "map.probabilities.tif")
    expected = PixelwisePredictor(read_card(run)).predict_run(pixels[None].astype(np.float32))[0] * 250
    valid = np.ones((60, 70), bool)
    valid[10:20] = False
    assert (found[:, ~valid] == 255).all()
    assert np.abs(found - expected)[:, valid].max() <= 0.5 + 1e-2
    if legend.binary:
        assert (found.astype(int).sum(axis=0)[valid] == 250).all()
    with rasterio.open(tmp_path / "map.probabilities.tif") as raster:
        assert raster.descriptions == legend.names
        assert (raster.nodata, raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"]) == (255, "COG")


@pytest.mark.parametrize(("threshold", "trees"), [(0.3, 3), (0.30001, 2), (0.7, 2), (0.9, 1), (0.95, 0)])
def test_class_1_is_where_its_probability_reaches_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float, trees: int
) -> None:
    levels = np.array([0.1, 0.3, 0.7, 0.9], np.float32)

    class Levels(PixelwisePredictor):
        def predict_run(self, seen: ndarray) -> ndarray:
            p = levels[seen[:, 0].astype(int) - 1]
            return np.stack([1 - p, p], axis=1)

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Levels)
    pixels = np.tile(np.arange(1, 5, dtype=np.uint8), (3, 9, 1))
    run = make_run(tmp_path / "run", threshold=threshold)
    predict(run, (write_raster(tmp_path / "scene.tif", pixels),), tmp_path / "map.tif")
    assert (read(tmp_path / "map.tif") == 2).sum() == 9 * trees


@pytest.mark.parametrize("network", [ContextPredictor], indirect=True)
def test_what_lies_under_nodata_decides_nothing(tmp_path: Path, run: Path) -> None:
    """The same pixels, unknown by nodata value, by mask with noise underneath, and by NaN, give the same map."""
    pixels = textured(3, 90, 80)
    known = np.random.default_rng(1).random((90, 80)) < 0.8
    known[30:60, 20:50] = False
    write_raster(tmp_path / "value.tif", np.where(known, pixels, 0).astype(np.uint8), nodata=0)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(tmp_path / "mask.tif", np.where(known, pixels, textured(3, 90, 80, seed=5)))
        with rasterio.open(tmp_path / "mask.tif", "r+") as raster:
            raster.write_mask(known)
    write_raster(tmp_path / "nan.tif", np.where(known, pixels, np.nan).astype(np.float32))
    floating = make_run(tmp_path / "floating" / "run", dtype="float32")
    runs = {"value": run, "mask": run, "nan": floating}
    for name, trained in runs.items():
        predict(
            trained, (tmp_path / f"{name}.tif",), tmp_path / f"{name}-map.tif", PredictConfig(probabilities="uint8")
        )
    for kind in ("map", "map.probabilities"):
        value, mask, nan = (read(tmp_path / f"{name}-{kind}.tif") for name in runs)
        np.testing.assert_array_equal((value == 255).all(axis=0), ~known)
        np.testing.assert_array_equal(value, mask)
        np.testing.assert_array_equal(value, nan)


PLACES: dict[str, dict[str, Any]] = {
    "no CRS": {"crs": None},
    "no place": {"crs": None, "transform": Affine.identity()},
    "rotated": {"transform": TENTH_METRE @ Affine.rotation(33)},
    "south up": {"transform": Affine(0.1, 0, 528000, 0, 0.1, 4979000)},
    "degrees": {"crs": "EPSG:4326", "transform": Affine(1e-6, 0, -110.6, 0, -1e-6, 44.9)},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_any_place_on_the_ground_is_kept(tmp_path: Path, run: Path, place: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = write_raster(tmp_path / "scene.tif", textured(3, 50, 60), **place)
        predict(run, (scene,), tmp_path / "map.tif")
        with rasterio.open(tmp_path / "map.tif") as made, rasterio.open(scene) as source:
            assert made.crs == source.crs
            assert made.transform.almost_equals(source.transform)
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], np.where(read(scene)[0] / 255 >= 0.5, 2, 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 3), (31, 33)])
def test_rasters_smaller_than_a_tile(tmp_path: Path, run: Path, shape: tuple[int, int]) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, *shape))
    predict(run, (scene,), tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], np.where(read(scene)[0] / 255 >= 0.5, 2, 1))


def test_a_real_network_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    run = make_run(tmp_path / "run")
    network = build(ModelConfig(architecture="unet"), 3, 1)
    save_weights(run / "model.safetensors", network)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 50, 60))
    prediction = predict(
        run, (scene,), tmp_path / "map.tif", PredictConfig(device="cpu", backend="torch", probabilities="uint8")
    )
    values, probabilities = read(tmp_path / "map.tif")[0], read(tmp_path / "map.probabilities.tif")
    assert set(np.unique(values)) <= {1, 2}
    clear = np.abs(probabilities[1].astype(int) - 125) > 1
    np.testing.assert_array_equal(values[clear] == 2, (probabilities[1] > 125)[clear])
    assert sum(prediction.maps[0].pixels.values()) == 3000


# ------------------------------------------------------------------------------------------------ what is said about it


def test_the_lines_name_the_files_the_shares_and_the_notes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", resolution_m=0.3)
    pixels = np.full((3, 40, 100), 10, np.uint8)
    pixels[:, :, :25] = 250
    scene = write_raster(tmp_path / "scene.tif", pixels)
    lines = predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8")).lines()
    assert re.fullmatch(rf"{tmp_path}/map.tif: 100 x 40 pixels, 0.00 Mpx in [\d.]+ s \([\d.]+ Mpx/s\)", lines[0])
    assert [line.split() for line in lines[1:3]] == [["other", "75.0%"], ["trees", "25.0%"]]
    assert lines[3] == f"{tmp_path}/map.probabilities.tif: the probability of every class"
    assert lines[4] == "predicted with torch in float32, windows of 32 pixels that overlap by 16"
    assert lines[5].startswith("Note: ")
    assert all(fact in lines[5] for fact in (str(scene), "0.1 m", "0.3 m", "--resample"))


@pytest.mark.parametrize(("trained_m", "notes"), [(0.1, 0), (0.14, 0), (0.07, 0), (0.16, 1), (0.06, 1), (None, 0)])
def test_another_ground_resolution_is_noted(tmp_path: Path, trained_m: float | None, notes: int) -> None:
    run = make_run(tmp_path / "run", resolution_m=trained_m)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 10, 10))
    assert len(predict(run, (scene,), tmp_path / "map.tif").notes) == notes


# ------------------------------------------------------------------------------------------------------ several rasters


def sheets(folder: Path, pixels: ndarray, *corners: tuple[int, int, int, int]) -> tuple[Path, ...]:
    """Write windows (row, col, height, width) of one scene as rasters of their own."""
    return tuple(
        write_raster(
            folder / f"sheet-{i}.tif",
            pixels[:, row : row + height, col : col + width],
            TENTH_METRE @ Affine.translation(col, row),
            nodata=0,
        )
        for i, (row, col, height, width) in enumerate(corners)
    )


@pytest.mark.parametrize("network", [ContextPredictor], indirect=True)
def test_sheets_become_one_map_without_a_seam(tmp_path: Path, run: Path) -> None:
    pixels = textured(3, 100, 120)
    pixels[:, 60:, 70:] = 0
    parts = sheets(tmp_path, pixels, (0, 50, 60, 70), (0, 0, 65, 55), (55, 0, 45, 70))
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(run, parts, tmp_path / "map.tif")
    predict(run, (scene,), tmp_path / "whole.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))
    with rasterio.open(tmp_path / "map.tif") as made:
        assert made.transform.almost_equals(TENTH_METRE)


def test_where_sheets_overlap_the_first_valid_pixel_counts(tmp_path: Path, run: Path) -> None:
    first, second = np.full((3, 20, 20), 10, np.uint8), np.full((3, 20, 20), 250, np.uint8)
    first[:, :, 15:] = 0
    one = write_raster(tmp_path / "one.tif", first, nodata=0)
    other = write_raster(tmp_path / "other.tif", second, TENTH_METRE @ Affine.translation(10, 0), nodata=0)
    predict(run, (one, other), tmp_path / "map.tif")
    assert read(tmp_path / "map.tif")[0, 0].tolist() == [1] * 15 + [2] * 15


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "CRS": ({"crs": "EPSG:32613"}, "UTM zone 13N.* UTM zone 12N"),
    "no CRS": ({"crs": None}, "CRS"),
    "pixel size": ({"transform": TENTH_METRE @ Affine.scale(2)}, "pixels"),
    "rotated": ({"transform": TENTH_METRE @ Affine.rotation(5)}, "pixels"),
    "shifted": ({"transform": TENTH_METRE @ Affine.translation(9.5, 0)}, "pixels"),
}


@pytest.mark.parametrize(("change", "fault"), MISFITS.values(), ids=MISFITS.keys())
def test_sheets_that_do_not_fit_are_refused(tmp_path: Path, run: Path, change: dict[str, Any], fault: str) -> None:
    one = write_raster(tmp_path / "one.tif", textured(3, 20, 20))
    other = write_raster(tmp_path / "other.tif", textured(3, 20, 20), **change)
    with pytest.raises(InputError, match=rf"other\.tif .*one\.tif.*{fault}"):
        predict(run, (one, other), tmp_path / "map.tif")
    assert left_in(tmp_path) == {"one.tif", "other.tif"}


def test_images_without_georeference_are_no_mosaic(tmp_path: Path, run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        parts = [write_raster(tmp_path / f"{i}.tif", textured(3, 9, 9), Affine.identity(), None) for i in range(2)]
    with pytest.raises(InputError, match=r"\.tif"):
        predict(run, parts, tmp_path / "map.tif")


def test_a_folder_gets_one_map_a_raster_and_keeps_those_that_are_finished(tmp_path: Path, run: Path) -> None:
    scenes = [write_raster(tmp_path / f"{name}.tif", textured(3, 30, 30, i)) for i, name in enumerate("ab")]
    first = predict(run, scenes[:1], tmp_path / "maps")
    before = (tmp_path / "maps" / "a.tif").stat().st_mtime_ns
    both = predict(run, scenes, tmp_path / "maps")
    assert (first.path, both.path) == (tmp_path / "maps",) * 2
    assert left_in(tmp_path / "maps") == {"a.tif", "b.tif"}
    assert (tmp_path / "maps" / "a.tif").stat().st_mtime_ns == before
    assert both.lines()[0].startswith(f"{tmp_path}/maps/a.tif: 30 x 30 pixels")
    assert all(result.computed_px == 0 for result in both.maps[:1])
    with pytest.raises(OutputError, match=r"a\.tif"):
        predict(run, scenes, tmp_path / "maps", PredictConfig(overlap=0.25))


def test_two_rasters_of_one_name_are_refused(tmp_path: Path, run: Path) -> None:
    scenes = [write_raster(tmp_path / folder / "s.tif", textured(3, 9, 9)) for folder in "ab"]
    with pytest.raises(InputError, match=r"\bs\b"):
        predict(run, scenes, tmp_path / "maps")


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (textured(5, 20, 20), r"scene\.tif.* 5 .* 3 \(red, green, blue\)"),
        (textured(3, 20, 20).astype(np.uint16), r"scene\.tif.* uint16.* uint8"),
        (np.zeros((3, 20, 20), np.uint8), r"scene\.tif"),
    ],
)
def test_a_raster_unlike_the_training_is_refused(tmp_path: Path, run: Path, pixels: ndarray, fault: str) -> None:
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    with pytest.raises(InputError, match=fault):
        predict(run, (scene,), tmp_path / "map.tif")
    assert left_in(tmp_path) == set()


def test_no_raster_or_a_missing_one_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="raster"):
        predict(run, (), tmp_path / "map.tif")
    with pytest.raises(InputError, match=r"none\.tif"):
        predict(run, (tmp_path / "none.tif",), tmp_path / "map.tif")


@pytest.mark.parametrize("there", ["map.tif", "map.probabilities.tif"])
def test_what_is_there_already_is_not_touched(tmp_path: Path, run: Path, there: str) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 20, 20))
    (tmp_path / there).write_text("mine")
    with pytest.raises(OutputError, match=f"{there}"):
        predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8"))
    assert left_in(tmp_path) == {there}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, run: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 20, 20))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"\.tif|map"):
        predict(run, (scene,), tmp_path / "file" / "map.tif")
    with pytest.raises(OutputError, match=r"\.tif"):
        predict(run, (scene,), tmp_path / "map.png")
    assert left_in(tmp_path) == {"file"}


# ------------------------------------------------------------------------------------------------ what a failure leaves


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let reading fail after as many windows as the only number in the list says."""
    left, read = [10**9], Mosaic.read

    def failing(self: Mosaic, window: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise InputError("the cable is out")
        return read(self, window)

    monkeypatch.setattr(Mosaic, "read", failing)
    yield left


@pytest.mark.parametrize("network", [ContextPredictor], indirect=True)
def test_finished_strips_survive_a_failure_and_are_reused(
    tmp_path: Path, run: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    whole = predict(run, (scene,), tmp_path / "whole" / "map.tif").maps[0]
    reads[0] = 8
    with pytest.raises(InputError, match=r"the cable is out .*% .*\.map\.part"):
        predict(run, (scene,), tmp_path / "map.tif")
    ledger = json.loads((tmp_path / LEDGER).read_text())
    assert (ledger["complete"], ledger["origin"]["settings"]["overlap_px"]) == (False, 16)
    done = rows_done(tmp_path / ".map.part")
    assert 0 < done < 150
    reads[0] = 10**9
    made = predict(run, (scene,), tmp_path / "map.tif").maps[0]
    assert made.computed_px == (150 - done) * 100 < whole.computed_px
    assert made.pixels == whole.pixels
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole" / "map.tif").read_bytes()
    assert left_in(tmp_path) == {"map.tif", "whole"}


def test_a_failure_before_the_first_strip_leaves_nothing(tmp_path: Path, run: Path, reads: list[int]) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    reads[0] = 0
    with pytest.raises(InputError, match=r"^the cable is out$"):
        predict(run, (scene,), tmp_path / "map.tif")
    assert left_in(tmp_path) == set()


def change_raster(folder: Path) -> None:
    os.utime(folder / "scene.tif", ns=(0, 10**18))


def change_weights(folder: Path) -> None:
    (folder / "run" / "model.safetensors").write_bytes(b"others")


def change_nothing(_: Path) -> None: ...


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (change_raster, {}, "rasters.0.modified was .*, is 2001-09-09 01:46:40.000000000"),
        (change_weights, {}, "runs.0.weights was .*, is "),
        (change_nothing, {"overlap": 0.25}, "settings.overlap_px was 16, is 8"),
        (change_nothing, {"window_px": 48, "overlap": 1 / 3}, "settings.window_px was 32, is 48"),
        (change_nothing, {"batch_size": 3}, "settings.batch_size was 0, is 3"),
    ],
)
def test_a_changed_origin_is_noticed(
    tmp_path: Path, run: Path, reads: list[int], change: Any, settings: dict[str, Any], named: str
) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    reads[0] = 8
    with pytest.raises(InputError, match="cable"):
        predict(run, (scene,), tmp_path / "map.tif")
    reads[0] = 10**9
    change(tmp_path)
    with pytest.raises(InputError, match=rf"\.map\.part .*{named}.*\.map\.part"):
        predict(run, (scene,), tmp_path / "map.tif", PredictConfig(**settings))
    assert left_in(tmp_path) == {".map.part"}


def test_asking_for_the_runs_own_windows_is_no_other_setting(tmp_path: Path, run: Path, reads: list[int]) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    reads[0] = 8
    with pytest.raises(InputError, match="cable"):
        predict(run, (scene,), tmp_path / "map.tif")
    reads[0] = 10**9
    made = predict(run, (scene,), tmp_path / "map.tif", PredictConfig(window_px=32, overlap=0.5)).maps[0]
    assert 0 < made.computed_px < 150 * 100


def test_a_damaged_ledger_is_one_line(tmp_path: Path, run: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 20, 20))
    (tmp_path / LEDGER).parent.mkdir()
    for text in ("{", "[]", '{"complete": false}'):
        (tmp_path / LEDGER).write_text(text)
        with pytest.raises(InputError, match=r"ledger\.json .*\.map\.part"):
            predict(run, (scene,), tmp_path / "map.tif")


def test_a_truncated_raster_is_named_and_the_rest_kept(tmp_path: Path, run: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 300, 200), compress="deflate")
    os.truncate(scene, scene.stat().st_size * 2 // 3)
    with pytest.raises(InputError, match=r"scene\.tif.*% .*\.map\.part"):
        predict(run, (scene,), tmp_path / "map.tif")
    assert left_in(tmp_path) == {".map.part"}


@pytest.mark.parametrize("size", [600, 4000])
def test_a_full_disk_is_one_line_and_leaves_what_is_finished(tmp_path: Path, run: Path, size: int) -> None:
    """600 bytes do not hold a strip; 4000 hold every strip but not the map."""
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    with pytest.raises(OutputError, match=r"\.tif|map"), max_file_size(size):
        predict(run, (scene,), tmp_path / "map.tif")
    assert left_in(tmp_path) <= {".map.part"}
    predict(run, (scene,), tmp_path / "map.tif")
    assert left_in(tmp_path) == {"map.tif"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_prediction_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.kill_predict", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moments = [line.split() for line in done.stdout.splitlines()]
    assert len(moments) == 25
    assert {signal for _, signal, _ in moments} == {"9"}
    assert len({strips for *_, strips in moments}) >= 5
    files = {"map.tif", "map.probabilities.tif", "map.uncertainty.tif", "map.applicability.tif"}
    for name, *_ in moments:
        assert left_in(tmp_path / name) == files
        for file in sorted(path.name for path in (tmp_path / "whole").iterdir()):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (name, file)
