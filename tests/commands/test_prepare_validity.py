"""Nodata in some bands, and bands tagged alpha, from the tile set to the card of a run."""

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
from shapely import box

from geograft.card import read_cards
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import InputError
from geograft.geo.rasters.nodata import ValidityRule
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import make_run

CONFIG = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    corners = [(16 + 64 * row, 16 + 64 * col) for row in range(4) for col in range(4)]
    squares = [box(*(TENTH_METRE @ (col, row + 32)), *(TENTH_METRE @ (col + 32, row))) for row, col in corners]
    geopandas.GeoDataFrame(geometry=squares, crs=UTM12).to_file(tmp_path / "labels.gpkg")
    return tmp_path / "labels.gpkg"


def test_nodata_in_one_band_is_not_trained_on_and_counted(tmp_path: Path, labels: Path) -> None:
    pixels = textured(3, 256, 256).astype(np.float32)
    pixels[1, :, 100:130] = -9999
    image = write_raster(tmp_path / "a.tif", pixels, nodata=-9999)
    source = VectorSource((image,), labels)
    default, all_bands = (prepare(source, tmp_path / rule, replace(CONFIG, nodata=rule)) for rule in ("auto", "all"))
    assert 100 < default.meta.mean[1] < 150
    assert all_bands.meta.mean[1] < 0
    for tiles in (default, all_bands):
        assert any(f"{256 * 30:,}" in text for text in tiles.meta.source.values())
        samples = tiles.samples("train")
        read = np.concatenate([samples[i][0][1].ravel() for i in range(len(samples))])
        assert (read == -9999).any() == (tiles is all_bands)
    assert default.meta.fingerprint != all_bands.meta.fingerprint


def test_a_tile_set_without_nodata_has_no_such_note(tmp_path: Path, labels: Path) -> None:
    image = write_raster(tmp_path / "a.tif", textured(3, 256, 256), nodata=0)
    assert list(prepare(VectorSource((image,), labels), tmp_path / "tiles", CONFIG).meta.source) == ["labels"]


@pytest.mark.parametrize("spectral", [True, False])
def test_a_band_tagged_alpha_is_said_and_can_be_kept(tmp_path: Path, labels: Path, spectral: bool) -> None:
    pixels = textured(4, 256, 256)
    pixels[3] = pixels[3] if spectral else 255
    image = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", alpha="yes")
    source = VectorSource((image,), labels)
    masked = prepare(source, tmp_path / "masked", CONFIG)
    kept = prepare(source, tmp_path / "kept", replace(CONFIG, alpha=False))
    note = next(text for text in masked.lines() if "--no-alpha" in text)
    assert note.startswith("WARNING") is spectral
    assert (masked.meta.bands, kept.meta.bands) == (3, 4)
    assert not any("--no-alpha" in text for text in kept.lines())
    assert kept.samples("train")[0][0].shape == (4, 32, 32)
    assert kept.meta.validity == ValidityRule(alpha=False)
    assert len(kept.meta.mean) == 4


def test_images_of_which_one_has_an_alpha_tag_need_no_alpha(tmp_path: Path, labels: Path) -> None:
    tagged = write_raster(tmp_path / "a.tif", textured(4, 256, 256), photometric="RGB", alpha="yes")
    plain = write_raster(tmp_path / "b.tif", textured(4, 256, 256), photometric="MINISBLACK", alpha="no")
    source = VectorSource((tagged, plain), labels)
    with pytest.raises(InputError, match="--no-alpha"):
        prepare(source, tmp_path / "tiles", CONFIG)
    assert prepare(source, tmp_path / "tiles", replace(CONFIG, alpha=False)).meta.bands == 4


def test_runs_of_different_rules_are_not_averaged(tmp_path: Path) -> None:
    runs = (make_run(tmp_path / "a"), make_run(tmp_path / "b", nodata="any"))
    with pytest.raises(InputError, match="nodata"):
        read_cards(runs)


@pytest.mark.parametrize("value", [1e300, -1.7e308])
def test_pixels_that_float32_cannot_represent_are_invalid(tmp_path: Path, labels: Path, value: float) -> None:
    pixels = textured(1, 256, 256).astype(np.float64)
    pixels[0, :, 100:130] = value
    image = write_raster(tmp_path / "a.tif", pixels)
    tiles = prepare(VectorSource((image,), labels), tmp_path / "tiles", CONFIG)
    assert 100 < tiles.meta.mean[0] < 150
    assert tiles.meta.std[0] < 100
