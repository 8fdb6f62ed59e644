"""Convert the two Yellowstone scenes of the PyPI wheel deepforest 2.1.0 to the demo data of the package.

pip download deepforest==2.1.0 --no-deps
python scripts/make_demo_data.py deepforest-2.1.0-py3-none-any.whl

Writes training.tif, training.gpkg, elsewhere.tif, elsewhere.gpkg and LICENSE into src/geograft/data/yellowstone; the
README there lists the changes. The same wheel and the same GDAL version give the same bytes.
"""

import argparse
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pyogrio
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from shapely import Polygon
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from geograft.files import file_digest
from geograft.geo.vectors.reader import Features
from geograft.geo.vectors.writer import Layer, write_polygons

OUT = Path(__file__).resolve().parents[1] / "src" / "geograft" / "data" / "yellowstone"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
LICENCE = "deepforest-2.1.0.dist-info/licenses/LICENSE"

# The names contain the lower left corner of the 1 km tile that each scene was cut from.
SCENES = {
    "training": "deepforest/data/2019_YELL_2_528000_4978000_image_crop2",
    "elsewhere": "deepforest/data/2019_YELL_2_541000_4977000_image_crop",
}
UTM_12N = CRS.from_epsg(32612)
PIXEL_M = 0.1
TILE_M = 1000
CORNERS = 32

# JPEG takes 5 MB for both scenes, lossless compression 16 MB. Every GDAL build reads JPEG; not every one reads WebP.
LAYOUT = {
    "driver": "GTiff",
    "compress": "JPEG",
    "photometric": "YCBCR",
    "jpeg_quality": 95,
    "interleave": "pixel",
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
}


def main() -> None:
    """Write the demo data from the given wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="deepforest-2.1.0-py3-none-any.whl")
    wheel = parser.parse_args().wheel
    if file_digest(wheel) != WHEEL_SHA256:
        parser.error(f"{wheel} is not the wheel of deepforest 2.1.0: its SHA-256 differs")
    OUT.mkdir(parents=True, exist_ok=True)
    with ZipFile(wheel) as archive:
        (OUT / "LICENSE").write_bytes(archive.read(LICENCE))
        for name, source in SCENES.items():
            transform = corner_transform(source)
            write_image(archive.read(f"{source}.png"), OUT / f"{name}.tif", transform)
            count = write_crowns(archive.read(f"{source}.xml"), OUT / f"{name}.gpkg", transform)
            print(f"{name}: {count} crowns, {(OUT / f'{name}.tif').stat().st_size / 1e6:.1f} MB")


def corner_transform(source: str) -> Affine:
    """Return the transform of the scene, placed at the upper left corner of its 1 km tile."""
    easting, northing = map(int, Path(source).name.split("_")[3:5])
    return Affine(PIXEL_M, 0, easting, 0, -PIXEL_M, northing + TILE_M)


def write_image(png: bytes, path: Path, transform: Affine) -> None:
    """Write the image as a tiled, JPEG-compressed GeoTIFF."""
    with warnings.catch_warnings(), MemoryFile(png) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open() as picture:
            pixels = picture.read()
    bands, height, width = pixels.shape
    profile = LAYOUT | {"count": bands, "height": height, "width": width, "dtype": "uint8"}
    path.unlink(missing_ok=True)
    with rasterio.open(path, "w", crs=UTM_12N, transform=transform, **profile) as raster:
        raster.write(pixels)


def write_crowns(xml: bytes, path: Path, transform: Affine) -> int:
    """Write the ellipse inscribed in each box as a georeferenced polygon, and return the number of polygons."""
    crowns = [to_map_coordinates(ellipse(*box), transform) for box in boxes(xml)]
    # GeoPackages store the time of their last change; a fixed one keeps the bytes reproducible.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2019-01-01T00:00:00Z"})
    return write_polygons(path, [Features(crowns, {"class": ["tree"] * len(crowns)})], UTM_12N, Layer("crowns"))


def boxes(xml: bytes) -> Iterator[tuple[float, float, float, float]]:
    """Yield left, top, right and bottom of each box in pixels. VOC pixel indices start at 1 and include the last."""
    for bounds in ElementTree.fromstring(xml).iter("bndbox"):
        left, top, right, bottom = (float(bounds.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax"))
        yield left - 1, top - 1, right, bottom


def ellipse(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Return the ellipse that touches all four sides, as a polygon of 32 vertices on it."""
    angles = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    x, y = (left + right) / 2, (top + bottom) / 2
    return Polygon([(x + (right - x) * math.cos(angle), y + (bottom - y) * math.sin(angle)) for angle in angles])


def to_map_coordinates(shape: Polygon, transform: Affine) -> BaseGeometry:
    """Transform a shape from pixels (column, row) to map coordinates, with its exterior counter-clockwise."""
    coefficients = (transform.a, transform.b, transform.d, transform.e, transform.c, transform.f)
    return affine_transform(shape, coefficients).normalize()


if __name__ == "__main__":
    main()
