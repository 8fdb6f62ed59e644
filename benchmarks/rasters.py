"""Rasters of any size with real texture: the scene inside the package, mirrored repeatedly."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy import ndarray
from rasterio.windows import Window

import geograft

SCENE = Path(geograft.__file__).parent / "data" / "yellowstone" / "training.tif"
BLOCK = 512


def scene() -> ndarray:
    """Return the pixels of the scene, (3, 2472, 2299) uint8, at least 1, so that 0 can be nodata."""
    with rasterio.open(SCENE) as source:
        return np.maximum(source.read(), 1)


def mirror_window(pixels: ndarray, row: int, col: int, height: int, width: int) -> ndarray:
    """Return a window of `pixels` mirrored without end, (b, h, w)."""
    rows = _fold_indices(np.arange(row, row + height), pixels.shape[1])
    cols = _fold_indices(np.arange(col, col + width), pixels.shape[2])
    window: ndarray = pixels[:, rows[:, None], cols]
    return window


def dense_raster(path: Path, size: int, shift: int = 0, patch: int = 0) -> Path:
    """Write `size` x `size` pixels of the mirrored scene from (shift, shift), unless it exists; return its path.

    With `patch`, that many pixels in the middle of the scene are mirrored, so that rasters of all sizes are alike.
    """
    if not path.exists():
        pixels = scene()
        if patch:
            top, left = ((length - patch) // 2 for length in pixels.shape[1:])
            pixels = pixels[:, top : top + patch, left : left + patch]
        part = path.with_suffix(".part.tif")
        with rasterio.open(part, "w", **_profile(size), num_threads="all_cpus") as target:
            for row in range(0, size, BLOCK):
                height = min(BLOCK, size - row)
                target.write(
                    mirror_window(pixels, row + shift, shift, height, size), window=Window(0, row, size, height)
                )
        part.rename(path)
    return path


def sparse_raster(path: Path, size: int) -> Path:
    """Write a sparse raster of `size` x `size` pixels with the scene in its corners and centre; return its path."""
    if not path.exists():
        pixels = scene()
        part = path.with_suffix(".part.tif")
        with rasterio.open(part, "w", **_profile(size), nodata=0, sparse_ok=True) as target:
            for row, col in corners_and_centre(size, pixels.shape[1], pixels.shape[2]):
                target.write(pixels, window=Window(col, row, pixels.shape[2], pixels.shape[1]))
        part.rename(path)
    return path


ROADS = ("other", "road")
ROAD_PX, ROAD_SPACING_PX = 8, 128
"""Width of the roads of `road_map`, and the distance between them."""


def road_map(path: Path, size: int) -> Path:
    """Write a class map of `size` x `size` pixels of a metre with one network of winding roads; return its path."""
    if not path.exists():
        part = path.with_suffix(".part.tif")
        place = Affine(1, 0, 500_000, 0, -1, 5_000_000)
        profile = _profile(size) | {"count": 1, "nodata": 255, "crs": "EPSG:32612", "transform": place}
        with rasterio.open(part, "w", **profile) as target:
            target.update_tags(**{f"CLASS_{value}": name for value, name in enumerate(ROADS)})
            for row in range(0, size, BLOCK):
                height = min(BLOCK, size - row)
                target.write(_roads(row, height, size), 1, window=Window(0, row, size, height))
        part.rename(path)
    return path


def _roads(row: int, height: int, width: int) -> ndarray:
    """Return rows of the road network, (h, w) uint8."""
    y, x = np.mgrid[row : row + height, 0:width].astype(np.float32)
    lengthwise, across = x + 12 * np.sin(y / 90) + 0.15 * y, y + 12 * np.sin(x / 70) - 0.1 * x
    roads: ndarray = (lengthwise % ROAD_SPACING_PX < ROAD_PX) | (across % ROAD_SPACING_PX < ROAD_PX)
    return roads.astype(np.uint8)


def corners_and_centre(size: int, height: int, width: int) -> list[tuple[int, int]]:
    """Return the first row and column of each of the five scenes."""
    bottom, right = size - height, size - width
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]


def _fold_indices(indices: ndarray, length: int) -> ndarray:
    within = indices % (2 * length)
    return np.minimum(within, 2 * length - 1 - within)


def _profile(size: int) -> dict[str, Any]:
    with rasterio.open(SCENE) as source:
        crs, transform = source.crs, Affine(*source.transform[:6])
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": size, "width": size, "crs": crs}
    profile |= {"transform": transform, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    return profile | {"compress": "deflate", "zlevel": 1, "interleave": "pixel", "bigtiff": "if_safer"}
