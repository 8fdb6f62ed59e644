"""The driver that opens a file: one, chosen by the file's first bytes, so that opening reads local files only.

GDAL tries all its drivers on a file, whatever its name. Some of them send requests: a file called scene.tif may be a
WMS description, or a VRT whose sources are URLs. Here the format is recognised before GDAL opens the file, formats that
can name remote data are refused, and the files that a format may refer to (the sources of a VRT, masks and overviews
next to an image) are checked in the same way. A URL or a path of GDAL's virtual file systems (/vsi...) opens only
where the user gave it; its driver follows from its suffix.
"""

import json
import mmap
import os
import re
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from geograft.errors import InputError
from geograft.files import check_input_file

HEADER_BYTES = 4096
RASTER_MAGIC = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\0\0\0\x0cjP  ", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"GIF8", "GIF"),
    (b"EHFA_HEADER_TAG", "HFA"),
    (b"PCIDSK", "PCIDSK"),
    (b"NITF", "NITF"),
    (b"NSIF", "NITF"),
    (b"SQLite format 3\0", "GPKG"),
    (b"CDF\x01", "netCDF"),
    (b"CDF\x02", "netCDF"),
    (b"CDF\x05", "netCDF"),
    (b"\x89HDF\r\n\x1a\n", "netCDF"),
    (b"GRIB", "GRIB"),
    (b"BM", "BMP"),
    (b"P5", "PNM"),
    (b"P6", "PNM"),
)
"""First bytes of raster files, and the GDAL driver of each."""
SUFFIX_DRIVERS = {
    ".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jp2": "JP2OpenJPEG",
    ".img": "HFA",
}  # fmt: skip
"""Driver of a URL or a path in an archive, whose first bytes are not read here."""
VRT_SOURCES = {"GTiff", "PNG", "JPEG", "JP2OpenJPEG", "GIF", "HFA", "PCIDSK", "NITF"}
"""Drivers of files that a VRT may refer to. GDAL chooses their driver itself, so only unmistakable formats are safe."""
RASTER_FORMATS = "GeoTIFF, VRT, PNG, JPEG, JPEG 2000, Erdas Imagine, ENVI, NetCDF, NITF, PCIDSK and GeoPackage"
VECTOR_FORMATS = "GeoPackage, GeoJSON, Shapefile, FlatGeobuf, KML or file geodatabase"
MAX_XML_BYTES = 2**27
MAX_LISTED_FILES = 1000
"""Number of files in a folder above which GDAL does not list it (GDAL_READDIR_LIMIT_ON_OPEN)."""
MAX_VRT_DEPTH = 4
REMOTE = re.compile(r"/vsi|://", re.IGNORECASE)
PREFIX = re.compile(r"\w[\w+.-]+:")
"""The beginning of a GDAL connection string, such as WMS: or NETCDF:, but not a Windows drive."""


def remote_name(path: Path) -> str | None:
    """Return GDAL's name for a URL or a path of its virtual file systems that the user gave; None for a local path."""
    text = path.as_posix()
    if match := re.match(r"(?:/vsicurl/)?(https?):/+(.+)", text):  # Path has merged the slashes
        return f"/vsicurl/{match[1]}://{match[2]}"
    return text if re.match(r"/vsi[a-z0-9_]+/", text) else None


def raster_driver(path: Path) -> str:
    """Return the one GDAL driver with which a raster is to be opened.

    Reads the file's first bytes; all of a VRT, whose sources must be local files.

    Raises:
        InputError: if the file is missing or of another kind, or a file that it refers to might not be local.
    """
    if remote_name(path):
        driver = SUFFIX_DRIVERS.get(path.suffix.lower())
        if driver is None:
            raise InputError(
                f"{path} is not a local file, and its suffix is none of {', '.join(SUFFIX_DRIVERS)}. Download it first."
            )
        return driver
    state = check_input_file(path)
    driver = _local_driver(path)
    if driver == "VRT":
        _check_vrt(path, state.st_mtime_ns, state.st_size)
    return driver


def _local_driver(path: Path) -> str:
    """Return the driver of a local file, after checking the files next to it."""
    header = read_header(path)
    driver = next((driver for magic, driver in RASTER_MAGIC if header.startswith(magic)), None)
    text = header.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        driver = "WEBP"
    elif driver is None and text.startswith(b"<"):
        driver = _xml_driver(path, text)
    elif driver is None and text.startswith((b"ncols", b"nrows", b"xllc", b"yllc", b"cellsize")):
        driver = "AAIGrid"
    driver = driver or _raw_driver(path)
    if driver is None:
        raise InputError(
            f"{path} cannot be opened as an image: its content is none of {RASTER_FORMATS}. Check or convert it."
        )
    if driver == "GPKG":
        _check_sqlite(path)
    _check_siblings(path)
    return driver


def read_header(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error


def _xml_driver(path: Path, text: bytes) -> str:
    is_vrt = b"<vrtdataset" in text
    if is_vrt and path.suffix.lower() == ".vrt":
        return "VRT"
    if is_vrt:
        raise InputError(
            f"{path} is a VRT, which refers to other files, and opens only with the suffix .vrt. Check and rename it."
        )
    raise InputError(
        f"{path} is an XML file, not an image. Web map services and catalogues are not read: download the image."
    )


def _raw_driver(path: Path) -> str | None:
    """Return the driver of a file of bare pixels, from the header file next to it; None without one."""
    for header in (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr")):
        if header != path and header.is_file():
            return "ENVI" if read_header(header).startswith(b"ENVI") else "EHdr"
    return None


def _check_siblings(path: Path) -> None:
    """Raise InputError for a mask or overviews next to an image that GDAL might open with another driver than GTiff."""
    for sibling in _siblings(path):
        if check_input_file(sibling) and _local_driver(sibling) != "GTiff":
            raise InputError(f"{sibling}, next to {path.name}, is not a GeoTIFF. Remove or replace it.")


def _siblings(path: Path) -> Iterator[Path]:
    """Yield the masks and overviews that GDAL reads with an image, regardless of case, as GDAL does."""
    try:
        listed = _listed_files(path.parent, path.parent.stat().st_mtime_ns)
    except OSError:
        listed = None
    for suffix in (".msk", ".ovr"):
        if listed is None:
            exact = (path.name + suffix, path.name + suffix.upper())
            names = [name for name in exact if os.path.lexists(path.with_name(name))]
        else:
            names = listed.get(path.name.casefold() + suffix, [])
        yield from map(path.with_name, names)


@lru_cache(maxsize=16)
def _listed_files(folder: Path, modified_ns: int) -> dict[str, list[str]] | None:
    """Return the names in a folder by their lower case; None if there are too many. The time is the cache's key."""
    found: dict[str, list[str]] = defaultdict(list)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, MAX_LISTED_FILES + 1)]
    for name in names:
        found[name.casefold()].append(name)
    return None if len(names) > MAX_LISTED_FILES else dict(found)


VRT_TAGS = frozenset(
    """
    vrtdataset srs geotransform gcplist gcp metadata mdi blockxsize blockysize maskband vrtrasterband colorinterp
    nodatavalue hidenodatavalue description unittype offset scale categorynames category colortable entry histograms
    histitem histmin histmax bucketcount includeoutofrange approximate histcounts simplesource complexsource
    averagedsource kernelfilteredsource sourcefilename sourceband sourceproperties srcrect dstrect nodata scaleratio
    scaleoffset lut usemaskband exponent srcmin srcmax dstmin dstmax clamp colortablecomponent kernel size coefs
    overviewlist
    gdalwarpoptions warpmemorylimit resamplealg workingdatatype option sourcedataset transformer approxtransformer
    maxerror basetransformer genimgprojtransformer srcgeotransform srcinvgeotransform dstgeotransform
    dstinvgeotransform reprojecttransformer reprojectiontransformer sourcesrs targetsrs bandlist bandmapping
    srcnodatareal srcnodataimag dstnodatareal dstnodataimag srcalphaband dstalphaband
    """.split()  # noqa: SIM905 (a list of 70 quoted names is harder to read)
)
"""Elements of a VRT that GDAL reads without executing code or opening files, except for FILE_TAGS. No pixel functions,
raw bands, overviews, open options, or transformers that read files."""
FILE_TAGS = ("sourcefilename", "sourcedataset")
SUBCLASSES = ("", "vrtsourcedrasterband", "vrtwarpeddataset", "vrtwarpedrasterband")
FREE_TEXT, MAX_PREFIX = ("description", "category", "metadata"), 60
"""Elements whose text GDAL does not interpret, and the length of the beginning of others by which a URL is found."""
FILE_DOMAINS = ("overviews", "geolocation", "vrt_sources", "new_vrt_sources")
"""Metadata domains in which GDAL looks for file names."""


@lru_cache(maxsize=256)
def _check_vrt(path: Path, modified_ns: int, size: int, depth: int = 0) -> None:
    """Raise InputError unless a VRT refers to local files only and computes nothing. The state is the cache's key."""
    if size > MAX_XML_BYTES or depth > MAX_VRT_DEPTH:
        raise InputError(
            f"{path} is too large or too deeply nested a VRT. Convert it: gdal_translate {path.name} a.tif."
        )
    text = _read_text(path, MAX_XML_BYTES).lstrip("\ufeff \t\r\n")
    # GDAL's XML parser differs from Python's where there are comments, declarations and processing instructions.
    if "<!" in text or "<?" in text[2:]:
        raise _vrt_error(path, "a comment, declaration or processing instruction")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not well-formed XML: {error}. Check or replace it.") from error
    for element in _vrt_elements(path, root):
        if element.tag.casefold() in FILE_TAGS:
            _check_vrt_source(path, element, depth)


def _vrt_elements(path: Path, root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield the elements of a VRT except for metadata; raise InputError for one that is not allowed."""
    tag = root.tag.casefold()
    attributes = {name.casefold(): value for name, value in root.attrib.items()}
    if tag not in VRT_TAGS:
        raise _vrt_error(path, f"the element {root.tag}")
    if attributes.get("subclass", "").casefold() not in SUBCLASSES:
        raise _vrt_error(path, attributes["subclass"])
    if any(name in attributes for name in FILE_TAGS):
        raise _vrt_error(path, "a file name in an attribute")
    # Among these are CRSs, which GDAL would download; WKT begins otherwise.
    texts = () if tag in FREE_TEXT else (root.text or "", *attributes.values())
    if any(REMOTE.search(text.strip()[:MAX_PREFIX]) for text in texts):
        raise _vrt_error(path, f"a URL in the element {root.tag}")
    if tag == "metadata":
        if attributes.get("domain", "").casefold() in FILE_DOMAINS:
            raise _vrt_error(path, f"metadata of the domain {attributes['domain']}")
        return
    yield root
    for child in root:
        yield from _vrt_elements(path, child)


def _check_vrt_source(path: Path, element: ElementTree.Element, depth: int) -> None:
    name = (element.text or "").strip()
    attributes = {key.casefold(): value for key, value in element.attrib.items()}
    if len(element) or REMOTE.search(name) or PREFIX.match(name):
        raise _vrt_error(path, f"the source {name}, which is not a local file")
    # Like GDAL, from where a symbolic link leads.
    folder = path.resolve().parent if path.is_symlink() else path.parent
    relative = attributes.get("relativetovrt", "0").strip() not in ("", "0")
    if not relative and not Path(name).is_absolute():
        raise _vrt_error(path, f"the source {name}, which is relative to the working directory")
    source = folder / name
    try:
        state = check_input_file(source)
    except InputError as error:
        raise InputError(f"{path}: source {error}") from error
    driver = _local_driver(source)
    if driver == "VRT":
        _check_vrt(source, state.st_mtime_ns, state.st_size, depth + 1)
    elif driver not in VRT_SOURCES:
        raise _vrt_error(path, f"the source {name} of the format {driver}")


def _vrt_error(path: Path, found: str) -> InputError:
    return InputError(
        f"{path} has {found}; a VRT may only combine local images. Convert it, if you trust it: gdal_translate "
        f"{path.name} {path.stem}.tif."
    )


def _read_text(path: Path, limit: int) -> str:
    """Return the text of an XML file in UTF-8, as GDAL reads it whatever encoding it declares."""
    check_input_file(path)
    try:
        with path.open("rb") as file:
            # A buffer of the whole limit would be allocated for a small file.
            return file.read(min(limit, path.stat().st_size)).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8: {error}. Check or replace it.") from error


LINE_SUFFIXES = (".geojsonl", ".geojsons", ".jsonl", ".ndjson")
JSON_ESCAPE = re.compile(rb"\\u00[2-7]")
"""An escaped ASCII character, in which a key could be hidden."""
CRS_KEY, LINK_KEY = re.compile(rb"crs", re.IGNORECASE), re.compile(rb"href|url", re.IGNORECASE)
SQLITE = b"SQLite format 3\0"
VIRTUAL = re.compile("virtual.*using", re.IGNORECASE | re.DOTALL)
INDEX = re.compile(r"""create virtual table ("[^"]*"|\w+) using (rtree|fts[345])\b""", re.IGNORECASE)
XML_DANGER = re.compile(rb"<!(DOCTYPE|ENTITY)|<OGR\w*DataSource", re.IGNORECASE)


def vector_source(path: Path) -> str:
    """Return the name under which GDAL opens a vector file with the driver of its content.

    Scans all of a JSON or XML file.

    Raises:
        InputError: if the file is missing or of another kind, or refers to remote data.
    """
    if name := remote_name(path):
        if path.suffix.lower() in (".gpkg", ".shp", ".fgb"):
            return name
        raise InputError(f"{path} is not a local .gpkg, .shp or .fgb. Download or unpack it first.")
    if path.suffix.lower() == ".gdb" and any(path.glob("*.gdbtable")):
        return str(path.absolute())
    check_input_file(path)
    header = read_header(path)
    if header.startswith(b"PK\x03\x04") and path.suffix.lower() != ".kmz":
        return _zip_member(path)
    if not header:
        raise InputError(f"{path} is empty. Use a layer with at least one polygon.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _checked_name(path, str(path.absolute()), header, content)


def _checked_name(path: Path, name: str, header: bytes, content: Any) -> str:
    """Return GDAL's name of a vector file (`path` in messages) with these first bytes, after checking its content."""
    text = header.lstrip(b"\xef\xbb\xbf\x1e \t\r\n")
    if text[:1] in (b"{", b"["):
        _check_json(path, content)
        lines = header[:1] == b"\x1e" or Path(name).suffix.lower() in LINE_SUFFIXES
        kind = "GeoJSONSeq" if lines else "TopoJSON" if re.search(rb'"Topology"', text) else "GeoJSON"
        return f"{kind}:{name}"
    if text[:1] == b"<":
        # GML is not read: its schemas may be anywhere.
        if XML_DANGER.search(content) or not re.search(rb"<(\w+:)?kml", text):
            raise _vector_error(path)
        return name
    if header.startswith(SQLITE):
        _check_sqlite(path)
    elif not header.startswith((b"\0\0\x27\x0a", b"fgb\x03", b"PK\x03\x04")):
        raise _vector_error(path)
    return name


def _check_sqlite(path: Path) -> None:
    """Raise InputError if a database has virtual tables other than indices: GDAL's modules open any data source."""
    address = path.absolute().as_uri()
    try:
        try:
            statements = _sql_statements(f"{address}?mode=ro")
        except sqlite3.OperationalError:  # such as a folder that cannot be written, for a journal
            statements = _sql_statements(f"{address}?mode=ro&immutable=1")
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read as a GeoPackage: {error}. Check or replace it.") from error
    for statement in statements:
        if VIRTUAL.search(statement) and not INDEX.match(statement):
            raise InputError(
                f"{path} has a virtual table, which may refer to other data and is not read. Export the layer as "
                "GeoPackage."
            )


def _sql_statements(address: str) -> list[str]:
    """Return the statements that define the tables, views and triggers of a database."""
    with closing(sqlite3.connect(address, uri=True)) as connection:
        return [str(statement) for (statement,) in connection.execute("SELECT sql FROM sqlite_master")]


def _check_json(path: Path, content: Any) -> None:
    """Raise InputError if a JSON file has a CRS that is a link, which GDAL would follow."""
    escaped = JSON_ESCAPE.search(content)
    if not escaped and not (CRS_KEY.search(content) and LINK_KEY.search(content)):
        return
    try:
        documents = [json.loads(content[:])]
    except ValueError:
        try:  # one object per line
            documents = [json.loads(line.strip(b"\x1e ")) for line in content[:].splitlines() if line.strip(b"\x1e \t")]
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}. Check or replace it.") from error
    except RecursionError as error:
        raise InputError(f"{path} is too deeply nested. Check or replace it.") from error
    if any(_has_link(document) for document in documents):
        raise InputError(
            f"{path} has a CRS that is a link to another file or the web, which is not followed. "
            "Remove the member crs, or export the layer as GeoPackage."
        )


def _has_link(document: Any) -> bool:
    """Return whether any object in a JSON document has a member crs with a link. Case does not matter, as in GDAL."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for key, member in value.items():
                if key.casefold() == "crs" and re.search(r'"(href|url)"', json.dumps(member), re.IGNORECASE):
                    return True
            pending += value.values()
        elif isinstance(value, list) and value and not isinstance(value[0], int | float):
            pending += value
    return False


def _zip_member(path: Path) -> str:
    """Return GDAL's name of the only layer file in a zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            suffixes = (".shp", ".geojson", ".json", ".fgb", ".kml")
            members = [name for name in archive.namelist() if name.lower().endswith(suffixes)]
            if len(members) != 1:
                raise InputError(
                    f"{path} has {len(members)} files of polygons; one is needed. Unpack it, and choose one."
                )
            text = members[0].lower().endswith((".geojson", ".json", ".kml"))
            if archive.getinfo(members[0]).file_size > MAX_XML_BYTES and text:
                raise InputError(f"{path} has a very large text file. Unpack it first.")
            with archive.open(members[0]) as member:
                header = member.read(HEADER_BYTES)
                content = header + member.read(MAX_XML_BYTES) if text else header
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a zip file: {error}. Check or replace it.") from error
    return _checked_name(path, f"/vsizip/{{{path.absolute()}}}/{members[0]}", header, content)


def _vector_error(path: Path) -> InputError:
    return InputError(
        f"{path} cannot be read as a vector layer: its content is none of {VECTOR_FORMATS}. "
        "Export the layer as GeoPackage."
    )
