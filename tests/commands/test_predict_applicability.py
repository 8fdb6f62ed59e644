"""`--applicability`: what `train` keeps of its ground, and what `predict` says of other ground."""

import os
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from numpy import ndarray
from shapely import box

from geograft.card import CARD, FEATURES_FILE, STATE, read_card
from geograft.commands.predict import MapResult, predict
from geograft.commands.train import train
from geograft.config import PredictConfig, Recipe
from geograft.errors import InputError
from geograft.geo.rasters.tags import SCALE_TAG
from geograft.inference.embedding import CellEncoder, load_cell_encoder
from geograft.mapping.applicability import estimate_seconds
from geograft.metrics.applicability import Applicability
from tests.commands.test_predict import left_in
from tests.support.rasters import TENTH_METRE, UTM12, write_raster
from tests.support.runs import PixelwisePredictor

pytestmark = pytest.mark.usefixtures("only_torch")

SMALL = Recipe().with_settings(model={"architecture": "unet"}, train={"epochs": 1, "device": "cpu"})
ASKED = PredictConfig(applicability=True, device="cpu", overlap=0.0)


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL).run


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map itself is not looked at here."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)


def read(path: Path) -> ndarray:
    with rasterio.open(path) as raster:
        band: ndarray = raster.read(1)
    return band


def scene(fields: Path) -> ndarray:
    with rasterio.open(fields / "scene.tif") as raster:
        pixels: ndarray = raster.read()
    return pixels


def test_a_run_says_what_it_knows_the_same_way_every_time(run: Path, tiles: Path) -> None:
    before = (run / FEATURES_FILE).read_bytes()
    known = Applicability.read(run / FEATURES_FILE)
    assert len(known.points) == 40
    assert known.threshold > 0
    for name in (FEATURES_FILE, CARD):
        (run / name).unlink()
    assert train(tiles, run, SMALL, resume=True).notes == ()
    assert (run / FEATURES_FILE).read_bytes() == before


def test_a_run_whose_tiles_cannot_be_compared_says_so(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.commands.train.fit_training_features", lambda *_: None)
    made = train(tiles, tmp_path / "run", SMALL)
    assert len(made.notes) == 1
    assert not (made.run / FEATURES_FILE).exists()
    assert (made.run / CARD).exists()


def test_the_ground_of_training_is_inside(run: Path, fields: Path, tmp_path: Path) -> None:
    made = predict(run, (fields / "scene.tif",), tmp_path / "map.tif", ASKED)
    outside = made.maps[0].outside_fraction
    assert outside is not None
    assert outside <= 0.1
    assert made.notes == ()
    assert f"{tmp_path}/map.applicability.tif: {outside:.1%}" in "\n".join(made.lines())


def test_the_negative_of_it_is_outside_and_the_user_is_told(run: Path, fields: Path, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "scene.tif", 255 - scene(fields))
    made = predict(run, (other,), tmp_path / "map.tif", ASKED)
    assert made.maps[0].outside_fraction == 1
    assert (read(tmp_path / "map.applicability.tif") > 1).all()
    assert len(made.notes) == 1
    assert made.notes[0].startswith(f"100.0% of {tmp_path}/map.tif")
    assert "`geograft sample`" in made.notes[0]


@pytest.mark.parametrize(("outside", "notes"), [(None, 0), (0.0, 0), (0.1, 0), (0.1001, 1)])
def test_more_than_a_tenth_is_noted(outside: float | None, notes: int) -> None:
    made = MapResult(Path("map.tif"), None, None, (2, 2), {"a": 4}, 4, 1.0, Path("map.applicability.tif"), outside, 4)
    assert len(made.notes) == notes


def test_each_pixel_is_the_index_of_its_cell(run: Path, fields: Path, tmp_path: Path) -> None:
    """A raster that ends inside cells; computed by hand from its mirror image."""
    pixels = scene(fields)[:, :70, 30:129]
    pixels[:, :, 50:] //= 2
    other = write_raster(tmp_path / "scene.tif", pixels)
    predict(run, (other,), tmp_path / "map.tif", ASKED)
    card, known = read_card(run), Applicability.read(run / FEATURES_FILE)
    encoder = load_cell_encoder(run, card, "cpu")
    whole = np.pad(pixels, [(0, 0), (0, 26), (0, 29)], "reflect").reshape(3, 3, 32, 4, 32)
    tiles = whole.transpose(1, 3, 0, 2, 4).reshape(12, 3, 32, 32)
    features, _ = encoder(tiles, np.ones((12, 32, 32), bool))
    expected = (known.dissimilarity_index(features) / known.threshold).reshape(3, 4)
    with rasterio.open(tmp_path / "map.applicability.tif") as raster:
        assert raster.read(1) == pytest.approx(expected, rel=1e-3)
        assert (raster.count, raster.dtypes, str(raster.crs)) == (1, ("float32",), UTM12)
        assert np.isnan(raster.nodata)
        assert raster.transform.almost_equals(TENTH_METRE @ TENTH_METRE.scale(32))
        assert "outside above 1" in raster.tags()[SCALE_TAG]


def test_cells_without_a_mapped_pixel_or_with_few_valid_ones_have_no_value(
    run: Path, fields: Path, tmp_path: Path
) -> None:
    pixels = scene(fields)[:, :96, :128]
    pixels[:, :32, :32] = 0
    pixels[:, 32:49, 32:64] = 0
    pixels[:, 64:79, 64:96] = 0
    other = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    area = box(*(TENTH_METRE @ (0, 96)), *(TENTH_METRE @ (97, 0)))
    geopandas.GeoDataFrame(geometry=[area], crs=UTM12).to_file(tmp_path / "area.gpkg")
    predict(run, (other,), tmp_path / "map.tif", ASKED)
    none = np.zeros((3, 4), bool)
    none[0, 0] = none[1, 1] = True
    assert np.array_equal(np.isnan(read(tmp_path / "map.applicability.tif")), none)
    predict(run, (other,), tmp_path / "left.tif", ASKED, tmp_path / "area.gpkg")
    assert np.array_equal(read(tmp_path / "left.applicability.tif"), read(tmp_path / "map.applicability.tif"), True)
    small = box(*(TENTH_METRE @ (0, 96)), *(TENTH_METRE @ (96, 0)))
    geopandas.GeoDataFrame(geometry=[small], crs=UTM12).to_file(tmp_path / "small.gpkg")
    predict(run, (other,), tmp_path / "small.tif", ASKED, tmp_path / "small.gpkg")
    none[:, 3] = True
    assert np.array_equal(np.isnan(read(tmp_path / "small.applicability.tif")), none)


def test_shares_are_of_mapped_pixels(run: Path, fields: Path, tmp_path: Path) -> None:
    """Three cells: one known, one unknown, and half of one unknown that the area of interest does not hold."""
    pixels = scene(fields)[:, :32, :96]
    pixels[:, :, 32:] = 255 - pixels[:, :, 32:]
    other = write_raster(tmp_path / "scene.tif", pixels)
    area = box(*(TENTH_METRE @ (0, 32)), *(TENTH_METRE @ (80, 0)))
    geopandas.GeoDataFrame(geometry=[area], crs=UTM12).to_file(tmp_path / "area.gpkg")
    made = predict(run, (other,), tmp_path / "map.tif", ASKED, tmp_path / "area.gpkg")
    inside = read(tmp_path / "map.applicability.tif") <= 1
    assert inside.tolist() == [[True, False, False]]
    assert made.maps[0].outside_fraction == pytest.approx(48 / 80)


def test_runs_without_it_say_what_to_do_and_map_without_it(run: Path, fields: Path, tmp_path: Path) -> None:
    for name in ("card.json", "model.safetensors"):
        (tmp_path / "old" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "old" / name).write_bytes((run / name).read_bytes())
    raster = (fields / "scene.tif",)
    with pytest.raises(InputError, match=r"training_features\.safetensors.*--applicability"):
        predict(tmp_path / "old", raster, tmp_path / "map.tif", ASKED)
    (tmp_path / "old" / STATE).write_bytes((run / STATE).read_bytes())
    with pytest.raises(InputError, match=r"training_features\.safetensors.*geograft train TILES --out .*old --resume"):
        predict(tmp_path / "old", raster, tmp_path / "map.tif", ASKED)
    (tmp_path / "old" / FEATURES_FILE).write_bytes(b"none")
    with pytest.raises(InputError, match=r"training_features\.safetensors"):
        predict(tmp_path / "old", raster, tmp_path / "map.tif", ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    made = predict(tmp_path / "old", raster, tmp_path / "map.tif", PredictConfig(device="cpu", overlap=0.0))
    assert made.maps[0].outside_fraction is None
    assert left_in(tmp_path) == {"old", "map.tif"}
    # Of several runs it is the first that is asked.
    predict((run, tmp_path / "old"), raster, tmp_path / "both.tif", ASKED)
    assert (tmp_path / "both.applicability.tif").exists()


def test_the_same_bytes_again_and_nothing_over_what_is_there(run: Path, fields: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        predict(run, (fields / "scene.tif",), tmp_path / name / "map.tif", ASKED)
    one, two = ((tmp_path / name / "map.applicability.tif").read_bytes() for name in ("one", "two"))
    assert one == two
    (tmp_path / "map.applicability.tif").write_bytes(b"mine")
    with pytest.raises(Exception, match=r"map\.applicability\.tif"):
        predict(run, (fields / "scene.tif",), tmp_path / "map.tif", ASKED)


def test_a_raster_that_changes_in_between_leaves_nothing(
    run: Path, fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_raster(tmp_path / "scene.tif", scene(fields))
    look = CellEncoder.__call__

    def touching(encoder: CellEncoder, pixels: ndarray, valid: ndarray) -> tuple[ndarray, ndarray]:
        os.utime(other, (1, 1))
        return look(encoder, pixels, valid)

    monkeypatch.setattr(CellEncoder, "__call__", touching)
    with pytest.raises(InputError, match=r"scene\.tif.*rasters\.0"):
        predict(run, (other,), tmp_path / "map.tif", ASKED)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif"}


def test_a_dry_run_counts_it_in(run: Path, fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.applicability.estimate_seconds", lambda _: 1e6)
    made = predict(run, (fields / "scene.tif",), tmp_path / "map.tif", ASKED, dry_run=True)
    assert 1e6 <= made.forecasts[0].seconds < 2e6
    monkeypatch.setattr("geograft.mapping.applicability.estimate_seconds", estimate_seconds)
    predict(run, (fields / "scene.tif",), tmp_path / "map.tif", ASKED, dry_run=True)
    assert not list(tmp_path.iterdir())
