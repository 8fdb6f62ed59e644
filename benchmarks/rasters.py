"""Rasters of any size with real texture: a scene inside the package, mirrored again and again."""

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
    """Return the pixels of the scene, (3, 2472, 2299) uint8, never 0, so that 0 can stand for nodata."""
    with rasterio.open(SCENE) as source:
        return np.maximum(source.read(), 1)


def mirrored(pixels: ndarray, row: int, col: int, height: int, width: int) -> ndarray:
    """Return a window of the endless mirroring of `pixels`, (b, h, w)."""
    rows = _folded(np.arange(row, row + height), pixels.shape[1])
    cols = _folded(np.arange(col, col + width), pixels.shape[2])
    window: ndarray = pixels[:, rows[:, None], cols]
    return window


def dense(path: Path, size: int, shift: int = 0) -> Path:
    """Write `size` x `size` pixels of mirrored scene from (shift, shift) on, unless they are there; return the path."""
    if not path.exists():
        pixels = scene()
        part = path.with_suffix(".part.tif")
        with rasterio.open(part, "w", **_profile(size), num_threads="all_cpus") as target:
            for row in range(0, size, BLOCK):
                height = min(BLOCK, size - row)
                target.write(mirrored(pixels, row + shift, shift, height, size), window=Window(0, row, size, height))
        part.rename(path)
    return path


def sparse(path: Path, size: int) -> Path:
    """Write a raster of `size` x `size` that is almost empty: the scene in its corners and centre, no bytes else."""
    if not path.exists():
        pixels = scene()
        part = path.with_suffix(".part.tif")
        with rasterio.open(part, "w", **_profile(size), nodata=0, sparse_ok=True) as target:
            for row, col in corners_and_centre(size, pixels.shape[1], pixels.shape[2]):
                target.write(pixels, window=Window(col, row, pixels.shape[2], pixels.shape[1]))
        part.rename(path)
    return path


def corners_and_centre(size: int, height: int, width: int) -> list[tuple[int, int]]:
    """Return where the five scenes lie: first row and column each."""
    bottom, right = size - height, size - width
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]


def _folded(places: ndarray, length: int) -> ndarray:
    within = places % (2 * length)
    return np.minimum(within, 2 * length - 1 - within)


def _profile(size: int) -> dict[str, Any]:
    with rasterio.open(SCENE) as source:
        crs, transform = source.crs, Affine(*source.transform[:6])
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": size, "width": size, "crs": crs}
    profile |= {"transform": transform, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    return profile | {"compress": "deflate", "zlevel": 1, "interleave": "pixel", "bigtiff": "if_safer"}
