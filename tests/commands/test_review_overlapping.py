"""`geograft review` of overlapping classes: each class is reviewed by itself."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from numpy import ndarray
from shapely import box

from geograft.commands.review import review
from geograft.config import ReviewConfig
from geograft.metrics.errors import CORRECT, FALSE_NEGATIVE, FALSE_POSITIVE
from tests.support.overlapping import LEGEND, overlapping_set
from tests.support.rasters import TENTH_METRE
from tests.support.runs import PixelwisePredictor, make_run

PLANTED = (96, 144)


class BandOracle(PixelwisePredictor):
    """Predicts each class with high probability where its band is bright."""

    def predict_run(self, seen: ndarray) -> ndarray:
        found: ndarray = np.where(seen[:, :2] > 130, 0.94, 0.04).astype(np.float32)
        return found


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", BandOracle)


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """A tile set whose mask has the second class inverted in one square of 16 pixels."""
    tiles = overlapping_set(tmp_path / "tiles")
    with rasterio.open(tiles / "masks" / "scene0.tif", "r+") as raster:
        mask = raster.read()
        row, col = PLANTED
        mask[1, row : row + 16, col : col + 16] = 250 - mask[1, row : row + 16, col : col + 16]
        raster.write(mask)
    return tiles


def test_a_label_error_in_one_class_is_found_in_that_class(tmp_path: Path, flawed: Path) -> None:
    run = make_run(tmp_path / "run", LEGEND)
    result = review(run, tmp_path / "review", flawed, ReviewConfig(suspect_px=100))
    with rasterio.open(flawed / "scene0.tif") as raster:
        seen = raster.read([1, 2]) > 130
    with rasterio.open(flawed / "masks" / "scene0.tif") as raster:
        mask = raster.read()
    expected = np.where(seen == (mask == 250), CORRECT, np.where(seen, FALSE_POSITIVE, FALSE_NEGATIVE))
    expected[mask == 255] = 255
    with rasterio.open(tmp_path / "review" / "errors" / "scene0.tif") as raster:
        assert raster.descriptions == LEGEND.names
        assert raster.tags()["CLASS_2"] == "the band's class: false positive"
        np.testing.assert_array_equal(raster.read(), expected)
    wrong = np.isin(expected, (FALSE_NEGATIVE, FALSE_POSITIVE))
    assert result.findings.error_rate == pytest.approx(wrong.sum() / (mask != 255).sum())
    suspects = geopandas.read_file(tmp_path / "review" / "suspects.gpkg")
    row, col = PLANTED
    square = box(*(TENTH_METRE @ (col, row + 16)), *(TENTH_METRE @ (col + 16, row)))
    worst = suspects.iloc[0]
    assert len(suspects) == 1
    assert {worst["labelled"], worst["predicted"]} == {"green", "no green"}
    assert worst.geometry.intersection(square).area > 0.95 * square.area
    tiles = geopandas.read_file(tmp_path / "review" / "worst.gpkg")
    first = tiles[tiles["rank"] == 1].iloc[0]
    assert (first["row"], first["col"]) == (PLANTED[0], PLANTED[1] // 32 * 32)
    part = wrong[:, first["row"] : first["row"] + 32, first["col"] : first["col"] + 32]
    assert first["error_rate"] == pytest.approx(part.mean())
    assert first["labelled_px"] == 1024
