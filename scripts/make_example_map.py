"""Write a small class map and its probabilities, to try `geograft polygons`: MAP.tif and MAP.probabilities.tif.

    python scripts/make_example_map.py example.tif

600 x 400 pixels of 0.5 m in UTM zone 12N: fields, a lake, woods, and nodata in a corner. The content is reproducible.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from scipy import ndimage

NAMES = ("fields", "lake", "woods")
HEIGHT, WIDTH = 400, 600
GRID = {"crs": "EPSG:32612", "transform": rasterio.Affine(0.5, 0, 528000, 0, -0.5, 4979000)}


def main(path: Path) -> None:
    """Write both files."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, HEIGHT, WIDTH)), (0, 9, 9)) * 30
    probabilities = np.exp(noise) / np.exp(noise).sum(axis=0)
    classes = (probabilities.argmax(axis=0) + 1).astype(np.uint8)
    units = np.rint(probabilities * 250).astype(np.uint8)
    classes[:80, :120] = units[:, :80, :120] = 255
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "dtype": "uint8", "nodata": 255, **GRID}
    with rasterio.open(path, "w", count=1, **profile) as raster:
        raster.write(classes, 1)
        raster.update_tags(**{f"CLASS_{value}": name for value, name in enumerate(NAMES, 1)})
    with rasterio.open(path.with_name(f"{path.stem}.probabilities.tif"), "w", count=3, **profile) as raster:
        raster.write(units)
        raster.descriptions = NAMES
        raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
