"""Writing of polygons (GeoPackage, GeoJSON, FlatGeobuf) and of tile indices.

A GeoPackage says in itself how a GIS shows its layers: title, description, and a style for QGIS. It has version 1.3,
which GDAL 3.6 (Debian 12) reads without a warning, and equal content gives equal bytes.
"""

import json
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import geopandas
import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy import ndarray
from pyogrio.errors import DataSourceError
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.errors import OutputError
from geograft.files import atomic_write
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.arrow import record_batches
from geograft.geo.vectors.reader import (
    AREA_FIELD,
    FRACTION_PREFIX,
    TILES_LAYER,
    VECTOR_ERRORS,
    WGS84,
    Features,
    reproject,
)
from geograft.geo.vectors.styles import Entry, FieldForm, categorized_style
from geograft.legend import SPLIT_COLOURS

DATE_OPTION = "OGR_CURRENT_DATE"
NO_DATE = datetime(1970, 1, 1, tzinfo=UTC)
"""The time of writing in files that must not depend on it."""
GEOPACKAGE: dict[str, Any] = {"driver": "GPKG", "dataset_options": {"VERSION": "1.3"}}
STYLES_LAYER = "layer_styles"


@dataclass(frozen=True)
class Layer:
    """A layer of a GeoPackage, and what a GIS shows of it."""

    name: str
    title: str = ""
    """Its name in words; unique in the file. Empty: `name`."""
    abstract: str = ""
    """What is in it, in a sentence or two."""
    style: str = ""
    """Default style for QGIS (QML); none if empty."""

    @property
    def options(self) -> dict[str, str]:
        """The options of GDAL's driver for a new layer."""
        return {"IDENTIFIER": self.title or self.name, "DESCRIPTION": self.abstract}


TILES = Layer(
    TILES_LAYER,
    "Tiles by split",
    "The tiles of a tile set: windows of its scenes, with their split and the fractions of valid pixels and of each "
    "class. Rows and columns are pixels of the scene, counted from 0.",
    categorized_style(
        "split",
        [Entry(split, split, colour) for split, colour in SPLIT_COLOURS.items()],
        "outline",
        FieldForm({"row": "First row", "col": "First column", "valid": "Fraction of valid pixels"}),
    ),
)


def write_tiles(
    path: Path,
    rows: Sequence[tuple[Any, ...]],
    outlines: Sequence[BaseGeometry],
    class_names: Sequence[str],
    crs: CRS | None,
) -> None:
    """Write the index of a tile set as a GeoPackage: one feature per tile, in order, with its outline in `crs`.

    A row is (scene, Window, split, valid fraction, class fractions), and the name of an area for tiles that have one.

    Raises:
        OutputError: when the file cannot be written.
    """
    scenes, windows, splits, valid, fractions = zip(*(row[:5] for row in rows), strict=True)
    columns: dict[str, Any] = {"scene": scenes, "split": splits}
    columns |= {side: [getattr(window, side) for window in windows] for side in ("row", "col", "height", "width")}
    if any(len(row) > 5 for row in rows):
        columns[AREA_FIELD] = np.array([row[5] if len(row) > 5 else "" for row in rows], object)
    columns["valid"] = np.array(valid, float)
    table = np.array(fractions, float).reshape(len(rows), -1)
    columns |= {f"{FRACTION_PREFIX}{i}_{name}": table[:, i] for i, name in enumerate(class_names) if i < table.shape[1]}
    write_polygons(path, [Features(outlines, columns)], crs, TILES)


def write_polygons(path: Path, batches: Iterable[Features], crs: CRS | None, layer: Layer) -> int:
    """Write batches of features as a GeoPackage of one layer, atomically, and return their number.

    An empty batch still defines the columns. Memory: one batch.

    Raises:
        OutputError: when the file cannot be written.
    """
    with atomic_write(path) as part, output_errors(path), fixed_date(NO_DATE):
        return write_geopackage(part, batches, crs, layer)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Convert errors while writing `path` to OutputError."""
    try:
        yield
    except VECTOR_ERRORS as error:
        raise OutputError(f"{path} cannot be written: {error}. Free some space or choose another --out.") from error


@contextmanager
def fixed_date(moment: datetime) -> Iterator[None]:
    """Make GDAL store `moment` as the time of writing, so that files with equal content are identical."""
    before = pyogrio.get_gdal_config_option(DATE_OPTION)
    pyogrio.set_gdal_config_options({DATE_OPTION: f"{moment:%Y-%m-%dT%H:%M:%S}.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({DATE_OPTION: before})


def write_geopackage(part: Path, batches: Iterable[Features], crs: CRS | None, layer: Layer) -> int:
    """Write batches of features, possibly none, as a GeoPackage with their style, and return their number.

    Raises:
        DataSourceError: when not all features reached the disk; or another of VECTOR_ERRORS.
    """
    written = 0
    kind = GEOPACKAGE | {"layer": layer.name, "layer_options": layer.options}
    kind |= {"promote_to_multi": True, "geometry_type": "MultiPolygon"}
    rest = iter(batches)
    # Without any batch an empty one creates the layer.
    for number, batch in enumerate(chain([next(rest, Features([], {}))], rest)):
        with ignore_gdal_warnings():
            pyogrio.write_dataframe(_frame(batch, crs), part, append=number > 0, **kind)
        written += len(batch.shapes)
    write_style(part, layer)
    check_count(part, layer.name, written)
    return written


def write_tile_index(path: Path, files: Features, crs: CRS, layer: Layer, description: str) -> None:
    """Write a GeoPackage that GDAL's driver GTI reads as one raster, atomically.

    `files` have the column `location`, relative to the GeoPackage; `description` is the driver's XML, which is kept in
    the GeoPackage because the driver looks for an index that it names in the working directory.

    Raises:
        OutputError: when the file cannot be written.
    """
    with atomic_write(path) as part, output_errors(path), fixed_date(NO_DATE):
        kind = GEOPACKAGE | {"layer": layer.name, "layer_options": layer.options}
        with ignore_gdal_warnings():
            # The entry of metadata creates the table of metadata.
            pyogrio.write_dataframe(_frame(files, crs), part, layer_metadata={"LOCATION_FIELD": "location"}, **kind)
        check_count(part, layer.name, len(files.shapes))
        metadata = f'<Metadata domain="xml:GTI" format="xml">{description}</Metadata>'
        document = f'<GDALMultiDomainMetadata xmlns="http://gdal.org">{metadata}</GDALMultiDomainMetadata>'
        try:
            with closing(sqlite3.connect(part)) as database, database:
                database.execute("UPDATE gpkg_metadata SET metadata = ?", (document,))
                moment = f"{NO_DATE:%Y-%m-%dT%H:%M:%S}.000Z"
                database.execute("UPDATE gpkg_metadata_reference SET timestamp = ?", (moment,))
        except sqlite3.Error as error:
            raise DataSourceError(str(error)) from error


def add_layer(part: Path, features: Features, crs: CRS | None, layer: Layer) -> None:
    """Add a layer of polygons, with its style, to a GeoPackage.

    Raises:
        DataSourceError: or another of VECTOR_ERRORS.
    """
    kind = GEOPACKAGE | {"layer": layer.name, "layer_options": layer.options}
    with ignore_gdal_warnings():
        pyogrio.write_dataframe(
            _frame(features, crs), part, append=True, promote_to_multi=True, geometry_type="MultiPolygon", **kind
        )
    write_style(part, layer)
    check_count(part, layer.name, len(features.shapes))


def write_table(part: Path, columns: Mapping[str, Any], layer: Layer) -> None:
    """Add a table without geometry to a GeoPackage.

    Raises:
        DataSourceError: or another of VECTOR_ERRORS.
    """
    table = geopandas.GeoDataFrame(columns).drop(columns="geometry", errors="ignore")
    kind = GEOPACKAGE | {"layer": layer.name, "layer_options": layer.options}
    with ignore_gdal_warnings():
        pyogrio.write_dataframe(table, part, append=True, **kind)


def write_style(part: Path, layer: Layer) -> None:
    """Add the style of a layer to a GeoPackage, as its default in QGIS.

    Raises:
        DataSourceError: or another of VECTOR_ERRORS.
    """
    if not layer.style:
        return
    row = {
        "f_table_catalog": [""],
        "f_table_schema": [""],
        "f_table_name": [layer.name],
        "f_geometry_column": ["geom"],
        "styleName": [layer.name],
        "styleQML": [layer.style],
        "styleSLD": [""],
        "useAsDefault": [True],
        "description": [layer.title],
        "owner": [""],
        "ui": [""],
        "update_time": np.array([NO_DATE.replace(tzinfo=None)], "datetime64[ms]"),
    }
    write_table(part, row, Layer(STYLES_LAYER))


def write_geojson(part: Path, batches: Iterable[Features], crs: CRS | None, layer: str) -> int:
    """Write features as GeoJSON and return their number; in WGS 84 (RFC 7946), or untransformed without a CRS."""
    written = 0
    with part.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "name": {json.dumps(layer)}, "features": [')
        for batch in batches:
            frame = _frame(batch, crs)
            written += _write_json_features(file, _to_wgs84(frame) if crs else frame, first=written == 0)
        file.write("\n]}\n")
    return written


def write_flatgeobuf(part: Path, batches: Iterable[Features], crs: CRS | None, layer: str) -> int:
    """Write features as FlatGeobuf with a spatial index, and return their number. Needs pyarrow.

    Memory: one batch, and about 50 bytes per feature for the index.

    Raises:
        DataSourceError: when not all features reached the disk; or another of VECTOR_ERRORS.
    """
    counted = CountingBatches(batches)
    kind = {"driver": "FlatGeobuf", "layer": layer, "geometry_type": "MultiPolygon", "geometry_name": "geometry"}
    with ignore_gdal_warnings():
        pyogrio.write_arrow(record_batches(counted), part, crs=crs and crs.to_wkt(), **kind)
    check_count(part, layer, counted.count)
    return counted.count


class CountingBatches:
    """An iterable of batches that counts their features."""

    def __init__(self, batches: Iterable[Features]) -> None:
        self._batches = batches
        self.count = 0

    def __iter__(self) -> Iterator[Features]:
        for batch in self._batches:
            self.count += len(batch.shapes)
            yield batch


def check_count(part: Path, layer: str, written: int) -> None:
    """Raise DataSourceError unless the layer of a file that was just written has `written` features."""
    with ignore_gdal_warnings():
        found = pyogrio.read_info(part, layer=layer, force_feature_count=True)["features"]
    if found != written:
        raise DataSourceError("not all features reached the disk")


@contextmanager
def ignore_gdal_warnings() -> Iterator[None]:
    """Ignore GDAL warnings about intended states, and those that an error reports as well."""
    with warnings.catch_warnings():
        # Tiles and maps of images without CRS have none either.
        warnings.filterwarnings("ignore", message="'crs' was not provided", category=UserWarning)
        # The error for a truncated file, on a full disk, repeats this warning.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _write_json_features(file: TextIO, frame: geopandas.GeoDataFrame, first: bool) -> int:
    for number, feature in enumerate(frame.iterfeatures(na="null", drop_id=True)):
        file.write("\n" if first and number == 0 else ",\n")
        file.write(json.dumps(feature, ensure_ascii=False))
    return len(frame)


def _to_wgs84(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Return the features in WGS 84, rounded to nine decimals (0.1 mm)."""
    degrees = frame.to_crs(WGS84)
    return degrees.set_geometry(shapely.transform(degrees.geometry.to_numpy(), lambda xy: xy.round(9)), crs=WGS84)


def _frame(batch: Features, crs: CRS | None) -> geopandas.GeoDataFrame:
    # An empty list would become a float column.
    columns = {name: values if len(values) else _no_values(values) for name, values in batch.columns.items()}
    return geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(list(batch.shapes), crs=crs), crs=crs)


def _no_values(values: Sequence[Any] | ndarray) -> ndarray:
    return values if isinstance(values, ndarray) else np.array([], object)


def common_crs(grids: Sequence[Grid]) -> CRS | None:
    """Return the CRS common to all grids; WGS 84 when they differ; None when any grid has none."""
    first = grids[0].crs
    if first is None or any(grid.crs is None for grid in grids):
        return None
    same = all(grid.crs is not None and first.equals(grid.crs, ignore_axis_order=True) for grid in grids)
    return first if same else WGS84


def tile_outlines(
    tiles: Sequence[tuple[str, Window]], grids: Mapping[str, Grid]
) -> tuple[list[BaseGeometry], CRS | None]:
    """Return the outlines of tiles, pairs of scene and window, and their CRS (see `common_crs`).

    A GIS draws an image without CRS below y = 0, so its outlines have negative y too.
    """
    crs = common_crs(list(grids.values()))
    shapes: list[BaseGeometry] = [_outline(grids[scene], window) for scene, window in tiles]
    if crs is not WGS84:
        return shapes, crs
    outlines = np.array(shapes, object)
    for name, grid in grids.items():
        in_scene = np.array([scene == name for scene, _ in tiles], bool)
        if grid.crs is not None and in_scene.any():
            outlines[in_scene] = reproject(outlines[in_scene], grid.crs, WGS84)
    return list(outlines), crs


def _outline(grid: Grid, window: Window) -> shapely.Polygon:
    if grid.crs is None and grid.transform.e > 0:
        upright = Grid(grid.height, grid.width, Affine.scale(1, -1) @ grid.transform, None)
        return upright.footprint(window)
    return grid.footprint(window)
