"""Small rasters and polygons with known content."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.geo.rasters.raster import read_mask

UTM12 = "EPSG:32612"
TENTH_METRE = Affine(0.1, 0, 528000, 0, -0.1, 4979000)


def write_raster(
    path: Path, pixels: ndarray, transform: Affine = TENTH_METRE, crs: str | None = UTM12, **options: Any
) -> Path:
    """Write (B, H, W) `pixels` as a tiled GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    profile |= {"transform": transform, "crs": crs, "tiled": True, "blockxsize": 64, "blockysize": 64} | options
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)
    return path


def read_labels(path: Path, window: Window) -> ndarray:
    """Return the class indices of `window` of a label mask, (H, W); 255 outside the file."""
    return read_mask(path, window)[0]


def textured(bands: int, height: int, width: int, seed: int = 0) -> ndarray:
    """Return (bands, height, width) uint8 noise without 0, so that 0 can be nodata."""
    return np.random.default_rng(seed).integers(1, 255, (bands, height, width), dtype=np.uint8)
