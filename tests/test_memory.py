"""Sizes in headers and settings that would exhaust the memory: one error before anything is allocated or written."""

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from shapely import box

from geograft.card import read_card
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.suggest import suggest
from geograft.commands.train import train
from geograft.config import PredictConfig, PrepareConfig, Recipe, SuggestConfig, TrainConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import GeograftError, InputError, SettingError
from geograft.geo.rasters.raster import Image
from geograft.mapping.plan import map_sources
from geograft.memory import MAX_BATCH_BYTES, MAX_LANES, MAX_SCENE_PX, MAX_TILES, check_batch
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import PixelwisePredictor, make_run

MAX_ALLOCATED = 50 * 2**20
LARGEST = 2**31 - 1
"""The largest height or width of a VRT."""


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)


@contextmanager
def refused(folder: Path, kind: type[GeograftError], *facts: str) -> Iterator[None]:
    """Assert that the block raises one line with all `facts`, allocates little and writes nothing into `folder`."""
    before = set(folder.rglob("*"))
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught:
            yield
        assert tracemalloc.get_traced_memory()[1] < MAX_ALLOCATED
    finally:
        tracemalloc.stop()
    assert set(folder.rglob("*")) == before
    assert "\n" not in str(caught.value)
    for fact in facts:
        assert fact in str(caught.value)


def write_header(path: Path, height: int, width: int, **options: Any) -> Path:
    """Write a sparse GeoTIFF that has a header and no pixel."""
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "nodata": 0, "crs": UTM12, "transform": TENTH_METRE}
    sparse = {"SPARSE_OK": True, "BIGTIFF": "YES"} | options
    with rasterio.open(path, "w", height=height, width=width, **profile, **sparse):
        return path


def write_empty_vrt(path: Path, height: int, width: int) -> Path:
    """Write a VRT of three bands without sources: all nodata."""
    bands = [
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>0</NoDataValue></VRTRasterBand>'
        for band in (1, 2, 3)
    ]
    place = "<GeoTransform>528000, 0.1, 0, 4979000, 0, -0.1</GeoTransform>"
    size = f'rasterXSize="{width}" rasterYSize="{height}"'
    path.write_text(f"<VRTDataset {size}><SRS>{UTM12}</SRS>{place}{''.join(bands)}</VRTDataset>")
    return path


@given(batch_size=st.integers(1, 10**9), tile_px=st.integers(16, 4096), pixel_bytes=st.integers(1, 12_000))
def test_the_batch_that_the_error_proposes_is_allowed(batch_size: int, tile_px: int, pixel_bytes: int) -> None:
    allowed = MAX_BATCH_BYTES // (tile_px**2 * pixel_bytes)
    if allowed:
        check_batch(allowed, tile_px, pixel_bytes)
    if batch_size > allowed:
        with pytest.raises(SettingError, match=rf"batch_size = {batch_size}: tiles of {tile_px} .*{allowed or ''}"):
            check_batch(batch_size, tile_px, pixel_bytes)


@pytest.mark.parametrize(
    ("tile_px", "batch_size"), [(32, 10**9), (224, 10**9), (4096, 1000)], ids=["small", "usual", "large"]
)
@pytest.mark.parametrize("command", ["predict", "dry run", "suggest"])
def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path, command: str, tile_px: int, batch_size: int) -> None:
    run = make_run(tmp_path / "run", tile_px=tile_px)
    raster, out = write_raster(tmp_path / "a.tif", textured(3, 40, 40)), tmp_path / "out.tif"
    with refused(tmp_path, SettingError, "batch_size", str(batch_size), str(tile_px)):
        if command == "suggest":
            suggest(run, (raster,), out.with_suffix(".gpkg"), SuggestConfig(batch_size=batch_size))
        else:
            predict(run, (raster,), out, PredictConfig(batch_size=batch_size), dry_run=command == "dry run")


def test_training_refuses_a_batch_of_tiles_that_does_not_fit(tiles: Path, tmp_path: Path) -> None:
    recipe = Recipe(train=TrainConfig(batch_size=10**9, repeat=10**5))
    with refused(tmp_path, SettingError, "batch_size"):
        train(tiles, tmp_path / "run", recipe)


@pytest.mark.parametrize("size", [(2**20, 2**20), (LARGEST, LARGEST), (LARGEST, 512)])
def test_a_vrt_without_pixels_that_is_too_large_for_a_map_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    run, raster = make_run(tmp_path / "run"), write_empty_vrt(tmp_path / "a.vrt", *size)
    # The largest one does not fit on the earth, which is found first.
    facts = () if size == (LARGEST, LARGEST) else (str(size[0]), str(size[1]), f"{MAX_LANES:,}")
    with refused(tmp_path, InputError, "a.vrt", *facts):
        predict(run, (raster,), tmp_path / "map.tif")
    with refused(tmp_path, InputError, "a.vrt"):
        predict(run, (raster,), tmp_path / "map.tif", dry_run=True)


@pytest.mark.parametrize("side", [10**5, 10**6])
def test_a_large_sparse_raster_can_be_mapped(tmp_path: Path, side: int) -> None:
    card = read_card(make_run(tmp_path / "run", tile_px=224))
    raster = write_empty_vrt(tmp_path / "a.vrt", side, side)
    (source,) = map_sources(card, (raster,), tmp_path / "map.tif", PredictConfig(), None)
    assert (source.grid.height, source.grid.width) == (side, side)


def labels(folder: Path) -> Path:
    square = box(*(TENTH_METRE @ (0, 64)), *(TENTH_METRE @ (64, 0)))
    geopandas.GeoDataFrame({"kind": ["field"]}, geometry=[square], crs=UTM12).to_file(folder / "labels.gpkg")
    return folder / "labels.gpkg"


@pytest.mark.parametrize("size", [(2**30, 2**30), (2**18 + 1, 2**18), (2**29, 200)], ids=str)
def test_prepare_refuses_a_header_with_too_many_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    raster = write_raster(tmp_path / "a.tif", textured(3, 64, 64), tiled=False)
    raster.write_bytes(resized_header(raster.read_bytes(), *size))
    source = VectorSource(images=(raster,), labels=labels(tmp_path))
    with refused(tmp_path, InputError, "a.tif", str(size[0]), str(size[1]), f"{MAX_SCENE_PX:,}"):
        prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=128))


def resized_header(tiff: bytes, height: int, width: int) -> bytes:
    """Return a little-endian TIFF whose header says `height` and `width`; its pixels are those of the small image."""
    start = struct.unpack_from("<I", tiff, 4)[0]
    changed = bytearray(tiff)
    for entry in range(struct.unpack_from("<H", tiff, start)[0]):
        tag = struct.unpack_from("<H", tiff, start + 2 + 12 * entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", changed, start + 2 + 12 * entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(changed)


def test_a_header_with_too_many_bands_is_refused(tmp_path: Path) -> None:
    """Their names and nodata values alone would take minutes."""
    tags = ((256, 4, 256), (257, 4, 256), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 65_000))
    tags += ((322, 4, 256), (323, 4, 256), (324, 4, 8), (325, 4, 8))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
    with pytest.raises(InputError, match="65,000 bands"):
        Image.open(tmp_path / "a.tif")


@pytest.mark.parametrize(("tile_px", "overlap"), [(224, 0.9), (16, 0.0)])
def test_prepare_refuses_more_tiles_than_fit(tmp_path: Path, tile_px: int, overlap: float) -> None:
    raster = write_header(tmp_path / "a.tif", 50_000, 50_000, tiled=True, blockxsize=512, blockysize=512)
    source = VectorSource(images=(raster,), labels=labels(tmp_path))
    with refused(tmp_path, InputError, f"{MAX_TILES:,}", str(tile_px)):
        prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=tile_px, overlap=overlap))


@pytest.mark.parametrize("settings", [{"repeat": 10**9}, {"repeat": 10**5, "accumulate": 10**9}])
def test_repeats_and_batches_that_exhaust_the_memory_are_refused(
    settings: dict[str, int], tiles: Path, tmp_path: Path
) -> None:
    with refused(tmp_path, SettingError, next(reversed(settings))):
        train(tiles, tmp_path / "run", Recipe().with_settings(model={"architecture": "unet"}, train=settings))
