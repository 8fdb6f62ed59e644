"""What makes one map of the files of its units: indices for GDAL and QGIS, a STAC collection, and a single file.

    OUT/map.vrt, map.probabilities.vrt ...   the units as one raster, for every GDAL
    OUT/map.gti.gpkg ...                     the same as a tile index, which is faster for many units (GDAL 3.9)
    OUT/collection.json, items/              the same as a STAC collection, for catalogues
    OUT/map.tif                              with --one-file: the file that one process would have written
    OUT/summary.json                         the counts of all units; written last

Names and colours of the classes are in all of them, and map.qml is a style for QGIS where one is needed.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import shapely
from jaxtyping import Shaped
from numpy import ndarray
from pydantic import TypeAdapter, ValidationError

from geograft.errors import SettingError
from geograft.files import to_json
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.styles import sidecar_paths
from geograft.geo.rasters.tags import sibling_path
from geograft.geo.rasters.writer import BLOCK_PX, create_map
from geograft.geo.vectors.reader import WGS84, Features, reproject
from geograft.geo.vectors.writer import Layer, write_tile_index
from geograft.locations import Place
from geograft.locks import lock_output
from geograft.mapping.batches import coarsen_grid
from geograft.mapping.classmap import CLASSES
from geograft.mapping.job import write_files
from geograft.mapping.plan import MapTask
from geograft.mapping.unit_ledger import UNITS, Accepted, Job, Receipt, UnitLedger, combined_counts
from geograft.memory import MAX_SCENE_PX
from geograft.storage import LocalFolder
from geograft.text import xml_attribute, xml_text

if TYPE_CHECKING:
    from geograft.mapping.applicability import ApplicabilityCounts

MAP_NAME, INDEX_NAME, SUMMARY, COLLECTION = "map.tif", "map.vrt", "summary.json", "collection.json"
INDEX_SUFFIX = ".gti.gpkg"
STAC_VERSION = "1.1.0"
COORDINATE_DIGITS = 7
"""Decimals of degrees: about a centimetre."""
THREADS = 16
"""Requests at a time for small files."""
GDAL_TYPES = {"uint8": "Byte", "float16": "Float32", "float32": "Float32"}
INDEX_LAYER = Layer("units", "Units of the map", "Where the files of the units are, for GDAL's driver GTI.")


@dataclass(frozen=True)
class Summary:
    """Counts of a finished map."""

    units: int
    windows: int
    """Windows that were predicted, with those of the halos."""
    seconds: float
    """Time that workers took, all together."""
    pixels: int
    """Mapped pixels."""
    classes: dict[str, int]
    """Mapped pixels by class."""
    workers: tuple[str, ...]
    accepted: tuple[Accepted, ...] = ()
    """Workers that were accepted although they differ from the first one."""
    accepted_pixels: int = 0
    """Mapped pixels of the units that they computed."""
    flips: int = 0
    """Pixels whose class differs in units that two workers computed."""
    outside_fraction: float | None = None
    """Fraction of the mapped area outside the area of applicability; None if that was not requested."""


def check_one_file(grid: Grid) -> None:
    """Raise SettingError if a map is too large for --one-file."""
    if grid.height * grid.width > MAX_SCENE_PX:
        raise SettingError(
            f"--one-file writes maps of at most {MAX_SCENE_PX:,} pixels; this one has {grid.height * grid.width:,}. "
            "Omit it, and open map.vrt or map.gti.gpkg."
        )


def write_unit_outputs(
    ledger: UnitLedger, job: Job, task: MapTask, one_file: bool
) -> tuple[Summary, tuple[Place, ...]]:
    """Write the files of a map whose units are done, unless another worker has; return its counts and the files.

    Workers that end together may do it at the same time: they write the same bytes.

    Raises:
        InputError: if a file of a unit is missing or damaged.
        OutputError: if a file cannot be written.
    """
    summary, receipts = read_summary(ledger), []
    if summary is None or one_file:
        receipts = read_receipts(ledger, job)
        ledger.check_files(receipts)
    if summary is None:
        summary = _summarise(receipts, ledger, job)
        with TemporaryDirectory(prefix="geograft-index-") as scratch:
            for kind in job.outputs:
                _write_indices(ledger, job, task, receipts, kind, Path(scratch))
        _write_stac(ledger, job, task, receipts)
        ledger.files.put(SUMMARY, to_json(asdict(summary)).encode())
    if one_file:
        _write_one_file(ledger, job, task, receipts)
    names = (INDEX_NAME, f"map{INDEX_SUFFIX}", COLLECTION, MAP_NAME)
    present = {one.key for one in ledger.files.list("map")} | {one.key for one in ledger.files.list(COLLECTION)}
    return summary, tuple(ledger.out / name for name in names if name in present)


def read_summary(ledger: UnitLedger) -> Summary | None:
    """Return the counts of a finished map; None if it is not finished, or they cannot be read."""
    try:
        return TypeAdapter(Summary).validate_json(ledger.files.get(SUMMARY))
    except (FileNotFoundError, ValidationError):
        return None


def read_receipts(ledger: UnitLedger, job: Job) -> list[Receipt]:
    """Return the receipts of all units, in order.

    Raises:
        InputError: if one is missing or cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ledger.receipt, map(job.units.name, range(len(job.units)))))


def _summarise(receipts: Sequence[Receipt], ledger: UnitLedger, job: Job) -> Summary:
    cells = [one.applicability for one in receipts if one.applicability is not None]
    indexed = sum(pixels for pixels, _ in cells)
    return Summary(
        units=len(receipts),
        windows=sum(one.windows for one in receipts),
        seconds=round(sum(one.seconds for one in receipts), 1),
        pixels=sum(one.pixels for one in receipts),
        classes=dict(combined_counts(receipts)),
        workers=tuple(sorted({one.worker for one in receipts})),
        accepted=ledger.accepted(),
        accepted_pixels=sum(r.pixels for r in receipts if r.difference or r.environment != job.environment),
        flips=sum(one.flips for one in ledger.differing()),
        outside_fraction=sum(outside for _, outside in cells) / max(indexed, 1) if cells else None,
    )


# ------------------------------------------------------------------------------------------------------------- indices


@dataclass(frozen=True)
class _Kind:
    """The files of one kind of all units: where each lies in the map, and what one of them tells of all."""

    name: str
    """Name of the map's file of this kind."""
    info: ImageInfo
    """Of the first file."""
    nodata: float | None
    aux: str
    """Content of its .aux.xml."""
    style: str
    grid: Grid
    places: dict[str, Window]
    """Window of each file on the grid, by name."""


def _write_indices(
    ledger: UnitLedger, job: Job, task: MapTask, receipts: Sequence[Receipt], kind: str, scratch: Path
) -> None:
    found = _read_kind(ledger, job, task, receipts, kind, scratch)
    if found is None:
        return
    stem = found.name.removesuffix(".tif")
    ledger.files.put(f"{stem}.vrt", _vrt(found).encode())
    if found.style:
        ledger.files.put(f"{stem}.qml", found.style.encode())
    # The driver GTI takes neither rotated grids nor those without a CRS.
    if found.grid.crs is None or found.grid.transform.b or found.grid.transform.d:
        return
    name = f"{stem}{INDEX_SUFFIX}"
    shapes = np.array([found.grid.footprint(place) for place in found.places.values()], object)
    features = Features(shapes, {"location": [f"{UNITS}/{file}" for file in found.places]})
    write_tile_index(scratch / name, features, found.grid.crs, INDEX_LAYER, _gti(found))
    ledger.files.put(name, scratch / name)


def _read_kind(
    ledger: UnitLedger, job: Job, task: MapTask, receipts: Sequence[Receipt], kind: str, scratch: Path
) -> _Kind | None:
    """Return what the indices of one kind of file say; None if no unit has a file."""
    with_files = [index for index, one in enumerate(receipts) if one.files]
    if not with_files:
        return None
    names = {index: _file_name(job, index, kind) for index in with_files}
    first = scratch / names[with_files[0]]
    for file in (first, *sidecar_paths(first)):
        if file.name in receipts[with_files[0]].files:
            ledger.files.download(f"{UNITS}/{file.name}", file)
    with Image.open(first) as image:
        info, nodata = image.info, image.nodata[0]
    aux, style = (file.read_text(encoding="utf-8") if file.exists() else "" for file in sidecar_paths(first))
    # A file of the area of applicability has one pixel for each cell.
    cell_px = _cell_px(info, task.source.grid)
    grid = coarsen_grid(task.source.grid, cell_px)
    places = {name: _cells(job.grid.window(index), cell_px) for index, name in names.items()}
    return _Kind(sibling_path(Path(MAP_NAME), kind).name if kind else MAP_NAME, info, nodata, aux, style, grid, places)


def _file_name(job: Job, index: int, kind: str) -> str:
    return f"{job.units.name(index)}.{kind}.tif" if kind else f"{job.units.name(index)}.tif"


def _cell_px(info: ImageInfo, grid: Grid) -> int:
    """Return the side of a file's pixels in pixels of the map."""
    ratio = float(info.grid.transform.determinant / grid.transform.determinant)
    return max(1, round(math.sqrt(abs(ratio))))


def _cells(window: Window, cell_px: int) -> Window:
    """Return the cells of a window that begins with a cell."""
    sides = (-(-length // cell_px) for length in (window.height, window.width))
    return Window(window.row // cell_px, window.col // cell_px, *sides)


def _vrt(kind: _Kind) -> str:
    """Return the units as one raster. A VRT takes about 300 bytes for each unit and band."""
    transform = ", ".join(f"{number:.17g}" for number in kind.grid.transform.to_gdal())
    bands = "".join(
        f'  <VRTRasterBand dataType="{GDAL_TYPES[kind.info.dtype]}" band="{number}">\n{_band(kind, number)}'
        + "".join(_source(name, place, number) for name, place in kind.places.items())
        + "  </VRTRasterBand>\n"
        for number in range(1, kind.info.bands + 1)
    )
    return (
        f'<VRTDataset rasterXSize="{kind.grid.width}" rasterYSize="{kind.grid.height}">\n{_srs(kind)}'
        f"  <GeoTransform>{transform}</GeoTransform>\n{_metadata(kind)}{bands}</VRTDataset>\n"
    )


def _gti(kind: _Kind) -> str:
    """Return the description of a tile index."""
    transform, grid = kind.grid.transform, kind.grid
    bands = "".join(
        f'  <Band band="{number}" dataType="{GDAL_TYPES[kind.info.dtype]}">\n{_band(kind, number)}  </Band>\n'
        for number in range(1, kind.info.bands + 1)
    )
    numbers = ",".join(f"{number:.17g}" for number in transform.to_gdal())
    return (
        f"<GDALTileIndexDataset>\n  <LocationField>location</LocationField>\n{_srs(kind)}"
        f"  <GeoTransform>{numbers}</GeoTransform>\n"
        f"  <XSize>{grid.width}</XSize>\n  <YSize>{grid.height}</YSize>\n"
        f"  <BlockXSize>{BLOCK_PX}</BlockXSize>\n  <BlockYSize>{BLOCK_PX}</BlockYSize>\n{bands}{_metadata(kind)}"
        "</GDALTileIndexDataset>\n"
    )


def _srs(kind: _Kind) -> str:
    return f"  <SRS>{xml_text_of(kind.grid.crs.to_wkt())}</SRS>\n" if kind.grid.crs else ""


def xml_text_of(text: str) -> str:
    """Return a text as the content of an XML element."""
    return xml_text(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _metadata(kind: _Kind) -> str:
    items = "".join(
        f"    <MDI key={xml_attribute(key)}>{xml_text_of(value)}</MDI>\n"
        for key, value in kind.info.tags.items()
        if key != "AREA_OR_POINT"
    )
    return f"  <Metadata>\n{items}  </Metadata>\n"


def _band(kind: _Kind, number: int) -> str:
    """Return name, nodata, colours and class names of a band."""
    nodata = f"    <NoDataValue>{kind.nodata:g}</NoDataValue>\n" if kind.nodata is not None else ""
    name = f"    <Description>{xml_text_of(kind.info.band_names[number - 1])}</Description>\n"
    return f"{name}{nodata}{_pam_band(kind.aux, number)}"


def _pam_band(aux: str, number: int) -> str:
    """Return what a .aux.xml says of a band, which a VRT and a tile index say in the same words."""
    bands = ElementTree.fromstring(aux).findall("PAMRasterBand") if aux else []
    return "".join(
        "    " + ElementTree.tostring(element, encoding="unicode").strip() + "\n"
        for band in bands
        if band.get("band") == str(number)
        for element in band
    )


def _source(name: str, place: Window, band: int) -> str:
    size = f'xSize="{place.width}" ySize="{place.height}"'
    return (
        f'    <SimpleSource><SourceFilename relativeToVRT="1">{UNITS}/{name}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{place.col}" yOff="{place.row}" {size}/></SimpleSource>\n'
    )


# ---------------------------------------------------------------------------------------------------------------- STAC


def _write_stac(ledger: UnitLedger, job: Job, task: MapTask, receipts: Sequence[Receipt]) -> None:
    """Write a STAC collection and an item for each unit with files; nothing for a map without CRS."""
    grid = task.source.grid
    named = [(index, one) for index, one in enumerate(receipts) if one.files]
    if grid.crs is None or not named:
        return
    outlines = np.array([grid.footprint(job.grid.window(index)) for index, _ in named], object)
    placed = reproject(outlines, grid.crs, WGS84)
    time = _raster_time(job)
    items = [
        stac_item(receipt, outline, job.outputs, time) for (_, receipt), outline in zip(named, placed, strict=True)
    ]

    def put(item: dict[str, Any]) -> None:
        ledger.files.put(f"items/{item['id']}.json", to_json(item).encode())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(put, items))
    ledger.files.put(COLLECTION, to_json(stac_collection(task, items, placed, time)).encode())


def stac_item(receipt: Receipt, outline: shapely.Geometry, kinds: Iterable[str], time: str) -> dict[str, Any]:
    """Return the STAC item of a unit, at OUT/items; `time` is when its raster was written."""
    assets = {
        kind or "map": {
            "href": f"../{UNITS}/{receipt.unit}{f'.{kind}' if kind else ''}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
        }
        for kind in kinds
    }
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [],
        "id": receipt.unit,
        "collection": "map",
        "geometry": json.loads(shapely.to_geojson(outline)),
        "bbox": _bounds([outline]),
        "properties": {"datetime": time, "description": f"{receipt.pixels:,} mapped pixels"},
        "links": [
            {"rel": rel, "href": f"../{COLLECTION}", "type": "application/json"} for rel in ("collection", "root")
        ],
        "assets": assets,
    }


def stac_collection(task: MapTask, items: Sequence[Mapping[str, Any]], outlines: ndarray, time: str) -> dict[str, Any]:
    """Return the STAC collection of a map."""
    links = [{"rel": "item", "href": f"items/{item['id']}.json", "type": "application/geo+json"} for item in items]
    names = ", ".join(task.card.legend.names)
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "id": "map",
        "title": f"Map by {task.card.name}",
        "description": f"Classes {names}, mapped with Geograft.",
        "license": "other",
        "extent": {"spatial": {"bbox": [_bounds(outlines)]}, "temporal": {"interval": [[time, time]]}},
        "links": [{"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"}, *links],
    }


def _bounds(outlines: Iterable[shapely.Geometry]) -> list[float]:
    bounds = np.array([shapely.bounds(outline) for outline in outlines])
    edges = (*np.nanmin(bounds[:, :2], axis=0), *np.nanmax(bounds[:, 2:], axis=0))
    return [round(float(edge), COORDINATE_DIGITS) for edge in edges]


def _raster_time(job: Job) -> str:
    """Return when the newest raster was written, by RFC 3339: nothing tells when it was taken."""
    rasters = job.origin.get("rasters")
    times = [str(one.get("modified", "")) for one in rasters if isinstance(one, Mapping)] if rasters else []
    newest = max(times, default="")[:19]
    return f"{newest.replace(' ', 'T')}Z" if len(newest) == 19 else "1970-01-01T00:00:00Z"


# ------------------------------------------------------------------------------------------------------------ one file


@dataclass
class UnitFiles:
    """The values of a map in the files of its units, as `geograft.mapping.classmap.MapValues`. Reads row by row."""

    ledger: UnitLedger
    job: Job
    receipts: Sequence[Receipt]
    """Of all units, in order."""
    scratch: Path
    """Folder for files of a bucket, of one row of units at a time."""
    open: dict[str, Image] = field(default_factory=dict)
    row: int = -1
    """Row of units whose files are open."""

    @cached_property
    def panels(self) -> list[tuple[int, int]]:
        """First column and width of each column of units."""
        units = self.job.grid
        return [(window.col, window.width) for window in map(units.window, range(units.columns))]

    def data_extent(self, window: Window) -> Window | None:
        """Return `window` if one of its units has files; it lies in one column of units."""
        return window if any(self._has_files(index) for index in self._touching(window)) else None

    def read(self, name: str, window: Window, blank: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
        """Return the array `name` in `window`, which lies in one column of units; `blank` where a unit has no files."""
        kind, result = "" if name == CLASSES else name, blank.copy()
        for index in self._touching(window):
            unit = self.job.grid.window(index)
            part = window.intersection(unit)
            if part is not None and self._has_files(index):
                pixels = self.image(_file_name(self.job, index, kind), index).read_raw(part.relative_to(unit))
                result[..., *part.relative_to(window).slices] = pixels
        return result

    def close(self) -> None:
        """Close all files."""
        while self.open:
            name, image = self.open.popitem()
            image.close()
            (self.scratch / name).unlink(missing_ok=True)

    def _touching(self, window: Window) -> list[int]:
        units = self.job.grid
        rows = range(window.row // units.unit_px, -(-window.stop_row // units.unit_px))
        return [row * units.columns + window.col // units.unit_px for row in rows]

    def _has_files(self, index: int) -> bool:
        return _file_name(self.job, index, "") in self.receipts[index].files

    def image(self, name: str, index: int) -> Image:
        """Return an open file of a unit."""
        row = index // self.job.grid.columns
        if row != self.row:
            self.close()
            self.row = row
        if name not in self.open:
            files = self.ledger.files
            path = files.root / UNITS / name if isinstance(files, LocalFolder) else self.scratch / name
            if not isinstance(files, LocalFolder):
                files.download(f"{UNITS}/{name}", path)
            self.open[name] = Image.open(path)
        return self.open[name]


def _write_one_file(ledger: UnitLedger, job: Job, task: MapTask, receipts: Sequence[Receipt]) -> None:
    """Assemble the files of the units into those that one process would have written."""
    if ledger.files.head(MAP_NAME) is not None:
        return
    local = isinstance(ledger.out, Path)
    with TemporaryDirectory(prefix="geograft-map-") as folder:
        path = ledger.out / MAP_NAME if isinstance(ledger.out, Path) else Path(folder) / MAP_NAME
        values = UnitFiles(ledger, job, receipts, Path(folder))
        with lock_output(path, enabled=local):
            try:
                named = replace(task, source=replace(task.source, path=path))
                write_files(named, values, partial(_assemble_cells, values, task))
            finally:
                values.close()
        if not local:
            files = (file for file in Path(folder).iterdir() if file.is_file())
            for file in sorted(files, key=lambda file: file.name == MAP_NAME):
                ledger.files.put(file.name, file)


def _assemble_cells(values: UnitFiles, task: MapTask, path: Path, tags: dict[str, str]) -> "ApplicabilityCounts":
    """Assemble the area of applicability, whose counts are those of the receipts."""
    from geograft.mapping.applicability import ApplicabilityCounts, applicability_layout  # noqa: PLC0415  (SciPy)

    units, grid = values.job.grid, task.source.grid
    parts = [
        (index, name)
        for index in range(len(units))
        if (name := _file_name(values.job, index, "applicability")) in values.receipts[index].files
    ]
    first = values.image(parts[0][1], parts[0][0])
    cell_px = _cell_px(first.info, grid)
    with create_map(path, coarsen_grid(grid, cell_px), applicability_layout(tags)) as writer:
        for index, name in parts:
            image = values.image(name, index)
            writer.write(image.read_raw(image.info.grid.window), _cells(units.window(index), cell_px))
    cells = [one.applicability or (0, 0) for one in values.receipts]
    return ApplicabilityCounts(*(sum(column) for column in zip(*cells, strict=True)))
