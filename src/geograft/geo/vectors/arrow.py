"""Features as Arrow record batches and as GeoParquet. Needs pyarrow (extra `parquet`)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy import ndarray
from pyproj import CRS

from geograft.geo.vectors.reader import Features

if TYPE_CHECKING:
    import pyarrow

WKB = {"ARROW:extension:name": "geoarrow.wkb"}
GEOMETRY = "geometry"


def record_batches(features: Iterable[Features]) -> "pyarrow.RecordBatchReader":
    """Return a stream of record batches of features, with geometries as WKB multipolygons in the column `geometry`.

    The first batch defines the columns.
    """
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    rest = iter(features)
    first = next(rest)
    schema = _schema(first)

    def batches() -> Iterator["pyarrow.RecordBatch"]:
        for batch in chain([first], rest):
            columns = [_column(side) for side in batch.columns.values()]
            yield pa.record_batch([*columns, _wkb(to_multipolygons(batch.shapes))], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def write_geoparquet(part: Path, features: Iterable[Features], crs: CRS | None) -> int:
    """Write features as GeoParquet 1.1, one row group per batch, and return their number. Memory: one batch."""
    import pyarrow.parquet as pq  # noqa: PLC0415 (an extra)

    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def bounded() -> Iterator[Features]:
        for batch in features:
            if len(batch.shapes):
                here = shapely.total_bounds(np.asarray(batch.shapes, object))
                bounds[:] = *np.minimum(bounds[:2], here[:2]), *np.maximum(bounds[2:], here[2:])
            yield batch

    written = 0
    with record_batches(bounded()) as reader, pq.ParquetWriter(part, reader.schema, compression="zstd") as writer:
        for batch in reader:
            if batch.num_rows:
                writer.write_batch(batch)
                written += batch.num_rows
        writer.add_key_value_metadata({"geo": json.dumps(_geo(crs, bounds if written else None))})
    return written


def to_multipolygons(shapes: Sequence[shapely.Geometry] | ndarray) -> ndarray:
    """Convert (n,) polygons and multipolygons to multipolygons."""
    parts, owner = shapely.get_parts(np.asarray(shapes, object), return_index=True)
    return np.asarray(shapely.multipolygons(parts, indices=owner), object)


def _geo(crs: CRS | None, bounds: ndarray | None) -> Mapping[str, Any]:
    """Return the file metadata of GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/)."""
    column = {"encoding": "WKB", "geometry_types": ["MultiPolygon"], "crs": crs.to_json_dict() if crs else None}
    column |= {"orientation": "counterclockwise", "edges": "planar"}
    if bounds is not None:
        column["bbox"] = bounds.tolist()
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _schema(batch: Features) -> "pyarrow.Schema":
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    kinds = {"O": pa.string(), "i": pa.int64(), "f": pa.float64()}
    fields = [pa.field(name, kinds[np.asarray(side).dtype.kind]) for name, side in batch.columns.items()]
    return pa.schema([*fields, pa.field(GEOMETRY, pa.binary(), metadata=WKB)])


def _column(side: Sequence[Any] | ndarray) -> "pyarrow.Array":
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    values = np.asarray(side)
    # NaN means unknown, and becomes null.
    return pa.array(values, from_pandas=True, type=pa.string() if values.dtype.kind == "O" else None)


def _wkb(shapes: ndarray) -> "pyarrow.Array":
    import pyarrow as pa  # noqa: PLC0415 (an extra)

    return pa.array(shapely.to_wkb(shapes), type=pa.binary())
