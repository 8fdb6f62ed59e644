"""Masks with one band per class: fractions, overlapping classes, unknown pixels and invalid input."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.sources import MaskSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import read_mask
from geograft.labels import MAX_CODE
from geograft.legend import IGNORE
from tests.support.rasters import textured, write_raster

SIDE = 32
ALL = Window(0, 0, SIDE, SIDE)
ONE_TILE = PrepareConfig(tile_px=SIDE, overlap=0.0, split="scene", val=0, test=0, min_valid=0)


def source(folder: Path, bands: ndarray, classes: Mapping[int, str], **options: object) -> MaskSource:
    """Return a source of one image and its mask; `nodata` is the mask's."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    write_raster(folder / "images" / "a.tif", textured(3, SIDE, SIDE))
    write_raster(folder / "masks" / "a.tif", bands, nodata=options.pop("nodata", None))
    return replace(MaskSource(folder / "images", folder / "masks", classes), **options)


def prepared(folder: Path, bands: ndarray, classes: Mapping[int, str], **options: object) -> tuple[TileSet, ndarray]:
    """Return the tile set of such a source, and the bands of its mask."""
    tiles = prepare(source(folder, bands, classes, **options), folder / "tiles", ONE_TILE)
    return tiles, read_mask(tiles.mask_path("a"), ALL)


def thirds(dtype: str = "float32") -> ndarray:
    """Return the fractions of three classes, which sum to 1."""
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], (SIDE, SIDE)).transpose(2, 0, 1)
    return shares.astype(dtype)


def test_one_band_has_the_fraction_of_the_positive_class(tmp_path: Path) -> None:
    shares = thirds()[:1]
    tiles, _ = prepared(tmp_path, shares, {1: "forest", 0: "other"}, fractional=True)
    assert tiles.meta.legend.names == ("other", "forest")
    assert (tiles.meta.fractional, tiles.meta.legend.values) == (True, (0, 1))
    _, label = tiles.samples("train")[0]
    assert label.shape == (1, SIDE, SIDE)
    assert np.abs(label - shares).max() <= 0.5 / MAX_CODE + 1e-6
    assert tiles.tiles[0].class_fractions == pytest.approx((1 - shares.mean(), shares.mean()), abs=1e-3)


@pytest.mark.parametrize("classes", [{1: "a", 2: "b", 3: "c"}, {1: "a", 2: "b", 0: "c"}, {0: "c", 2: "b", 1: "a"}])
def test_class_0_is_the_remainder_of_the_other_bands(tmp_path: Path, classes: dict[int, str]) -> None:
    tiles, mask = prepared(tmp_path, thirds(), classes, fractional=True)
    assert (mask.sum(axis=0, dtype=int) == MAX_CODE).all()
    order = ["abc".index(name) for name in tiles.meta.legend.names]
    assert np.abs(mask / MAX_CODE - thirds()[order]).max() <= 1 / MAX_CODE + 1e-6


def test_percentages_are_read_with_full_value_100(tmp_path: Path) -> None:
    percents = np.rint(thirds() * 100).astype(np.uint8)
    percents[:, :4] = 255
    classes = {1: "a", 2: "b", 3: "c"}
    tiles, mask = prepared(tmp_path, percents, classes, fractional=True, full_value=100.0, ignore=255)
    assert (mask[:, :4] == IGNORE).all()
    assert np.abs(mask[:, 4:] / MAX_CODE - thirds()[:, 4:]).max() < 0.02
    assert tiles.tiles[0].valid == 28 / 32


def test_unknown_pixels(tmp_path: Path) -> None:
    shares = thirds()[:2]
    shares[0, :2], shares[1, 2:4], shares[1, 4:6] = np.nan, -9999, 0
    classes = {1: "a", 2: "b"}
    _, apart = prepared(tmp_path / "1", shares, classes, fractional=True, overlapping=True, nodata=-9999)
    assert np.array_equal((apart == IGNORE).all(axis=2).nonzero(), [[0, 0, 1, 1], [0, 1, 2, 3]])
    # Of classes that exclude each other none is known then.
    together = {1: "a", 2: "b", 0: "c"}
    _, mask = prepared(tmp_path / "2", shares, together, fractional=True, nodata=-9999)
    assert np.array_equal(mask == IGNORE, np.broadcast_to((np.arange(SIDE) < 4)[:, None], mask.shape))
    # Nodata that could be a share means nothing.
    _, mask = prepared(
        tmp_path / "3", np.nan_to_num(shares).clip(0), classes, fractional=True, overlapping=True, nodata=0
    )
    assert not (mask == IGNORE).any()


def test_overlapping_classes_keep_their_bands(tmp_path: Path) -> None:
    there = np.random.default_rng(1).choice([0, 255], (3, SIDE, SIDE)).astype(np.uint8)
    there[0, :3] = 9
    tiles, mask = prepared(tmp_path, there, {3: "c", 1: "a"}, overlapping=True, full_value=255.0, ignore=9)
    assert tiles.meta.legend.names == ("c", "a")
    assert tiles.meta.legend.overlapping
    assert np.array_equal(mask[0], np.where(there[2] == 255, MAX_CODE, 0))
    assert np.array_equal(mask[1], np.where(there[0] == 9, IGNORE, np.where(there[0] == 255, MAX_CODE, 0)))
    _, label = tiles.samples("train")[0]
    assert np.isnan(label[1, :3]).all()
    assert np.isfinite(label[0]).all()
    assert tiles == TileSet.open(tmp_path / "tiles")


@pytest.mark.parametrize(
    ("bands", "classes", "options", "words"),
    [
        (
            thirds() * 100,
            {1: "a", 2: "b", 3: "c"},
            {},
            r"a\.tif .*from 0 to 1\b.*--full-value",
        ),
        (
            thirds(),
            {1: "a", 2: "b"},
            {"overlapping": True, "fractional": False},
            r"a\.tif .*\b1\b.*\b0\b.*--fractional",
        ),
        (thirds(), {1: "a", 2: "b"}, {}, r"a\.tif: .*sum to 0.*class as 0"),
        (thirds()[:1], {1: "a", 2: "b"}, {}, r"a\.tif has 1 band, .*band 2"),
        (np.full((2, SIDE, SIDE), np.inf, np.float32), {1: "a", 2: "b"}, {}, r"a\.tif .*\binf\b"),
    ],
)
def test_invalid_bands(
    tmp_path: Path, bands: ndarray, classes: dict[int, str], options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        prepared(tmp_path, bands, classes, **{"fractional": True, **options})
    assert not (tmp_path / "tiles").exists()


@pytest.mark.parametrize(
    ("classes", "options", "words"),
    [
        ({0: "a", 1: "b"}, {"overlapping": True}, r"\{0: 'a', 1: 'b'\}.* from 1\.$"),
        ({-1: "a", 1: "b"}, {"fractional": True}, r"\{-1: .* from 1, or 0"),
        ({1: "a", 2: "b"}, {"full_value": 100.0}, "--full-value"),
        ({1: "a", 2: "b"}, {"fractional": True, "full_value": 0.0}, r"--full-value 0\b.*above 0"),
    ],
)
def test_invalid_settings(tmp_path: Path, classes: dict[int, str], options: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        source(tmp_path, thirds(), classes, **options).gather()


def test_whole_pixels_give_the_same_tiles_as_indices_and_fractions(tmp_path: Path) -> None:
    index = np.random.default_rng(2).integers(0, 2, (1, SIDE, SIDE)).astype(np.uint8)
    plain = prepare(source(tmp_path / "1", index, {1: "forest", 0: "other"}), tmp_path / "plain", ONE_TILE)
    soft, _ = prepared(tmp_path / "2", index, {1: "forest", 0: "other"}, fractional=True)
    assert soft.tiles == plain.tiles
    assert (soft.meta.mean, soft.meta.std) == (plain.meta.mean, plain.meta.std)
    assert soft.meta.fingerprint != plain.meta.fingerprint
    assert np.array_equal(soft.samples("train")[0][1][0], plain.samples("train")[0][1])


def test_statistics_are_of_pixels_with_one_known_class(tmp_path: Path) -> None:
    there = np.random.default_rng(1).integers(0, 2, (2, SIDE, SIDE)).astype(np.uint8)
    there[0, :20], there[1, 12:] = 9, 9
    tiles, _ = prepared(tmp_path, there, {1: "a", 2: "b"}, overlapping=True, ignore=9)
    known = (there != 9).any(axis=0)
    assert 0 < known.sum() < known.size
    pixels = textured(3, SIDE, SIDE)[:, known]
    assert tiles.meta.mean == pytest.approx(pixels.mean(axis=1))
    assert tiles.tiles[0].valid == known.mean()
    shares = [np.where(band == 9, 0, band)[known].mean() for band in there]
    assert tiles.tiles[0].class_fractions == pytest.approx(tuple(shares))


@pytest.mark.parametrize("seed", range(3))
def test_every_split_has_every_overlapping_class(tmp_path: Path, seed: int) -> None:
    found = source(tmp_path, np.ones((2, SIDE, SIDE), np.uint8), {1: "common", 2: "rare"}, overlapping=True)
    for number in range(12):
        write_raster(tmp_path / "images" / f"{number}.tif", textured(3, SIDE, SIDE, seed=number), crs=None)
        bands = np.zeros((2, SIDE, SIDE), np.uint8)
        bands[0, :20], bands[1, :4] = 1, number < 2
        write_raster(tmp_path / "masks" / f"{number}.tif", bands, crs=None)
    tiles = prepare(found, tmp_path / "tiles", replace(ONE_TILE, val=0.2, test=0.2, seed=seed))
    rare = {tile.split for tile in tiles.tiles if tile.class_fractions[1]}
    assert rare == {"train", "val", "test"}


def test_every_pixel_counts_once_where_tiles_overlap(tmp_path: Path) -> None:
    there = np.random.default_rng(3).integers(0, 2, (2, SIDE, SIDE)).astype(np.uint8)
    settings = replace(ONE_TILE, tile_px=16, overlap=0.5)
    found = source(tmp_path, there, {1: "a", 2: "b"}, overlapping=True)
    tiles = prepare(found, tmp_path / "tiles", settings)
    once, often = (
        np.stack([label for _, label in tiles.samples("train", unique_pixels=each)]) for each in (True, False)
    )
    assert np.isfinite(often).all()
    assert len(often) == 9
    assert np.isfinite(once).sum(axis=(0, 2, 3)).tolist() == [SIDE**2, SIDE**2]
    assert np.nansum(once, axis=(0, 2, 3)).tolist() == there.sum(axis=(1, 2)).tolist()
