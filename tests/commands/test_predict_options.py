"""What can be asked of predict beside the map: ensembles, areas, bands, resolutions, uncertainty, a dry run."""

import json
import os
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy import ndarray
from shapely import box

import geograft.mapping.plan
from geograft.card import read_card, read_cards
from geograft.cli import main
from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.errors import InputError, OutputError
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.tags import BACKEND_TAG, SCALE_TAG
from geograft.legend import Legend
from geograft.mapping.blend import BlendPlan, blend
from geograft.mapping.plan import COMPARED_WINDOWS
from geograft.mapping.sums import PROBABILITY_STEPS, WEIGHT_SUM
from geograft.mapping.windows import Lanes, TileGrid
from tests.commands.test_predict import left_in, read
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import COVERS, TREES, ContextPredictor, PixelwisePredictor, make_run


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every test maps with the contextual network unless it is parametrised or says otherwise."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", getattr(request, "param", ContextPredictor))


pointwise = pytest.mark.parametrize("network", [PixelwisePredictor], indirect=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def holed(height: int, width: int) -> ndarray:
    """Return a scene with nodata in it, one gap as wide as the scene."""
    pixels = textured(3, height, width)
    pixels[:, 40:75] = 0
    pixels[:, 90:140, 30:80] = 0
    return pixels


# ------------------------------------------------------------------------------------------------- bits and their order


@pytest.mark.parametrize("panel_px", [1, 50, 10**6])
def test_the_files_are_the_same_for_any_width_of_panels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, panel_px: int
) -> None:
    run = make_run(tmp_path / "run", COVERS)
    scene = write_raster(tmp_path / "scene.tif", holed(160, 130), nodata=0)
    config = PredictConfig(probabilities="float16", uncertainty=True, batch_size=3)
    predict(run, (scene,), tmp_path / "expected" / "map.tif", config)
    monkeypatch.setattr(geograft.mapping.plan, "panel_width", lambda *_: panel_px)
    predict(run, (scene,), tmp_path / "map.tif", config)
    for name in ("map.tif", "map.probabilities.tif", "map.uncertainty.tif"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_probabilities_hardly_depend_on_the_batch_size(tmp_path: Path) -> None:
    """A real network; what it computes may round differently in batches of other sizes."""
    import torch

    from geograft.config import ModelConfig
    from geograft.inference.predictor import EnsemblePredictor
    from geograft.networks.network import build

    torch.manual_seed(0)
    run = make_run(tmp_path / "run")
    from geograft.training.checkpoint import save_weights

    save_weights(run / "model.safetensors", build(ModelConfig(architecture="unet"), 3, 1))
    with rasterio.open(write_raster(tmp_path / "scene.tif", holed(150, 60), nodata=0)) as raster:
        pixels = raster.read()
    found = []
    for batch_size in (1, 3, 8):
        from tests.support.blending import Scene, assemble

        mapper = EnsemblePredictor.load((run,), device="cpu", backend="torch", batch_size=batch_size)
        tiles = TileGrid(150, 60, 32, 0.5)
        strips = list(blend(BlendPlan(Lanes(tiles, 10**6), 1, batch_size), Scene(pixels, pixels.any(axis=0)), mapper))
        sums, mapped = assemble(tiles, strips)
        found.append(sums[:, mapped] / (PROBABILITY_STEPS * WEIGHT_SUM**2))
    assert np.ptp(np.array(found), axis=0).max() <= 1e-5
    assert np.ptp(found[0]) > 0.01


# ---------------------------------------------------------------------------------------------------- nodata and areas


def test_nodata_decides_nothing_anywhere(tmp_path: Path, run: Path) -> None:
    """Other values under the mask: not a bit changes, 64 pixels away or beside it."""
    pixels, known = textured(3, 200, 150), np.ones((200, 150), bool)
    known[80:120, 50:100] = False
    maps = []
    for name, under in (("zero", 0), ("noise", textured(3, 200, 150, seed=9)), ("white", 255)):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            scene = write_raster(tmp_path / f"{name}.tif", np.where(known, pixels, under).astype(np.uint8))
            with rasterio.open(scene, "r+") as raster:
                raster.write_mask(known)
        predict(run, (scene,), tmp_path / f"map-{name}.tif", PredictConfig(probabilities="float16"))
        maps.append(read(tmp_path / f"map-{name}.probabilities.tif"))
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])
    assert np.isnan(maps[0][0]).sum() == 40 * 50


def area(path: Path, *windows: tuple[int, int, int, int]) -> Path:
    """Write windows (row, col, height, width) of a scene at TENTH_METRE as polygons in degrees."""
    shapes = [box(*(TENTH_METRE @ (c, r + h)), *(TENTH_METRE @ (c + w, r))) for r, c, h, w in windows]
    frame = geopandas.GeoDataFrame({"name": ["here"] * len(shapes)}, geometry=shapes, crs=UTM12)
    frame.to_file(path)
    return path


def test_an_area_of_interest_is_mapped_as_in_the_whole_map_and_little_else_is_read(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = textured(3, 600, 500)
    pixels[:, 310:330, 210:230] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(run, (scene,), tmp_path / "whole.tif")
    reads: list[Any] = []
    method = Mosaic.read
    monkeypatch.setattr(Mosaic, "read", lambda self, window: reads.append(window) or method(self, window))
    aoi = area(tmp_path / "area.gpkg", (300, 200, 50, 60))
    made = predict(run, (scene,), tmp_path / "map.tif", aoi=aoi).maps[0]
    expected = np.full((600, 500), 255, np.uint8)
    expected[300:350, 200:260] = read(tmp_path / "whole.tif")[0, 300:350, 200:260]
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], expected)
    assert sum(made.pixels.values()) == 50 * 60 - 20 * 20
    assert all(window.row + 31 >= 300 - 31 and window.row <= 350 for window in reads)
    # Eight tiles are read at once.
    assert all(window.stop_col > 200 - 8 * 16 - 32 and window.col < 260 + 8 * 16 + 32 for window in reads)


def test_an_area_without_a_valid_pixel_is_refused(tmp_path: Path, run: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", holed(160, 130), nodata=0)
    aoi = area(tmp_path / "area.gpkg", (45, 10, 20, 20))
    with pytest.raises(InputError, match=r"scene\.tif.*area\.gpkg"):
        predict(run, (scene,), tmp_path / "map.tif", aoi=aoi)
    assert left_in(tmp_path) == {"area.gpkg"}


# --------------------------------------------------------------------------------------------------- several runs, TTA


@pointwise
@pytest.mark.parametrize("legend", [TREES, COVERS])
def test_several_runs_are_averaged_and_their_spread_is_the_uncertainty(tmp_path: Path, legend: Legend) -> None:
    runs = [make_run(tmp_path / "runs" / name, legend) for name in "ab"]
    pixels = textured(3, 60, 70)
    pixels[:, 10:20] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(runs, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="float16", uncertainty=True))
    network = PixelwisePredictor(read_card(runs[0]), len(runs), spread=True)
    each = np.stack([network.predict_run(pixels[None].astype(np.float32) / np.float32(n))[0] for n in (1, 2)])
    valid = pixels[0] > 0
    found, uncertain = read(tmp_path / "map.probabilities.tif"), read(tmp_path / "map.uncertainty.tif")[0]
    np.testing.assert_allclose(found[:, valid], each.mean(axis=0)[:, valid], atol=1e-3)
    np.testing.assert_allclose(uncertain[valid], each.std(axis=0).max(axis=0)[valid] / 0.5, atol=2e-3)
    assert np.isnan(uncertain[~valid]).all()
    with rasterio.open(tmp_path / "map.uncertainty.tif") as raster:
        assert "standard deviation" in raster.tags()[SCALE_TAG]
        assert (raster.count, raster.descriptions) == (1, ("uncertainty",))


@pointwise
@pytest.mark.parametrize("legend", [TREES, COVERS])
def test_uncertainty_of_one_run_is_the_entropy_of_its_probabilities(tmp_path: Path, legend: Legend) -> None:
    run = make_run(tmp_path / "run", legend)
    pixels = textured(3, 60, 70)
    scene = write_raster(tmp_path / "scene.tif", pixels)
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(uncertainty=True))
    p = PixelwisePredictor(read_card(run)).predict_run(pixels[None].astype(np.float32))[0]
    expected = -(p * np.log(p)).sum(axis=0) / np.log(len(p))
    found = read(tmp_path / "map.uncertainty.tif")[0]
    assert np.abs(found - expected * 250).max() <= 0.5 + 1e-2
    with rasterio.open(tmp_path / "map.uncertainty.tif") as raster:
        assert raster.tags()[SCALE_TAG].endswith("0 to 250 stand for 0 to 1")
        assert (raster.nodata, raster.dtypes) == (255, ("uint8",))


def test_settings_reach_the_mapper(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Asked(PixelwisePredictor):
        @classmethod
        def load(cls, runs: Any, **options: Any) -> PixelwisePredictor:
            seen.update(options, runs=runs)
            return super().load(runs, **options)

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Asked)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 60, 70))
    config = PredictConfig(tta=4, backend="onnx", compile=True, device="cpu", batch_size=5)
    predict(run, (scene,), tmp_path / "map.tif", config)
    pixels, valid = seen.pop("sample")
    assert seen.pop("cards") == read_cards([run])
    assert pixels.shape == (COMPARED_WINDOWS, 3, 32, 32)
    assert valid.all()
    assert seen == {
        "runs": (run,),
        "tta": 4,
        "backend": "onnx",
        "compile": True,
        "device": "cpu",
        "batch_size": 5,
        "window_px": 32,
        "spread": False,
    }


# ------------------------------------------------------------------------------------------ bands and ground resolution


@pointwise
def test_bands_are_taken_in_the_order_that_is_given(tmp_path: Path, run: Path) -> None:
    pixels = textured(5, 40, 50)
    scene = write_raster(tmp_path / "scene.tif", pixels, photometric="MINISBLACK")
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(bands=(4, 1, 2)))
    np.testing.assert_array_equal(read(tmp_path / "map.tif")[0], np.where(pixels[3] / 255 >= 0.5, 2, 1))
    with pytest.raises(InputError, match=r"--bands .*2 .*3"):
        predict(run, (scene,), tmp_path / "other.tif", PredictConfig(bands=(4, 1)))
    with pytest.raises(InputError, match="9"):
        predict(run, (scene,), tmp_path / "other.tif", PredictConfig(bands=(4, 1, 9)))


@pointwise
def test_rasters_are_brought_to_the_resolution_of_training_when_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", resolution_m=0.2)
    pixels = np.full((3, 80, 120), 10, np.uint8)
    pixels[:, :, 60:] = 250
    scene = write_raster(tmp_path / "scene.tif", pixels)
    asked = predict(run, (scene,), tmp_path / "map.tif", PredictConfig(resample=True))
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.shape == (40, 60)
        assert raster.transform.almost_equals(TENTH_METRE @ Affine.scale(2))
    assert not asked.notes
    found = read(tmp_path / "map.tif")[0]
    assert (found[:, :28] == 1).all()
    assert (found[:, 32:] == 2).all()
    (note,) = predict(run, (scene,), tmp_path / "plain.tif").notes
    assert all(fact in note for fact in ("0.1 m", "0.2 m", "--resample"))


def test_resampling_needs_the_resolution_of_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", resolution_m=None)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 20, 20))
    with pytest.raises(InputError, match="--resample"):
        predict(run, (scene,), tmp_path / "map.tif", PredictConfig(resample=True))


# -------------------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_writes_nothing_and_says_how_much_there_is(tmp_path: Path, run: Path) -> None:
    pixels = textured(3, 700, 200)
    pixels[:, 100:] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0, SPARSE_OK=True)
    before = sorted(tmp_path.rglob("*"))
    told = predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8"), dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert told.maps == ()
    (forecast,) = told.forecasts
    assert (forecast.blocks, forecast.all_blocks) == (1, 2)
    tiles = TileGrid(700, 200, 32, 0.5)
    assert forecast.all_tiles == len(tiles.tops) * len(tiles.lefts)
    # The file's blocks of 64 pixels say that rows from 128 on are empty.
    assert forecast.tiles == sum(top < 128 for top in tiles.tops) * len(tiles.lefts)
    assert forecast.batch_s is not None
    assert forecast.seconds == pytest.approx(-(-forecast.tiles // 8) * forecast.batch_s)
    assert any(f"{forecast.tiles:,} " in t and f"{forecast.all_tiles:,} " in t for t in told.lines())
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8"))
    written = sum((tmp_path / name).stat().st_size for name in ("map.tif", "map.probabilities.tif"))
    assert written < forecast.map_bytes + 20_000


def test_a_dry_run_knows_what_is_done_and_what_is_all_nodata(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    with monkeypatch.context() as patch:
        patch.setattr("geograft.mapping.job.write_class_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(run, (scene,), tmp_path / "map.tif")
    (forecast,) = predict(run, (scene,), tmp_path / "map.tif", dry_run=True).forecasts
    assert (forecast.tiles, forecast.done_tiles) == (0, forecast.all_tiles)
    empty = write_raster(tmp_path / "empty.tif", np.zeros((3, 50, 50), np.uint8), nodata=0)
    (forecast,) = predict(run, (empty,), tmp_path / "none.tif", dry_run=True).forecasts
    assert (forecast.batch_s, forecast.seconds) == (None, 0)


# ------------------------------------------------------------------------------------------------ changes while at work


def test_a_raster_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, method = write_raster(tmp_path / "scene.tif", textured(3, 150, 100)), Mosaic.read

    def read_and_touch(self: Mosaic, window: Any) -> Any:
        os.utime(scene, ns=(0, 10**18 + window.row))
        return method(self, window)

    monkeypatch.setattr(Mosaic, "read", read_and_touch)
    with pytest.raises(InputError, match=r"scene\.tif.*rasters\.0\.modified was "):
        predict(run, (scene,), tmp_path / "map.tif")
    assert left_in(tmp_path) == set()


def test_a_source_of_a_vrt_that_changed_is_noticed(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_raster(tmp_path / "source.tif", textured(3, 90, 60))
    import rasterio.shutil

    vrt = tmp_path / "scene.vrt"
    rasterio.shutil.copy(source, vrt, driver="VRT")
    with monkeypatch.context() as patch:
        patch.setattr("geograft.mapping.job.write_class_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(run, (vrt,), tmp_path / "map.tif")
    os.utime(source, ns=(0, 10**18))
    with pytest.raises(InputError, match=r"rasters\.0\.(modified|state)"):
        predict(run, (vrt,), tmp_path / "map.tif")


def test_a_job_goes_on_with_the_backend_it_began_with(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fastest may differ from day to day; "auto" asks for what is in the ledger or the finished map."""
    asked: list[str] = []

    class Fastest(PixelwisePredictor):
        @classmethod
        def load(cls, runs: Any, **options: Any) -> PixelwisePredictor:
            asked.append(options["backend"])
            made = super().load(runs, **options)
            made.backend = "openvino" if options["backend"] == "auto" else options["backend"]
            return made

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Fastest)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 60, 50))
    with monkeypatch.context() as patch:
        patch.setattr("geograft.mapping.job.write_class_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(run, (scene,), tmp_path / "maps")
    predict(run, (scene,), tmp_path / "maps")
    assert not predict(run, (scene,), tmp_path / "maps").maps[0].pixels
    assert asked == ["auto", "openvino", "openvino"]
    with rasterio.open(tmp_path / "maps" / "scene.tif") as raster:
        assert raster.tags()[BACKEND_TAG] == "openvino"


def test_a_backend_that_does_not_exist_is_not_taken_from_an_earlier_map(tmp_path: Path, run: Path) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 60, 50))
    with rasterio.open(write_raster(tmp_path / "map.tif", textured(1, 9, 9)), "r+") as raster:
        raster.update_tags(**{BACKEND_TAG: "abacus"})
    with pytest.raises(OutputError, match=r"map\.tif"):
        predict(run, (scene,), tmp_path / "map.tif")


def test_a_line_that_a_kill_cut_short_is_not_counted(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    whole = predict(run, (scene,), tmp_path / "whole" / "map.tif")
    with monkeypatch.context() as patch:
        patch.setattr("geograft.mapping.job.write_class_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(run, (scene,), tmp_path / "map.tif")
    strips = tmp_path / ".map.part" / "strips.tsv"
    text = strips.read_text()
    strips.write_text(text[: len(text) * 2 // 3])
    ledger = tmp_path / ".map.part" / "ledger.json"
    ledger.write_text(json.dumps(json.loads(ledger.read_text()) | {"complete": False}))
    made = predict(run, (scene,), tmp_path / "map.tif")
    assert made.maps[0].pixels == whole.maps[0].pixels
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole" / "map.tif").read_bytes()


def test_a_lost_or_short_strip_is_one_line(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_raster(tmp_path / "scene.tif", textured(3, 150, 100))
    with monkeypatch.context() as patch:
        patch.setattr("geograft.mapping.job.write_class_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(run, (scene,), tmp_path / "map.tif")
    strip = tmp_path / ".map.part" / "strip-00000003.npz"
    strip.write_bytes(strip.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"strip-00000003\.npz.* \d+ bytes.*\.map\.part"):
        predict(run, (scene,), tmp_path / "map.tif")
    strip.unlink()
    with pytest.raises(InputError, match=r"strip-00000003\.npz"):
        predict(run, (scene,), tmp_path / "map.tif")


# ---------------------------------------------------------------------------------------------------- the command line


def command(*words: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert not ended.value.code


def test_the_command_takes_all_of_it(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(tmp_path / "other")
    scene = write_raster(tmp_path / "scene.tif", textured(5, 60, 70), photometric="MINISBLACK")
    aoi = area(tmp_path / "area.gpkg", (10, 10, 30, 30))
    out = tmp_path / "map.tif"
    words = ["predict", run, scene, "--out", out, "--ensemble", other, "--aoi", aoi, "--bands", "3", "2", "1"]
    words += ["--probabilities", "float16", "--uncertainty", "--tta", "2"]
    command(*words, "--dry-run")
    assert "tiles" in capsys.readouterr().out
    assert not out.exists()
    command(*words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: 70 x 60 pixels")
    assert f"{tmp_path}/map.uncertainty.tif: the uncertainty of every pixel" in lines
