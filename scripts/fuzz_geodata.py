"""The cases of scripts/fuzz_inputs.py that replace rasters, vectors, tables and masks, and edits to special files."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import fuzz_files as f
import numpy as np
from affine import Affine
from fuzz_files import ANY, REFUSED, SAME, Case, Edit, Place
from PIL import Image

NAN, INF = float("nan"), float("inf")


REMOTE_VRT = """<VRTDataset rasterXSize="256" rasterYSize="256"><SRS>EPSG:32612</SRS>
<GeoTransform>528000, 0.1, 0, 4979000, 0, -0.1</GeoTransform>
{bands}</VRTDataset>"""
SOURCE = """<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="0">{name}</SourceFilename>
<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"""
WMS = """<GDAL_WMS><Service name="TMS"><ServerUrl>{server}/${z}/${x}/${y}.png</ServerUrl></Service><DataWindow>
<UpperLeftX>-20037508</UpperLeftX><UpperLeftY>20037508</UpperLeftY><LowerRightX>20037508</LowerRightX>
<LowerRightY>-20037508</LowerRightY><TileLevel>5</TileLevel><SizeX>8192</SizeX><SizeY>8192</SizeY></DataWindow>
<Projection>EPSG:3857</Projection><BandsCount>3</BandsCount></GDAL_WMS>"""


def remote_rasters() -> dict[str, str]:
    """Return files that make GDAL send a request."""
    names = {"/vsicurl/": "/vsicurl/{server}/a.tif", "http": "{server}/a.tif", "nested": "{server}/b.vrt"}
    found = {
        f"a VRT of {kind}": REMOTE_VRT.replace("{bands}", "".join(SOURCE.format(band=b, name=name) for b in (1, 2, 3)))
        for kind, name in names.items()
    }
    found["a WMS file"] = WMS
    found["a WMTS file"] = "<GDAL_WMTS><GetCapabilitiesUrl>{server}/wmts</GetCapabilitiesUrl></GDAL_WMTS>"
    found["an STACIT file"] = (
        '{"type": "FeatureCollection", "stac_version": "1.0.0", "features": [], "links": [{"rel": "next", "href": "{server}/s"}]}'
    )
    found["a line that is a URL"] = "{server}/a.tif"
    return found


def raster_cases() -> Iterator[Case]:
    """Replace the image of `prepare`, `predict` and `suggest`."""
    transforms = {
        "zero": Affine(0, 0, 0, 0, 0, 0),
        "NaN": Affine(NAN, 0, 0, 0, NAN, 0),
        "infinite": Affine(INF, 0, 0, 0, -INF, 0),
        "singular": Affine(1, 1, 528000, 1, 1, 4979000),
        "1e300": Affine(1e300, 0, 0, 0, -1e300, 0),
        "1e-300": Affine(1e-300, 0, 528000, 0, -1e-300, 4979000),
        "rotated": Affine.rotation(30) @ Affine.scale(0.1, -0.1),
        "upside down": Affine(0.1, 0, 528000, 0, 0.1, 4979000),
        "far away": Affine(0.1, 0, 1e18, 0, -0.1, 1e18),
        "degrees beyond 90": Affine(1, 0, 500, 0, -1, 900),
    }
    local = 'LOCAL_CS["local",UNIT["metre",1]]'
    edits: dict[str, Edit] = {
        f"transform: {name}": f.raster("scene.tif", transform=t) for name, t in transforms.items()
    }
    edits |= {
        f"degrees, transform: {n}": f.raster("scene.tif", transform=t, crs="EPSG:4326") for n, t in transforms.items()
    }
    edits |= {
        f"dtype {t}": f.raster("scene.tif", t)
        for t in ("complex64", "complex128", "complex_int16", "int8", "uint16", "int32", "float32", "float64", "uint64")
        if t != "complex_int16"
    }
    edits |= {f"{n} bands": f.raster("scene.tif", bands=n) for n in (1, 2, 4, 5)}
    edits |= {f"{n} pixels": f.raster("scene.tif", size=n) for n in (1, 2, 17)}
    edits |= {
        "a local CRS": f.raster("scene.tif", crs=local),
        "no CRS": f.raster("scene.tif", crs=None),
        "a geocentric CRS": f.raster("scene.tif", crs="EPSG:4978"),
        "a vertical CRS": f.raster("scene.tif", crs="EPSG:5703"),
        "another zone": f.raster("scene.tif", crs="EPSG:32633"),
        "all nodata": f.raster("scene.tif", dtype="float32", nodata=NAN),
        "NaN pixels": special_pixels(NAN),
        "infinite pixels": special_pixels(INF),
        "pixels of 1e38": special_pixels(1e38),
        "-9999 in one band": special_pixels(-9999, nodata=-9999),
        "only nodata": special_pixels(-9999, nodata=-9999, everywhere=True),
    }
    edits |= {f"{n} as .tif": f.replaced("scene.tif", text) for n, text in remote_rasters().items()}
    edits |= {
        "empty": f.replaced("scene.tif", b""),
        "text": f.replaced("scene.tif", "an image"),
        "a folder": folder_instead("scene.tif"),
        "a FIFO": fifo("scene.tif"),
        "no file": removed("scene.tif"),
        "a link to itself": link("scene.tif", "scene.tif"),
        "a dangling link": link("scene.tif", "missing"),
        "a device": link("scene.tif", "/dev/zero"),
        "2^30 x 2^30 in the header": huge_tiff(2**30),
        "2^20 x 2^20 in the header": huge_tiff(2**20),
        "65,000 bands in the header": huge_tiff(256, bands=65000),
        "a VRT of 2^31, nothing in it": f.replaced(
            "scene.tif",
            REMOTE_VRT.replace("256", str(2**31 - 1)).replace(
                "{bands}", '<VRTRasterBand dataType="Byte" band="1"/>' * 3
            ),
        ),
        "a VRT of itself": f.replaced("scene.tif", vrt_of("scene.tif")),
        "a palette PNG": palette("scene.tif"),
        "a JPEG with a false length": f.replaced("scene.tif", b"\xff\xd8\xff\xe0\xff\xff" + bytes(500)),
    }
    commands = (f.PREPARE, f.PREDICT, f.APPLICABILITY)
    for number, (name, edit) in enumerate(edits.items()):
        chosen = commands[:2] if "as .tif" in name or "header" in name or "FIFO" in name else (commands[number % 2],)
        for command in chosen:
            yield Case("raster", f"{name}, {command.arguments[0]}", command, edit, expected=ANY)
    for name, text in remote_rasters().items():
        command = f.command("predict run x.vrt --out m.tif", "run", options=f.TORCH)
        yield Case("raster", f"{name} as .vrt", command, f.replaced("x.vrt", text))
        other = f.Command((*f.SUGGEST.arguments, "x.vrt"), f.SUGGEST.inputs)
        yield Case("raster", f"{name} as .vrt, suggest", other, f.replaced("x.vrt", text))
    for name in ("n" * 250 + ".tif", "a\udce9.tif", "a\nb.tif", "-x.tif", "a'b\"c.tif", "ä ö.tif"):
        for verb in ("prepare", "predict"):
            yield odd_name(verb, name)


def odd_name(verb: str, name: str) -> Case:
    """Return a case with a raster of another name."""

    def edit(place: Place) -> None:
        os.rename(place.folder / "scene.tif", os.fsencode(place.folder) + b"/" + os.fsencode(name))

    command = f.PREPARE if verb == "prepare" else f.PREDICT
    arguments = tuple(f"./{name}" if each == "scene.tif" else each for each in command.arguments)
    shown = name.encode("ascii", "backslashreplace").decode()[:30]
    return Case("raster", f"named {shown}, {verb}", f.Command(arguments, command.inputs), edit)


ROLES = (
    ("labels", "vector", f.GEOJSON, "l.geojson"),
    ("AOI", "vector", f.AOI, "aoi.geojson"),
    ("import", "import", f.IMPORT, "l.geojson"),
)
"""What a vector file is for, with the family of its cases, the command, and its name."""


def vector_cases() -> Iterator[Case]:
    """Replace labels, areas of interest and polygons to import: geometries, coordinate reference systems, other formats, links."""
    ring = [[528001, 4978998], [528004, 4978998], [528004, 4978995], [528001, 4978995], [528001, 4978998]]
    geometries: dict[str, Any] = {
        "an unclosed ring": polygon(ring[:-1]),
        "two vertices": polygon(ring[:2]),
        "no ring": polygon(),
        "no vertices": polygon([]),
        "NaN": polygon([[NAN, NAN], *ring[1:]]),
        "infinite": polygon([[INF, 0], *ring[1:]]),
        "1e300": polygon([[1e300, 1e300], *ring[1:]]),
        "a bow tie": polygon([ring[0], ring[2], ring[1], ring[3], ring[0]]),
        "a point": {"type": "Point", "coordinates": ring[0]},
        "null": None,
        "a line": {"type": "LineString", "coordinates": ring},
        "an unknown type": {"type": "Blob", "coordinates": []},
        "text": polygon([["a", "b"], *ring[1:]]),
        "one number": polygon([[1], *ring[1:]]),
        "no area": polygon([ring[0]] * 4),
        "a hole outside": polygon(ring, [[x + 100, y] for x, y in ring]),
        "nested collections": nested(ring),
        "three dimensions": polygon([[x, y, NAN] for x, y in ring]),
        "elsewhere": polygon([[x + 1e5, y] for x, y in ring]),
    }
    for name, geometry in geometries.items():
        text = json.dumps(collection([geometry]))
        for role, family, command, file in ROLES:
            yield Case(family, f"{name} as {role}", command, f.replaced(file, text))
    whole: dict[str, str] = {
        "a CRS link": json.dumps(
            collection([polygon(ring)])
            | {"crs": {"type": "link", "properties": {"href": "{server}/crs", "type": "proj4"}}}
        ),
        "a CRS named by a URL": json.dumps(
            collection([polygon(ring)]) | {"crs": {"type": "name", "properties": {"name": "{server}/crs"}}}
        ),
        "an unknown CRS": json.dumps(
            collection([polygon(ring)]) | {"crs": {"type": "name", "properties": {"name": "EPSG:999999"}}}
        ),
        "no features": json.dumps(collection([])),
        "empty": "",
        "text": "labels",
        "null": "null",
        "a list": "[]",
        "half": json.dumps(collection([polygon(ring)]))[:99],
        "an OGR VRT": '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>/vsicurl/{server}/a.geojson</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>',
        "a WFS": "WFS:{server}/wfs",
        "an OAPIF": "OAPIF:{server}/c",
        "a KML link": "<kml><Document><NetworkLink><Link><href>{server}/a.kml</href></Link></NetworkLink></Document></kml>",
        "GML with a schema": '<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="a {server}/a.xsd"/>',
        "an XML entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "{server}/e">]><gml>&b;</gml>',
        "a remote TopoJSON": '{"type":"Topology","objects":{},"arcs":[]}',
        "ESRI JSON": '{"geometryType":"esriGeometryPolygon","features":[],"exceededTransferLimit":true}',
    }
    for name, text in whole.items():
        for role, family, command, file in ROLES:
            yield Case(family, f"{name} as {role}", command, f.replaced(file, text))
    statements = {
        "no geometries": "UPDATE TABLE_ SET geom = NULL",
        "geometries of zero bytes": "UPDATE TABLE_ SET geom = x'00'",
        "half geometries": "UPDATE TABLE_ SET geom = substr(geom, 1, 60)",
        "no features": "DELETE FROM TABLE_",
        "no table": "DROP TABLE TABLE_",
        "an unknown CRS": "UPDATE gpkg_contents SET srs_id = 999999",
        "another kind": "UPDATE gpkg_geometry_columns SET geometry_type_name = 'POINT'",
    }
    for name, statement in statements.items():
        yield Case("vector", f"{name}, GeoPackage", f.PREPARE, f.edited_table("labels.gpkg", statement))
    for name, edit in {
        "a FIFO": fifo("l.geojson"),
        "a folder": folder_instead("l.geojson"),
        "no file": removed("l.geojson"),
    }.items():
        yield Case("vector", name, f.GEOJSON, edit, expected=REFUSED)


def polygon(*rings: Any) -> dict[str, Any]:
    """Return a polygon of GeoJSON."""
    return {"type": "Polygon", "coordinates": list(rings)}


def collection(geometries: list[Any]) -> dict[str, Any]:
    """Return a collection of GeoJSON in UTM zone 12."""
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32612"}}
    features = [{"type": "Feature", "properties": {"kind": "a"}, "geometry": each} for each in geometries]
    return {"type": "FeatureCollection", "crs": crs, "features": features}


def nested(ring: Any) -> dict[str, Any]:
    """Return a polygon within 200 collections."""
    geometry = polygon(ring)
    for _ in range(200):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    return geometry


def table_cases() -> Iterator[Case]:
    """Edit tables that people write: groups, DSTL's files, reference points, submissions."""
    grouped = f.Command((*f.PREPARE.arguments, "--split", "group", "--groups", "groups.csv"), f.PREPARE.inputs)
    groups = {
        "a scene in two groups": "scene,group\nscene,a\nscene,b\n",
        "no header": "scene,a\n",
        "empty": "",
        "no such scene": "scene,group\nother,a\n",
        "an empty group": "scene,group\nscene,\n",
        "zero bytes": "\0\0",
        "a column less": "scene\nscene\n",
        "a huge cell": f"scene,group\nscene,{'a' * 200_000}\n",
    }
    for name, text in groups.items():
        yield Case("tables", f"groups: {name}", grouped, f.replaced("groups.csv", text))
    for value in ("nan,inf", "inf,-0.0091", "0.009,nan", "0,0", "-1,1", "1e300,-1e300", "x,y", ",", "0.009"):
        edit = f.changed_text("dstl/grid_sizes.csv", "0.009,-0.0091", value)
        yield Case("tables", f"grid sizes {value}", f.DSTL, edit, expected=REFUSED)
        if value not in (",", "0.009"):
            yield Case("tables", f"grid sizes {value}, jaccard", f.JACCARD, edit, expected=SAME)
    labels = {
        "wrong WKT": "MULTIPOLYGON (((",
        "NaN": "POLYGON ((nan 0, 1 1, 1 0, nan 0))",
        "unclosed": "POLYGON ((0 0, 0.001 0, 0.001 -0.001))",
        "a point": "POINT (0 0)",
        "1e300": "POLYGON ((0 0, 1e300 0, 1e300 -1e300, 0 0))",
    }
    for name, text in labels.items():
        yield Case("tables", f"DSTL labels: {name}", f.DSTL, f.changed_text("dstl/train_wkt_v4.csv", f._TREES, text))
        yield Case("tables", f"submission: {name}", f.JACCARD, f.changed_text(f"{f.SCENE}.csv", f._TREES, text))
    for name in ("train_wkt_v4.csv", "grid_sizes.csv"):
        for label, text in {"empty": "", "text": "a,b\n1,2\n", "zero bytes": "\0" * 50}.items():
            yield Case("tables", f"{name}: {label}", f.DSTL, f.replaced(f"dstl/{name}", text), expected=REFUSED)
    statements = {
        "no reference": "UPDATE TABLE_ SET reference = NULL",
        "an unknown class": "UPDATE TABLE_ SET reference = 'x' WHERE fid = 3",
        "a number": "UPDATE TABLE_ SET reference = 1e300",
        "no points": "DELETE FROM TABLE_",
        "no geometry": "UPDATE TABLE_ SET geom = NULL WHERE fid = 1",
        "no field": "ALTER TABLE TABLE_ DROP COLUMN reference",
        "a point twice": "INSERT INTO TABLE_ (geom, reference) SELECT geom, reference FROM TABLE_ WHERE fid = 1",
    }
    for name, statement in statements.items():
        yield Case("tables", f"points: {name}", f.AREA, f.edited_table("points.gpkg", statement), expected=SAME)


def mask_cases() -> Iterator[Case]:
    """Replace a mask of `prepare masks`."""

    def saved(array: Any, mode: str | None = None, name: str = "masks/0.png") -> Edit:
        def edit(place: Place) -> None:
            image = Image.fromarray(np.asarray(array))
            (image.convert(mode) if mode else image).save(place.folder / name)

        return edit

    ones = np.ones((64, 64), np.uint8)
    edits = {
        "colours": saved(np.stack([ones, ones * 200, ones], axis=2)),
        "alpha": saved(ones, "LA"),
        "another size": saved(ones[:32]),
        "an undeclared value": saved(ones * 77),
        "16 bits": saved(ones.astype(np.uint16) * 300),
        "one bit": saved(ones > 0),
        "a palette": saved(ones, "P"),
        "one pixel": saved(ones[:1, :1]),
        "empty": f.replaced("masks/0.png", b""),
        "text": f.replaced("masks/0.png", "mask"),
        "no mask": removed("masks/0.png"),
        "a mask more": saved(ones, name="masks/more.png"),
        "no image": removed("images/0.png"),
        "a text file beside": f.replaced("masks/notes.txt", "notes"),
        "no masks": folder_instead("masks"),
        "a FIFO": fifo("masks/0.png"),
        "a VRT": f.replaced("masks/0.png", vrt_of("{server}/a.tif")),
        "an image of text": f.replaced("images/0.png", "image"),
        "a FIFO as image": fifo("images/0.png"),
        "a mask twice": saved(ones, name="masks/0.tif"),
        "a bomb": bomb("masks/0.png"),
        "a bomb as image": bomb("images/0.png"),
    }
    for name, edit in edits.items():
        yield Case("masks", name, f.MASKS, edit)
    for option in (
        "",
        "1",
        "1=a",
        "1=a,1=b",
        "-1=a,2=b",
        "1=a,2=a",
        "99999999999=a,2=b",
        "nan=a,b=c",
        "1=a,2=b,3=c",
        "1=,2=",
    ):
        yield Case("masks", f"--classes {option!r}", f.MASKS, options=("--classes", option))
    for ignore in ("1", "-1", "99999999999", "nan"):
        yield Case("masks", f"--ignore {ignore}", f.MASKS, options=("--ignore", ignore))
    for value in ("0", "-1", "nan", "inf", "1e300"):
        yield Case("masks", f"--full-value {value}", f.MASKS, options=("--fractional", "--full-value", value))


def map_cases() -> Iterator[Case]:
    """Replace the class map of `polygons`, `sample` and `area`, and the mask of an import."""
    edits: dict[str, Edit] = {
        "no tags": f.raster("map.tif", bands=1),
        "three bands": f.raster("map.tif"),
        "floats": f.raster("map.tif", "float32", 1),
        "complex": f.raster("map.tif", "complex64", 1),
        "zero scale": f.raster("map.tif", bands=1, transform=Affine(0, 0, 0, 0, 0, 0)),
        "NaN scale": f.raster("map.tif", bands=1, transform=Affine(NAN, 0, 0, 0, NAN, 0)),
        "impossible degrees": f.raster("map.tif", bands=1, transform=Affine(1, 0, 500, 0, -1, 900), crs="EPSG:4326"),
        "no CRS": f.raster("map.tif", bands=1, crs=None),
        "1e300": f.raster("map.tif", bands=1, transform=Affine(1e300, 0, 0, 0, -1e300, 0)),
        "rotated": f.raster("map.tif", bands=1, transform=Affine.rotation(30) @ Affine.scale(0.1)),
        "only nodata": f.raster("map.tif", bands=1, nodata=255),
        "2^30 x 2^30 in the header": huge_tiff(2**30, "map.tif", 1),
        "empty": f.replaced("map.tif", b""),
        "a FIFO": fifo("map.tif"),
        "a VRT of http": f.replaced("map.tif", vrt_of("{server}/a.tif")),
        "a folder": folder_instead("map.tif"),
        "a local CRS": f.raster("map.tif", bands=1, crs='LOCAL_CS["x",UNIT["metre",1]]'),
    }
    for name, edit in edits.items():
        for command in (f.POLYGONS, f.SAMPLE, f.AREA):
            yield Case("map", f"{name}, {command.arguments[0]}", command, edit)
        yield Case("import", f"{name} as mask", f.IMPORT_MASK, edit)
    for extension in (".gpkg", ".fgb", ".parquet", ".shp", "", ".csv", ".geojson.gz"):
        yield Case("map", f"polygons to {extension}", f.POLYGONS, options=("--out", f"p{extension}"))


# ------------------------------------------------------------------------------------------------------- special files


def removed(name: str) -> Edit:
    """Return an edit that removes a file or folder."""

    def edit(place: Place) -> None:
        path = place.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def folder_instead(name: str) -> Edit:
    """Return an edit that replaces a file or folder by an empty folder."""

    def edit(place: Place) -> None:
        removed(name)(place)
        (place.folder / name).mkdir()

    return edit


def fifo(name: str) -> Edit:
    """Return an edit that replaces a file by a FIFO that nobody writes to."""

    def edit(place: Place) -> None:
        (place.folder / name).unlink(missing_ok=True)
        os.mkfifo(place.folder / name)

    return edit


def link(name: str, target: str) -> Edit:
    """Return an edit that replaces a file by a symbolic link."""

    def edit(place: Place) -> None:
        (place.folder / name).unlink(missing_ok=True)
        (place.folder / name).symlink_to(target)

    return edit


def vrt_of(name: str) -> str:
    """Return a VRT of three bands of a file."""
    return REMOTE_VRT.replace("{bands}", "".join(SOURCE.format(band=band, name=name) for band in (1, 2, 3)))


def special_pixels(value: float, everywhere: bool = False, **options: Any) -> Edit:
    """Return an edit that sets pixels of one band, or all, of a raster of floats."""

    def edit(place: Place) -> None:
        pixels = np.random.default_rng(0).uniform(1, 200, (3, 256, 256)).astype(np.float32)
        pixels[...] = value if everywhere else pixels
        pixels[1, 40:90, 40:90] = value
        f.write_raster(place.folder / "scene.tif", pixels, **options)

    return edit


def palette(name: str) -> Edit:
    """Return an edit that writes a PNG with a palette."""
    return lambda place: (
        Image.fromarray(np.ones((64, 64), np.uint8)).convert("P").save(place.folder / name, format="PNG")
    )


def huge_tiff(size: int, name: str = "scene.tif", bands: int = 3) -> Edit:
    """Return an edit that writes a TIFF of a few hundred bytes whose header says `size` x `size` pixels."""
    tags = [
        (256, 4, size),
        (257, 4, size),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (277, 3, bands),
        (322, 4, 2**15),
        (323, 4, 2**15),
        (324, 4, 8),
        (325, 4, 8),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return f.replaced(name, data)


def bomb(name: str) -> Edit:
    """Return an edit that writes a small PNG of 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def content(place: Place) -> bytes:
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
        packer = zlib.compressobj(9)
        rows = b"".join(packer.compress(bytes(60_001)) for _ in range(2000)) + packer.flush()
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    return f.replaced(name, content)
