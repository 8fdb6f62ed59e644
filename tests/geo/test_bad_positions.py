"""Rasters and layers whose position is impossible: one line each, without a warning."""

import json
import math
import os
import sqlite3
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS
from shapely import Polygon, box

from geograft.commands.polygons import polygons
from geograft.commands.sample import sample
from geograft.errors import InputError, OutputError
from geograft.files import atomic_folder, atomic_write, refuse_existing
from geograft.geo.grid import Grid, grid_fault
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.opening import check_complete
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import AreaOfInterest
from geograft.geo.vectors.points import read_points
from geograft.geo.vectors.reader import read_polygons
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

NAN, INF = math.nan, math.inf
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
UTM = CRS.from_user_input(UTM12)
SQUARE = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


TRANSFORMS = {
    "zero": Affine(0, 0, 5, 0, 0, 5),
    "nan": Affine(NAN, 0, 0, 0, -1, 0),
    "nan corner": Affine(1, 0, NAN, 0, -1, 0),
    "infinite": Affine(INF, 0, 0, 0, -1, 0),
    "singular": Affine(1, 1, 0, 1, 1, 0),
    "a line": Affine(1, 0, 0, 0, 0, 0),
    "1e300": Affine(1e300, 0, 0, 0, -1e300, 0),
    "1e-300": Affine(1e-300, 0, 0, 0, -1e-300, 0),
    "far away": Affine(1, 0, 1e300, 0, -1, 0),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("crs", [None, UTM12, "EPSG:4326", LOCAL])
def test_an_unusable_transform_is_refused(tmp_path: Path, transform: Affine, crs: str | None) -> None:
    path = tmp_path / "a.vrt"
    write_raster(tmp_path / "a.tif", textured(1, 20, 30), crs=None)
    numbers = ",".join(str(transform[i]) for i in (2, 0, 1, 5, 3, 4))
    srs = f"<SRS>{CRS.from_user_input(crs).to_wkt('WKT1_GDAL')}</SRS>".replace('"', "&quot;") if crs else ""
    source = '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename></SimpleSource>'
    path.write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20">{srs}<GeoTransform>{numbers}</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand></VRTDataset>'
    )
    with pytest.raises(InputError, match=r"a\.vrt") as caught:
        Image.open(path)
    assert "\n" not in str(caught.value)


@given(
    transform=st.builds(
        Affine, *[st.floats(allow_nan=True, allow_infinity=True) | st.floats(-100, 100) for _ in range(6)]
    )
)
def test_a_transform_without_fault_can_be_inverted(transform: Affine) -> None:
    grid = Grid(20, 30, transform, None)
    if not grid_fault(grid):
        corner = ~transform @ (transform @ (30, 20))
        assert np.allclose(corner, (30, 20), atol=1)


@pytest.mark.parametrize(
    ("transform", "usable"),
    [
        (Affine(1, 0, -180.5, 0, -1, 90.5), True),
        (Affine(1, 0, 0, 0, -1, 90), True),
        (Affine(0.1, 0, 528000, 0, -0.1, 4979000), False),
        (Affine(1, 0, 0, 0, -1, 100), False),
    ],
)
def test_degrees_are_on_the_earth(tmp_path: Path, transform: Affine, usable: bool) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 181, 361), transform, "EPSG:4326")
    if usable:
        with Image.open(path) as image:
            assert resolution_m(image.info.grid)
    else:
        with pytest.raises(InputError, match="degrees"):
            Image.open(path)


def test_a_map_beyond_its_projection_is_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 20, 30), Affine(1, 0, 1e10, 0, -1, 1e10))
    with Image.open(path) as image, pytest.raises(InputError, match=r"a\.tif"):
        Mosaic([image.info])
    for command, out in ((polygons, "a.gpkg"), (sample, "b.gpkg")):
        with pytest.raises(InputError, match=r"a\.tif"):
            command(path, tmp_path / out)


@pytest.mark.parametrize("crs", ["EPSG:5703", "EPSG:4978"], ids=["vertical", "geocentric"])
def test_a_crs_without_horizontal_axes_is_refused(tmp_path: Path, crs: str) -> None:
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=crs).to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match=r"a\.gpkg"):
        read_polygons(tmp_path / "a.gpkg", UTM)
    if crs == "EPSG:4978":
        with pytest.raises(InputError, match=r"a\.tif"):
            Image.open(write_raster(tmp_path / "a.tif", textured(1, 20, 30), crs=crs))


def test_a_local_crs_is_read_but_not_transformed(tmp_path: Path) -> None:
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=LOCAL).to_file(tmp_path / "site.gpkg")
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=UTM12).to_file(tmp_path / "utm.gpkg")
    with Image.open(write_raster(tmp_path / "a.tif", textured(1, 20, 30), crs=LOCAL)) as image:
        grid = image.info.grid
    assert math.isclose(resolution_m(grid) or 0, 0.1, rel_tol=1e-6)
    assert len(read_polygons(tmp_path / "site.gpkg", grid.crs).shapes) == 1
    for name, crs in (("site.gpkg", UTM), ("utm.gpkg", grid.crs)):
        with pytest.raises(InputError, match=name):
            read_polygons(tmp_path / name, crs)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_pixels_are_refused(tmp_path: Path, dtype: str) -> None:
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype=dtype):
        pass
    with pytest.raises(InputError, match=dtype):
        Image.open(tmp_path / "a.tif")


@pytest.mark.parametrize("command", [polygons, sample])
def test_a_map_of_impossible_size_is_refused(tmp_path: Path, command: object) -> None:
    profile = {"driver": "GTiff", "width": 2**20, "height": 2**20, "count": 1, "dtype": "uint8", "crs": UTM12}
    place = {"transform": TENTH_METRE, "tiled": True, "blockxsize": 2**14, "blockysize": 2**14, "sparse_ok": True}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, **place):
        pass
    with pytest.raises(InputError, match=str(2**20)):
        command(tmp_path / "a.tif", tmp_path / "b.gpkg")  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------- coordinates


def write_rings(path: Path, rings: Sequence[Sequence[tuple[float, float]]], crs: str = UTM12) -> Path:
    """Write one polygon per ring as a GeoPackage, with the rings as they are."""
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)] * len(rings), crs=crs).to_file(path, layer="a")
    with sqlite3.connect(path) as table:
        for (name,) in table.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            table.execute(f'DROP TRIGGER "{name}"')
        for number, ring in enumerate(rings, start=1):
            (old,) = table.execute("SELECT geom FROM a WHERE fid = ?", (number,)).fetchone()
            points = b"".join(struct.pack("<dd", *point) for point in ring)
            wkb = struct.pack("<BIII", 1, 3, 1, len(ring)) + points
            table.execute("UPDATE a SET geom = ? WHERE fid = ?", (old[:40] + wkb, number))
    table.close()
    return path


@pytest.mark.parametrize("crs", [None, UTM, CRS.from_epsg(4326)], ids=["own", "same", "other"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 1])
def test_coordinates_that_are_not_finite_are_refused(tmp_path: Path, crs: CRS | None, bad: float, place: int) -> None:
    ring = [(bad, 0.0) if point == place else xy for point, xy in enumerate(SQUARE)]
    ring[-1] = ring[0]
    path = write_rings(tmp_path / "a.gpkg", [SQUARE, ring])
    try:
        found = read_polygons(path, crs)
    except InputError as error:
        assert "a.gpkg" in str(error)
    else:  # a ring that begins with NaN is never closed, and such a polygon is counted
        assert place == 0
        assert math.isnan(bad)
        assert found.dropped_count == 1


@pytest.mark.parametrize("crs", [UTM12, "EPSG:4326"])
def test_huge_coordinates_are_refused_without_densifying_them(tmp_path: Path, crs: str) -> None:
    path = write_rings(tmp_path / "a.gpkg", [[(0, 0), (0, 1e300), (1e300, 1), (0, 0)]], crs)
    with pytest.raises(InputError, match=r"a\.gpkg"):
        read_polygons(path, CRS.from_epsg(3857))


def test_an_unclosed_ring_is_closed_and_counted(tmp_path: Path) -> None:
    path = write_rings(tmp_path / "a.gpkg", [SQUARE, SQUARE[:3], SQUARE[:2], SQUARE[:1]])
    found = read_polygons(path)
    assert [shape.equals(Polygon(SQUARE)) for shape in found.shapes] == [True, True]
    assert (found.repaired_count, found.dropped_count) == (2, 2)
    grid = Grid(4, 4, Affine(1, 0, -1, 0, -1, 2), UTM)
    assert AreaOfInterest.read(path, grid).mask(grid.window).sum() == 1
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [SQUARE[:3]]}))
    assert read_polygons(tmp_path / "a.geojson").repaired_count == 1


@pytest.mark.parametrize("bad", [NAN, INF])
def test_points_without_a_place_are_refused(tmp_path: Path, bad: float) -> None:
    points = geopandas.GeoDataFrame(
        {"reference": ["a", "b"]}, geometry=geopandas.GeoSeries.from_xy([0, 1], [1, 2], crs=UTM12)
    )
    points.to_file(tmp_path / "a.gpkg", layer="points")
    with sqlite3.connect(tmp_path / "a.gpkg") as table:
        for (name,) in table.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            table.execute(f'DROP TRIGGER "{name}"')
        (old,) = table.execute("SELECT geom FROM points WHERE fid = 1").fetchone()
        table.execute("UPDATE points SET geom = ? WHERE fid = 1", (old[:-16] + struct.pack("<dd", bad, 1.0),))
    table.close()
    with pytest.raises(InputError, match="1 of 2 points"):
        read_points(tmp_path / "a.gpkg", UTM)


# -------------------------------------------------------------------------------------------- truncated files, outputs


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("compress", ["deflate", "none"])
def test_a_truncated_file_is_recognised_without_decoding(tmp_path: Path, interleave: str, compress: str) -> None:
    path = write_raster(tmp_path / "a.tif", textured(3, 200, 200), interleave=interleave, compress=compress)
    check_complete(path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"a\.tif"):
        check_complete(path)


@pytest.mark.parametrize("kind", ["link", "fifo", "long", "not utf-8"])
def test_an_output_that_cannot_be_a_file_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    names = {"long": "a" * 300, "not utf-8": os.fsdecode(b"\xff")}
    out = tmp_path / names.get(kind, "out")
    if kind == "link":
        out.symlink_to(tmp_path / "nowhere")
    if kind == "fifo":
        os.mkfifo(out)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError):
        refuse_existing(out)
    with pytest.raises(OutputError), atomic_write(out) as part:
        part.write_text("a")
    with pytest.raises(OutputError), atomic_folder(out):
        pass
    assert sorted(tmp_path.iterdir()) == before
    assert os.path.islink(out) is (kind == "link")  # noqa: PTH114 (is_symlink raises for long names)
