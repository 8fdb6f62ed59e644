"""Polygons and tile indices, written. With `vector`, which reads them, the only file that opens layers."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import geopandas
import numpy as np
import pyogrio
import shapely
from numpy import ndarray
from pyogrio.errors import DataSourceError
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.errors import OutputError
from geograft.files import replacing_with_scratch
from geograft.geo.vectors.arrow import record_batches
from geograft.geo.vectors.reader import FAULTS, SHARE, TILES_LAYER, WGS84, Features

DATE = "OGR_CURRENT_DATE"


def write_tiles(
    path: Path,
    rows: Sequence[tuple[Any, ...]],
    outlines: Sequence[BaseGeometry],
    class_names: Sequence[str],
    crs: CRS | None,
) -> None:
    """Write the index of a tile set as a GeoPackage: a row a tile, in order, with its outline in `crs`.

    A row is (scene, Window, split, valid share, class shares), the order of Tile's fields.

    Raises:
        OutputError: when it cannot be written.
    """
    scenes, windows, splits, valid, shares = zip(*rows, strict=True)
    columns: dict[str, Any] = {"scene": scenes, "split": splits}
    columns |= {side: [getattr(window, side) for window in windows] for side in ("row", "col", "height", "width")}
    columns["valid"] = np.array(valid, float)
    table = np.array(shares, float).reshape(len(rows), -1)
    columns |= {f"{SHARE}{i}_{name}": table[:, i] for i, name in enumerate(class_names) if i < table.shape[1]}
    write_polygons(path, [Features(outlines, columns)], crs, TILES_LAYER)


def write_polygons(path: Path, batches: Iterable[Features], crs: CRS | None, layer: str | None = None) -> int:
    """Write features batch by batch as a GeoPackage and return their number; the file appears whole or not at all.

    A batch without features still states the columns. Memory: one batch.

    Raises:
        OutputError: when it cannot be written.
    """
    with replacing_with_scratch(path) as part, refusals(path):
        return write_geopackage(part, batches, crs, layer or path.stem)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into one line."""
    try:
        yield
    except FAULTS as error:
        raise OutputError(f"{path} cannot be written: {error}. Free some space or choose another --out.") from error


@contextmanager
def dated(moment: datetime) -> Iterator[None]:
    """Let files that state when they were written state `moment`, so that equal content makes equal files."""
    before = pyogrio.get_gdal_config_option(DATE)
    pyogrio.set_gdal_config_options({DATE: f"{moment:%Y-%m-%dT%H:%M:%S}.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({DATE: before})


def write_geopackage(part: Path, batches: Iterable[Features], crs: CRS | None, layer: str) -> int:
    """Write features, which need not be any, as a GeoPackage, and return their number.

    Raises:
        DataSourceError: when not all reached the disk, or another fault of `vector.FAULTS`.
    """
    written = 0
    kind = {"driver": "GPKG", "layer": layer, "promote_to_multi": True, "geometry_type": "MultiPolygon"}
    rest = iter(batches)
    # Without any batch there is still a layer to open.
    for number, batch in enumerate(chain([next(rest, Features([], {}))], rest)):
        with quietly():
            pyogrio.write_dataframe(_frame(batch, crs), part, append=number > 0, **kind)
        written += len(batch.shapes)
    check_count(part, layer, written)
    return written


def write_geojson(part: Path, batches: Iterable[Features], crs: CRS | None, layer: str) -> int:
    """Write features as GeoJSON in WGS 84 (RFC 7946), as they are without a CRS, and return their number."""
    written = 0
    with part.open("w", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection", "name": {json.dumps(layer)}, "features": [')
        for batch in batches:
            frame = _frame(batch, crs)
            written += _write_json_features(file, _degrees(frame) if crs else frame, first=written == 0)
        file.write("\n]}\n")
    return written


def write_flatgeobuf(part: Path, batches: Iterable[Features], crs: CRS | None, layer: str) -> int:
    """Write features as FlatGeobuf, ordered and indexed by place, and return their number. Needs pyarrow.

    Memory: one batch, and some 50 bytes a feature for the index.

    Raises:
        DataSourceError: when not all reached the disk, or another fault of `vector.FAULTS`.
    """
    counted = Counted(batches)
    kind = {"driver": "FlatGeobuf", "layer": layer, "geometry_type": "MultiPolygon", "geometry_name": "geometry"}
    with quietly():
        pyogrio.write_arrow(record_batches(counted), part, crs=crs and crs.to_wkt(), **kind)
    check_count(part, layer, counted.seen)
    return counted.seen


class Counted:
    """Batches that count the features which pass."""

    def __init__(self, batches: Iterable[Features]) -> None:
        self._batches = batches
        self.seen = 0

    def __iter__(self) -> Iterator[Features]:
        for batch in self._batches:
            self.seen += len(batch.shapes)
            yield batch


def check_count(part: Path, layer: str, written: int) -> None:
    """Raise DataSourceError when a file that was just written holds another number of features."""
    with quietly():
        found = pyogrio.read_info(part, layer=layer, force_feature_count=True)["features"]
    if found != written:
        raise DataSourceError("not all features reached the disk")


@contextmanager
def quietly() -> Iterator[None]:
    """Let pass what GDAL warns of and is meant so, or is said by an error too."""
    with warnings.catch_warnings():
        # Images without CRS have tiles and maps without one.
        warnings.filterwarnings("ignore", message="'crs' was not provided", category=UserWarning)
        # What GDAL says of a file that ends early, on a full disk, the error says too.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _write_json_features(file: TextIO, frame: geopandas.GeoDataFrame, first: bool) -> int:
    for number, feature in enumerate(frame.iterfeatures(na="null", drop_id=True)):
        file.write("\n" if first and number == 0 else ",\n")
        file.write(json.dumps(feature, ensure_ascii=False))
    return len(frame)


def _degrees(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Return the features in WGS 84, to nine decimals: a tenth of a millimetre."""
    there = frame.to_crs(WGS84)
    return there.set_geometry(shapely.transform(there.geometry.to_numpy(), lambda xy: xy.round(9)), crs=WGS84)


def _frame(batch: Features, crs: CRS | None) -> geopandas.GeoDataFrame:
    # A list without items would become a column of numbers.
    columns = {name: values if len(values) else _no_values(values) for name, values in batch.columns.items()}
    return geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(list(batch.shapes), crs=crs), crs=crs)


def _no_values(values: Sequence[Any] | ndarray) -> ndarray:
    return values if isinstance(values, ndarray) else np.array([], object)
