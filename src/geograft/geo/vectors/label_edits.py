"""Features of a GeoPackage that other programs have open: read, inserted, changed and deleted in place by SQLite.

A write is one transaction with a short lock. It begins by comparing the file's revision, a digest of all features, with
the one that the caller has seen: if anybody wrote in between, QGIS for example, nothing is changed. The spatial index
and the counts of GDAL are kept by the triggers of the file itself, whose functions are defined here.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from geograft.errors import GeograftError, InputError, OutputError
from geograft.geo.formats import vector_source

WAIT_S = 5.0
"""How long to wait for a lock of another program."""
MAGIC = b"GP"
ENVELOPE_BYTES = (0, 32, 48, 48, 64)
"""Length of the envelope in the header of a geometry, by its code."""
EMPTY, LITTLE_ENDIAN, ENVELOPE_XY = 0x10, 0x01, 0x02
UNDEFINED_CRS = (-1, 0)
Value = str | int | float | None


class ConflictError(GeograftError):
    """A file has been changed by somebody else since it was read."""


class LockedError(OutputError):
    """Another program keeps a file locked: the same change can be made later."""


@dataclass(frozen=True)
class Row:
    """A feature of a table."""

    id: int
    shape: BaseGeometry
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Table:
    """The table of a layer: its columns and CRS."""

    name: str
    key: str
    geometry: str
    fields: tuple[str, ...]
    srs_id: int
    crs: CRS | None
    multi: bool
    """Whether its geometries are multipolygons."""


class LabelFileEditor:
    """An open GeoPackage, within `edit_features` or `read_features`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, layers: Sequence[str] | None) -> None:
        self._path, self._connection = path, connection
        query = "SELECT table_name FROM gpkg_contents WHERE data_type = 'features' ORDER BY table_name"
        names = [str(name) for (name,) in connection.execute(query)] if layers is None else layers
        self._tables = {name: self._table(name) for name in names}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(self._tables)

    @property
    def revision(self) -> str:
        """A digest of all features of all layers, as they are in this transaction."""
        digest = hashlib.sha256()
        for table in self._tables.values():
            columns = ", ".join(map(_quote, (table.key, table.geometry, *table.fields)))
            digest.update(repr((table.name, table.fields)).encode())
            for row in self._connection.execute(f"SELECT {columns} FROM {_quote(table.name)} ORDER BY {table.key}"):
                digest.update(repr(row).encode())
        return digest.hexdigest()[:16]

    def crs(self, layer: str) -> CRS | None:
        """Return the CRS of a layer; None if it is undefined."""
        return self._tables[layer].crs

    def rows(self, layer: str, identity: int | None = None) -> list[Row]:
        """Return the features of a layer by id, without empty ones; or the one with `identity`, if there is one.

        Raises:
            InputError: when a geometry cannot be read.
        """
        table = self._tables[layer]
        columns = ", ".join(map(_quote, (table.key, table.geometry, *table.fields)))
        where = "" if identity is None else f" WHERE {_quote(table.key)} = {identity:d}"
        order = f"ORDER BY {_quote(table.key)}"
        found = self._connection.execute(f"SELECT {columns} FROM {_quote(layer)}{where} {order}")
        rows = [(key, self._decoded(layer, key, blob), values) for key, blob, *values in found if blob is not None]
        return [
            Row(key, shape, dict(zip(table.fields, v, strict=True))) for key, shape, v in rows if not shape.is_empty
        ]

    def insert(self, layer: str, shape: BaseGeometry, values: Mapping[str, Value]) -> int:
        """Add a feature and return its id."""
        table = self._tables[layer]
        known = {name: value for name, value in values.items() if name in table.fields}
        names = ", ".join(map(_quote, (table.geometry, *known)))
        marks = ", ".join("?" * (1 + len(known)))
        given = (self._encoded(table, shape), *known.values())
        cursor = self._connection.execute(f"INSERT INTO {_quote(layer)} ({names}) VALUES ({marks})", given)
        self._widen(table, shape)
        return int(cursor.lastrowid or 0)

    def update(self, layer: str, identity: int, shape: BaseGeometry | None, values: Mapping[str, Value]) -> None:
        """Change the geometry, unless None, and the given values of a feature."""
        table = self._tables[layer]
        given: dict[str, Any] = {name: value for name, value in values.items() if name in table.fields}
        given |= {} if shape is None else {table.geometry: self._encoded(table, shape)}
        if given:
            parts = ", ".join(f"{_quote(name)} = ?" for name in given)
            statement = f"UPDATE {_quote(layer)} SET {parts} WHERE {_quote(table.key)} = ?"
            self._connection.execute(statement, (*given.values(), identity))
        if shape is not None:
            self._widen(table, shape)

    def delete(self, layer: str, identity: int) -> None:
        """Remove a feature."""
        key = _quote(self._tables[layer].key)
        self._connection.execute(f"DELETE FROM {_quote(layer)} WHERE {key} = ?", (identity,))

    def stamp(self, layer: str) -> None:
        """Record that a layer was changed now."""
        self._connection.execute(
            "UPDATE gpkg_contents SET last_change = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE table_name = ?",
            (layer,),
        )

    def _table(self, name: str) -> Table:
        query = (
            "SELECT column_name, g.srs_id, geometry_type_name, organization, organization_coordsys_id, definition "
            "FROM gpkg_geometry_columns g LEFT JOIN gpkg_spatial_ref_sys s ON s.srs_id = g.srs_id WHERE table_name = ?"
        )
        found = self._connection.execute(query, (name,)).fetchone()
        columns = list(self._connection.execute(f"PRAGMA table_info({_quote(name)})"))
        key = next((str(column[1]) for column in columns if column[5]), None)
        if found is None or key is None:
            raise InputError(f"{self._path} has no layer {name!r} with an id and polygons. Restore it.")
        geometry, srs_id, kind, *crs = found
        fields = tuple(str(column[1]) for column in columns if column[1] not in (key, geometry))
        return Table(
            name, key, geometry, fields, srs_id, self._crs(srs_id, *crs), str(kind).upper().startswith("MULTI")
        )

    def _crs(self, srs_id: int, organization: str | None, code: int | None, definition: str | None) -> CRS | None:
        if srs_id in UNDEFINED_CRS or not definition:
            return None
        try:
            # The definition of an EPSG code in the file may be of WKT 1, with other axes.
            return CRS.from_epsg(code) if code and str(organization).upper() == "EPSG" else CRS.from_wkt(definition)
        except CRSError as error:
            raise InputError(f"{self._path} has an invalid CRS: {error}. Assign a valid one in your GIS.") from error

    def _decoded(self, layer: str, identity: int, blob: Any) -> BaseGeometry:
        try:
            return decode_geometry(blob)
        except (ValueError, ShapelyError) as error:
            raise InputError(
                f"{self._path}: feature {identity} of {layer} has a damaged geometry. Delete it."
            ) from error

    def _encoded(self, table: Table, shape: BaseGeometry) -> bytes:
        is_single = table.multi and shapely.get_type_id(shape) == shapely.GeometryType.POLYGON
        stored: Any = shapely.multipolygons([shape]) if is_single else shape
        return encode_geometry(stored, table.srs_id)

    def _widen(self, table: Table, shape: BaseGeometry) -> None:
        """Extend the stated extent of a layer to a shape; only programs without the spatial index rely on it."""
        left, bottom, right, top = shape.bounds
        self._connection.execute(
            "UPDATE gpkg_contents SET min_x = min(ifnull(min_x, ?1), ?1), min_y = min(ifnull(min_y, ?2), ?2), "
            "max_x = max(ifnull(max_x, ?3), ?3), max_y = max(ifnull(max_y, ?4), ?4) WHERE table_name = ?5",
            (left, bottom, right, top, table.name),
        )


@contextmanager
def read_features(path: Path, layers: Sequence[str] | None) -> Iterator[LabelFileEditor]:
    """Yield some layers of a GeoPackage (None: all) for reading, in one transaction.

    Raises:
        InputError: when it is missing, damaged, or lacks a layer.
    """
    with _connected(path, InputError) as connection:
        connection.execute("BEGIN")
        yield LabelFileEditor(path, connection, layers)


@contextmanager
def edit_features(path: Path, layers: Sequence[str], revision: str) -> Iterator[LabelFileEditor]:
    """Yield a GeoPackage for changes that are committed together at the end of the block, or not at all.

    Raises:
        ConflictError: when its revision is not `revision` any more; nothing is changed.
        InputError: when it is missing, damaged, or lacks a layer.
        OutputError: when it cannot be written, or another program does not release it within WAIT_S.
    """
    with _connected(path, OutputError) as connection:
        connection.execute("BEGIN IMMEDIATE")
        editor = LabelFileEditor(path, connection, layers)
        if editor.revision != revision:
            raise ConflictError(f"{path} was changed by another program in the meantime; nothing was written.")
        yield editor
        for layer in layers:
            editor.stamp(layer)
        connection.execute("COMMIT")


@contextmanager
def _connected(path: Path, kind: type[GeograftError]) -> Iterator[sqlite3.Connection]:
    vector_source(path)  # refuses virtual tables that refer to other data
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    try:
        _define_functions(connection)
        yield connection
    except sqlite3.Error as error:
        locked, reads = "locked" in str(error), kind is InputError
        hint = "Save or undo the edits in your GIS and try again." if locked else "Check or restore it."
        raised = LockedError if locked and not reads else kind
        raise raised(f"{path} cannot be {'read' if reads else 'written'}: {error}. {hint}") from error
    finally:
        # Rolls back a transaction that was not committed.
        connection.close()


def _define_functions(connection: sqlite3.Connection) -> None:
    """Define the functions that triggers of a GeoPackage's spatial index call (OGC 12-128r17, F.3)."""

    def bound(number: int) -> Any:
        return lambda blob: None if blob is None else _bounds(blob)[number]

    connection.create_function("ST_IsEmpty", 1, lambda blob: None if blob is None else decode_geometry(blob).is_empty)
    for number, name in enumerate(("ST_MinX", "ST_MinY", "ST_MaxX", "ST_MaxY")):
        connection.create_function(name, 1, bound(number))


def _bounds(blob: bytes) -> tuple[float, float, float, float]:
    left, bottom, right, top = decode_geometry(blob).bounds
    return float(left), float(bottom), float(right), float(top)


def decode_geometry(blob: bytes) -> BaseGeometry:
    """Return the two-dimensional shape in a GeoPackage's binary geometry (OGC 12-128r17, 2.1.3).

    Raises:
        ValueError: when it is not one; or ShapelyError.
    """
    code = (blob[3] >> 1) & 7 if len(blob) > 8 and blob[:2] == MAGIC else len(ENVELOPE_BYTES)
    if code >= len(ENVELOPE_BYTES):
        raise ValueError("not a geometry of a GeoPackage")
    shape: BaseGeometry = shapely.force_2d(shapely.from_wkb(blob[8 + ENVELOPE_BYTES[code] :]))
    return shape


def encode_geometry(shape: BaseGeometry, srs_id: int) -> bytes:
    """Return a shape that is not empty as a GeoPackage's binary geometry, with its envelope."""
    left, bottom, right, top = shape.bounds
    header = struct.pack("<2sBBi4d", MAGIC, 0, LITTLE_ENDIAN | ENVELOPE_XY, srs_id, left, right, bottom, top)
    return header + shapely.to_wkb(shape, byte_order=1, output_dimension=2)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
