"""Which driver opens a file, and that no file, whatever its name and content, makes GDAL send a request.

The listener accepts no connection: without the checks, GDAL connects to it and waits until its timeout of a second.
"""

import json
import os
import shutil
import socket
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image as Picture
from shapely import box

from geograft.errors import InputError
from geograft.geo.formats import raster_driver, remote_name
from geograft.geo.grid import Window
from geograft.geo.rasters.opening import raster_state
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.writer import copy_tiled
from geograft.geo.vectors.points import read_points
from geograft.geo.vectors.reader import read_outlines, read_polygons, read_tiles
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

Attack = Callable[[str], tuple[str, str]]
"""Returns the name and the content of a hostile file, given the URL of the listener."""
ALL = Window(0, 0, 64, 64)
TRIANGLE = {"type": "Polygon", "coordinates": [[[0, 0], [0, 1], [1, 1], [0, 0]]]}
FEATURE = {"type": "Feature", "properties": {"kind": "a"}, "geometry": TRIANGLE}


class Listener:
    """A port of this machine that counts connections without answering them."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._socket.setblocking(False)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def connections(self) -> int:
        """Return the number of connections since the last call."""
        count = 0
        while True:
            try:
                self._socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    opened = Listener()
    yield opened
    opened.close()


def vrt(source: str, band: str = "", dataset: str = "", relative: int = 1) -> str:
    return (
        '<VRTDataset rasterXSize="64" rasterYSize="64">'
        f'{dataset}<VRTRasterBand dataType="Byte" band="1" {band}><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def wms(url: str) -> str:
    window = "<UpperLeftX>0</UpperLeftX><UpperLeftY>64</UpperLeftY><LowerRightX>64</LowerRightX>"
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}</ServerUrl></Service><DataWindow>{window}'
        "<LowerRightY>0</LowerRightY><TileLevel>0</TileLevel><SizeX>64</SizeX><SizeY>64</SizeY></DataWindow>"
        "<BlockSizeX>64</BlockSizeX><BlockSizeY>64</BlockSizeY><BandsCount>1</BandsCount></GDAL_WMS>"
    )


def refused(path: Path, listener: Listener) -> str:
    """Assert that every way to read a raster refuses it in one line, without a connection, and return the line."""
    for read in (Image.open, raster_state, lambda file: copy_tiled(file, file.with_name("copy.tif"))):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert listener.connections() == 0
    return str(caught.value)


RASTER_ATTACKS: dict[str, Attack] = {
    "a VRT with a URL": lambda url: ("a.vrt", vrt(f"/vsicurl/{url}/a.tif")),
    "the same, called .tif": lambda url: ("a.tif", vrt(f"/vsicurl/{url}/a.tif")),
    "a local VRT called .tif": lambda url: ("a.tif", vrt("good.tif")),
    "a plain URL": lambda url: ("a.vrt", vrt(f"{url}/a.tif", relative=0)),
    "streaming": lambda url: ("a.vrt", vrt(f"/vsicurl_streaming/{url}/a.tif")),
    "a zip file on the web": lambda url: ("a.vrt", vrt(f"/vsizip/vsicurl/{url}/a.zip/a.tif")),
    "a connection string": lambda url: ("a.vrt", vrt(f"WMS:{url}?service=wms", relative=0)),
    "vrt://": lambda url: ("a.vrt", vrt(f"vrt:///vsicurl/{url}/a.tif", relative=0)),
    "a VRT as file name": lambda url: ("a.vrt", vrt("&lt;VRTDataset/&gt;", relative=0)),
    "escaped": lambda url: ("a.vrt", vrt(f"&#47;vsicurl/{url}/a.tif")),
    "another case": lambda url: ("a.vrt", vrt(f"/vsicurl/{url}/a.tif").replace("SourceFilename", "SOURCEFILENAME")),
    "an attribute": lambda url: (
        "a.vrt",
        vrt("good.tif").replace("<SimpleSource>", f'<SimpleSource SourceFilename="/vsicurl/{url}/a.tif">'),
    ),
    "a comment in the name": lambda url: ("a.vrt", vrt("bad<!-- -->.tif")),
    "a WMS in a VRT": lambda url: ("a.vrt", vrt("wms.tif")),
    "a VRT in a VRT": lambda url: ("a.vrt", vrt("remote.vrt")),
    "a VRT called .tif in a VRT": lambda url: ("a.vrt", vrt("inner.tif")),
    "itself": lambda url: ("a.vrt", vrt("a.vrt")),
    "overviews": lambda url: (
        "a.vrt",
        vrt("good.tif").replace(
            "<SimpleSource>",
            f"<Overview><SourceFilename>/vsicurl/{url}/o.tif</SourceFilename></Overview><SimpleSource>",
        ),
    ),
    "OVERVIEW_FILE": lambda url: (
        "a.vrt",
        vrt(
            "good.tif",
            dataset='<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/x</MDI></Metadata>',
        ),
    ),
    "a pixel function": lambda url: (
        "a.vrt",
        vrt("good.tif", 'subClass="VRTDerivedRasterBand"').replace(
            "<SimpleSource>", "<PixelFunctionLanguage>Python</PixelFunctionLanguage><SimpleSource>"
        ),
    ),
    "bare pixels of any file": lambda url: ("a.vrt", vrt("secret.txt", 'subClass="VRTRawRasterBand"')),
    "the CRS of a warped VRT": lambda url: (
        "a.vrt",
        vrt("good.tif", dataset=f"<GDALWarpOptions><SourceSRS>{url}/crs</SourceSRS></GDALWarpOptions>"),
    ),
    "the CRS of control points": lambda url: (
        "a.vrt",
        vrt("good.tif", dataset=f'<GCPList Projection="{url}/crs"></GCPList>'),
    ),
    "relative to the working directory": lambda url: ("a.vrt", vrt("good.tif", relative=0)),
    "an external entity": lambda url: (
        "a.vrt",
        f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "{url}">]>' + vrt("good.tif", dataset="<SRS>&x;</SRS>"),
    ),
    "an entity bomb": lambda url: (
        "a.vrt",
        '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;">]>' + vrt("good.tif", dataset="<SRS>&y;</SRS>"),
    ),
    "a WMS file": lambda url: ("a.tif", wms(f"{url}/${{z}}/${{x}}/${{y}}.png")),
    "a WMS file called .xml": lambda url: ("a.xml", wms(f"{url}/${{z}}/${{x}}/${{y}}.png")),
    "a tile index": lambda url: ("a.tif", f"<GDALTileIndexDataset>{url}</GDALTileIndexDataset>"),
    "a STAC catalogue": lambda url: ("a.tif", json.dumps({"stac_version": "1.0.0", "links": [{"href": url}]})),
}  # fmt: skip


@pytest.mark.parametrize("attack", RASTER_ATTACKS.values(), ids=RASTER_ATTACKS)
def test_no_raster_sends_a_request(tmp_path: Path, listener: Listener, attack: Attack) -> None:
    write_raster(tmp_path / "good.tif", textured(1, 64, 64))
    (tmp_path / "secret.txt").write_text("secret" * 1000)
    (tmp_path / "bad").write_text(wms(listener.url))
    (tmp_path / "bad.tif").write_bytes((tmp_path / "good.tif").read_bytes())
    (tmp_path / "wms.tif").write_text(wms(listener.url))
    (tmp_path / "remote.vrt").write_text(vrt(f"/vsicurl/{listener.url}/a.tif"))
    (tmp_path / "inner.tif").write_text(vrt("good.tif"))
    name, content = attack(listener.url)
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, listener)


@pytest.mark.parametrize("suffix", [".msk", ".MSK", ".ovr"])
@pytest.mark.parametrize("image", ["a.tif", "a.png"])
@pytest.mark.parametrize("kind", [lambda url: vrt(f"/vsicurl/{url}/m.tif"), wms], ids=["vrt", "wms"])
def test_files_next_to_an_image_send_no_request(
    tmp_path: Path, listener: Listener, image: str, suffix: str, kind: Callable[[str], str]
) -> None:
    path = tmp_path / image
    if image == "a.tif":
        write_raster(path, textured(1, 64, 64))
    else:
        Picture.fromarray(textured(1, 64, 64)[0]).save(path)
    (tmp_path / f"{image}{suffix}").write_text(kind(listener.url))
    assert f"{image}{suffix}" in refused(path, listener)


def test_the_overviews_that_metadata_names_are_not_opened(tmp_path: Path, listener: Listener) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 64, 64))
    domain = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{listener.url}/o.tif</MDI></Metadata>'
    for text in (domain, domain.replace("_", "&#95;"), domain.replace("OVERVIEW", "overview")):
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{text}</PAMDataset>")
        refused(path, listener)
    (tmp_path / "a.tif.aux.xml").unlink()
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{listener.url}/o.tif")
    refused(path, listener)


def test_a_vrt_of_local_images_reads_as_before(tmp_path: Path) -> None:
    pixels = textured(1, 64, 64)
    write_raster(tmp_path / "sub" / "good.tif", pixels)
    (tmp_path / "inner.vrt").write_text('<?xml version="1.0"?>\n' + vrt("sub/good.tif"))
    (tmp_path / "outer.vrt").write_text(vrt("inner.vrt", 'subClass="VRTSourcedRasterBand"'))
    (tmp_path / "link.vrt").symlink_to(tmp_path / "sub" / "linked.vrt")
    (tmp_path / "sub" / "linked.vrt").write_text(vrt("good.tif"))
    for name in ("inner.vrt", "outer.vrt", "link.vrt"):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(image.read(ALL)[0], pixels)


def test_a_vrt_that_changes_is_checked_again(tmp_path: Path, listener: Listener) -> None:
    write_raster(tmp_path / "good.tif", textured(1, 64, 64))
    path = tmp_path / "a.vrt"
    path.write_text(vrt("good.tif"))
    Image.open(path).close()
    path.write_text(vrt(f"/vsicurl/{listener.url}/a.tif"))
    refused(path, listener)


@pytest.mark.parametrize(
    ("suffix", "driver"),
    [(".tif", "GTiff"), (".png", "PNG"), (".jpg", "JPEG"), (".bin", "ENVI"), (".img", "HFA"), (".asc", "AAIGrid")],
)
def test_the_driver_follows_from_the_content(tmp_path: Path, suffix: str, driver: str) -> None:
    path = tmp_path / f"a{suffix}"
    if driver == "AAIGrid":
        path.write_text("ncols 2\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n")
    else:
        profile = {"width": 64, "height": 64, "count": 1, "dtype": "uint8", "transform": TENTH_METRE}
        with rasterio.open(path, "w", driver=driver, **profile) as raster:
            raster.write(textured(1, 64, 64))
    assert raster_driver(path) == driver
    Image.open(path).close()
    if driver in ("GTiff", "PNG", "JPEG", "HFA"):
        shutil.copy(path, tmp_path / "other.xyz")
        assert raster_driver(tmp_path / "other.xyz") == driver


def test_a_path_in_a_zip_file_opens_by_its_suffix(tmp_path: Path) -> None:
    pixels = textured(1, 64, 64)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(write_raster(tmp_path / "a.tif", pixels), "a.tif")
    path = Path(f"/vsizip/{{{tmp_path}/a.zip}}/a.tif")
    with Image.open(path) as image:
        assert np.array_equal(image.read(ALL)[0], pixels)
    with pytest.raises(InputError, match=r"a\.zip"):
        raster_state(path)
    with pytest.raises(InputError, match=r"a\.vrt"):
        Image.open(path.with_suffix(".vrt"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("/vsicurl/http://host/a.tif", "/vsicurl/http://host/a.tif"),
        ("/vsis3/bucket/a.tif", "/vsis3/bucket/a.tif"),
        ("a.tif", None),
        ("/vsi.tif/../a.tif", None),
    ],
)
def test_only_what_the_user_gave_is_remote(given: str, name: str | None) -> None:
    assert remote_name(Path(given)) == name


# ------------------------------------------------------------------------------------------------- vectors


def geojson(crs: object, where: str = "layer") -> dict[str, object]:
    feature = {**FEATURE, "geometry": {**TRIANGLE, "crs": crs}} if where == "geometry" else FEATURE
    return {"type": "FeatureCollection", "features": [feature], **({"crs": crs} if where == "layer" else {})}


def link(url: str) -> dict[str, object]:
    return {"type": "link", "properties": {"href": f"{url}/crs", "type": "ogcwkt"}}


def ogr_vrt(url: str) -> str:
    layer = f'<OGRVRTLayer name="a"><SrcDataSource>/vsicurl/{url}/a.geojson</SrcDataSource></OGRVRTLayer>'
    return f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"


def escaped(text: str) -> str:
    for word in ("crs", "link", "href"):
        text = text.replace(f'"{word}"', f'"\\u{ord(word[0]):04x}{word[1:]}"')
    return text


VECTOR_ATTACKS: dict[str, Attack] = {
    "a CRS link": lambda url: ("a.geojson", json.dumps(geojson(link(url)))),
    "of a geometry": lambda url: ("a.geojson", json.dumps(geojson(link(url), "geometry"))),
    "a CRS URL": lambda url: ("a.geojson", json.dumps(geojson({"type": "url", "properties": {"url": url}}))),
    "another case": lambda url: (
        "a.geojson",
        json.dumps(geojson(link(url))).replace('"crs"', '"CRS"').replace("href", "HREF"),
    ),
    "escaped": lambda url: ("a.geojson", escaped(json.dumps(geojson(link(url))))),
    "not strict JSON": lambda url: ("a.geojson", json.dumps(geojson(link(url))).replace("[[0, 0]", "/**/[[0, 0]")),
    "called .gpkg": lambda url: ("a.gpkg", json.dumps(geojson(link(url)))),
    "lines": lambda url: ("a.geojsonl", json.dumps({**FEATURE, "crs": link(url)})),
    "TopoJSON": lambda url: (
        "a.json",
        json.dumps({"type": "Topology", "objects": {}, "arcs": [], "crs": link(url)}),
    ),
    "an OGR VRT": lambda url: ("a.vrt", ogr_vrt(url)),
    "called .geojson": lambda url: ("a.geojson", ogr_vrt(url)),
    "called .shp": lambda url: ("a.shp", ogr_vrt(url)),
    "after a comment": lambda url: ("a.kml", f"<!-- <kml> -->{ogr_vrt(url)}"),
    "a pipeline": lambda url: (
        "a.json",
        json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read /vsicurl/{url}/a.fgb"}),
    ),
    "a WFS": lambda url: ("a.xml", f"<OGRWFSDataSource><URL>{url}</URL></OGRWFSDataSource>"),
    "an external entity": lambda url: (
        "a.gml",
        f'<!DOCTYPE a SYSTEM "{url}/a.dtd"><a xmlns:gml="http://www.opengis.net/gml"/>',
    ),
}


@pytest.mark.parametrize("attack", VECTOR_ATTACKS.values(), ids=VECTOR_ATTACKS)
@pytest.mark.parametrize("zipped", [False, True])
def test_no_vector_file_sends_a_request(tmp_path: Path, listener: Listener, attack: Attack, zipped: bool) -> None:
    name, content = attack(listener.url)
    path = tmp_path / name
    path.write_text(content)
    if zipped:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / name, name)
    for read in (read_polygons, read_tiles, read_outlines, lambda file: read_points(file, None)):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert listener.connections() == 0


@pytest.mark.parametrize("name", ["a.gpkg", "a.sqlite", "a.db"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "sql", ["CREATE VIRTUAL TABLE e USING VirtualOGR({})", "create/**/virtual table e using VirtualOGR({})"]
)
def test_a_database_with_a_virtual_table_sends_no_request(
    tmp_path: Path, listener: Listener, name: str, plain: bool, sql: str
) -> None:
    if not plain:
        frame = geopandas.GeoDataFrame({"reference": ["a"]}, geometry=[box(0, 0, 1, 1)], crs=UTM12)
        frame.to_file(tmp_path / "b.gpkg", layer="a")
        (tmp_path / "b.gpkg").rename(tmp_path / name)
    with sqlite3.connect(tmp_path / name) as table:
        table.execute("CREATE TABLE other (x)")
        table.execute("PRAGMA writable_schema = 1")
        statement = sql.format(f"'/vsicurl/{listener.url}/a.geojson'")
        table.execute("INSERT INTO sqlite_master VALUES ('table', 'e', 'e', 0, ?)", (statement,))
    table.close()
    for read in (Image.open, read_polygons, read_tiles, read_outlines, lambda file: read_points(file, None)):
        with pytest.raises(InputError):
            read(tmp_path / name)
    assert listener.connections() == 0


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp", "a.fgb", "a.geojsonl", "a.kml", "a.zip"])
def test_vector_formats_are_read(tmp_path: Path, name: str) -> None:
    frame = geopandas.GeoDataFrame({"Name": ["\u00e9 crs href"]}, geometry=[box(3, 4, 5, 6)], crs="EPSG:4326")
    driver = {".geojsonl": "GeoJSONSeq", ".kml": "LIBKML"}.get(Path(name).suffix)
    if name == "a.zip":
        (tmp_path / "b").mkdir()
        frame.to_file(tmp_path / "b" / "b.shp")
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path in (tmp_path / "b").iterdir():
                archive.write(path, path.name)
    else:
        frame.to_file(tmp_path / name, driver=driver)
    found = read_polygons(tmp_path / name, class_field="Name")
    assert np.allclose(found.bounds, (3, 4, 5, 6))
    assert found.classes == ("\u00e9 crs href",)
    assert found.crs is not None
    assert found.crs.to_epsg() == 4326


def test_a_crs_by_name_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text(json.dumps(geojson({"type": "name", "properties": {"name": UTM12}})))
    found = read_polygons(tmp_path / "a.geojson")
    assert found.crs is not None
    assert found.crs.to_epsg() == 32612


# ------------------------------------------------------------------------------------------------- names and kinds


@pytest.mark.parametrize("name", ["a" * 300 + ".tif", "a\0.tif"], ids=["long", "null"])
def test_a_name_that_cannot_be_a_file_is_refused(tmp_path: Path, name: str) -> None:
    for read in (Image.open, read_polygons):
        with pytest.raises(InputError):
            read(tmp_path / name)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.tif")
    write_raster(tmp_path / "a.tif", textured(1, 64, 64)).rename(path)
    for read in (Image.open, read_polygons):
        with pytest.raises(InputError, match=r"\\xff") as caught:
            read(path)
        str(caught.value).encode()  # it can be printed


def test_a_fifo_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tif")
    os.mkfifo(tmp_path / "b.tif.msk")
    write_raster(tmp_path / "b.tif", textured(1, 64, 64))
    for read in (Image.open, read_polygons):
        with pytest.raises(InputError, match=r"a\.tif"):
            read(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"b\.tif\.msk"):
        Image.open(tmp_path / "b.tif")
