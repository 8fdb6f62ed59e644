"""The cases of scripts/fuzz_inputs.py with scenes of one file per band: products, archives, STAC items and lists."""

import json
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fuzz_files as f
import fuzz_geodata as g
import geopandas
import numpy as np
from fuzz_files import ACCEPTED, ANY, REFUSED, Case, Edit, Place
from shapely import box

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import scenes

NAMES = ("red", "nir", "swir16")
EDGE = 64
WAYS = ("flip", "flip", "cut", "drop", "zero")
XML, ZIP, ITEM = "safe/MTD_MSIL2A.xml", "product.zip", "stac/S2A_32TLQ.json"
BAND = f"safe/GRANULE/g/IMG_DATA/R10m/{scenes.TILE}_B08_10m.jp2"
OTHER = BAND.replace("GRANULE/g/", "GRANULE/h/")
MTL = f"landsat/{scenes.LANDSAT}_MTL"
TILING = ("--tile-px", "16", "--overlap", "0", "--split", "block", "--block-px", "16", "--buffer-px", "0")


def prepare(image: str, *inputs: str, bands: str = "red,nir,swir16", options: Sequence[str] = ()) -> f.Command:
    """Return a command that reads all pixels of a scene."""
    text = f"prepare vector {image} --labels squares.gpkg --out q --bands {bands}"
    return f.command(text, "squares.gpkg", *inputs, options=(*TILING, *options))


SAFE = prepare("safe", "safe", options=("--mask", "scl:3,8-10"))
ARCHIVE = prepare(ZIP, ZIP)
LANDSAT = prepare("landsat", "landsat", bands="red,nir08", options=("--mask", "qa_pixel:bits:1-4"))
STAC = prepare(ITEM, "stac", options=("--mask", "scl:3"))
LIST = prepare("--band-files B04=stac/assets/B04.tif,B08=stac/assets/B08.tif", "stac", bands="red,nir")
PROJECT = f.command(f"project new safe --bands red,nir --classes a --scoring-areas 1 --area-px {EDGE // 4}", "safe")
PREDICT = f.command("predict run safe --out m.tif", "run", "safe", options=f.TORCH)


def write_scenes(folder: Path) -> None:
    """Write a product of Sentinel-2, as a folder and as an archive, one of Landsat, a STAC item and labels."""
    pixels = {name: band for name, band in scenes.reflectances(EDGE).items() if name in ("B02", "B04", "B08", "B11")}
    scl = np.full((EDGE // 2, EDGE // 2), 4, np.uint8)
    scenes.write_safe(folder / "made", pixels, scl).rename(folder / "safe")
    (granule,) = (folder / "safe" / "GRANULE").iterdir()
    granule.rename(granule.with_name("g"))
    scenes.zip_folder(folder / "safe", folder / ZIP)
    scenes.write_stac_item(folder / "stac", pixels, scl)
    stored = {"SR_B4": pixels["B04"] + 7300, "SR_B5": pixels["B08"] + 7300}
    quality = np.full(stored["SR_B4"].shape, 64, np.uint16)
    scenes.write_landsat(folder / "made", stored, quality).rename(folder / "landsat")
    shutil.rmtree(folder / "made")
    x, y = scenes.CORNER
    squares = [
        box(x + col, y - row - 80, x + col + 80, y - row) for col in range(0, 1920, 160) for row in range(0, 1920, 160)
    ]
    geopandas.GeoDataFrame(geometry=squares, crs=scenes.UTM32).to_file(folder / "squares.gpkg")


def scene_cases(inputs: Path) -> Iterator[Case]:
    """Damage scenes: their metadata, their bands, their archives, and the options that choose from them."""
    valid = {"safe": SAFE, "zip": ARCHIVE, "landsat": LANDSAT, "stac": STAC, "list": LIST, "project": PROJECT}
    for name, command in valid.items():
        yield Case("scene", f"valid {name}", command, expected=ACCEPTED)
    for name, edit in (_metadata_edits() | _mtl_edits(inputs)).items():
        command = LANDSAT if "MTL" in name else SAFE
        yield Case("scene", name, command, edit, expected=ANY if "any" in name else REFUSED)
    for number, (name, edit) in enumerate(_band_edits().items()):
        command = (SAFE, PROJECT)[number % 2]
        yield Case("scene", f"band: {name}", command, edit, expected=ANY if "any" in name else REFUSED)
    for name, edit in _archive_edits().items():
        yield Case("scene", f"archive: {name}", ARCHIVE, edit, expected=ANY if "any" in name else REFUSED)
    yield from _item_cases(json.loads((inputs / ITEM).read_text()))
    yield from _option_cases()
    yield Case("scene", "a run of other bands", PREDICT, expected=REFUSED)
    files = {XML: SAFE, BAND: SAFE, ZIP: ARCHIVE, ITEM: STAC, f"{MTL}.txt": LANDSAT}
    for file, command in files.items():
        for number, way in enumerate(WAYS * 2):
            yield Case("scene", f"{way} {number} of {file}", command, f.damaged(file, way))


# ------------------------------------------------------------------------------------------------------------ products


def _metadata_edits() -> dict[str, Edit]:
    offset = '<BOA_ADD_OFFSET band_id="3">-1000</BOA_ADD_OFFSET>'
    scale = '<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
    head = '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    found = {
        f"XML: an offset of {value[:9]}": f.changed_text(XML, offset, offset.replace("-1000", value))
        for value in ("nan", "inf", "1e999", "x", "", "-" * 10**6)
    }
    found |= {
        f"XML: any offset of {value}": f.changed_text(XML, offset, offset.replace("-1000", value))
        for value in ("1e308", "-1e308", "1e-320", "0")
    }
    found |= {
        f"XML: a quantification of {value}": f.changed_text(XML, scale, scale.replace("10000", value))
        for value in ("0", "-1", "nan", "inf", "", "1e999")
    }
    found |= {
        "XML: any quantification of 1e300": f.changed_text(XML, scale, scale.replace("10000", "1e300")),
        "XML: any quantification of 1e-300": f.changed_text(XML, scale, scale.replace("10000", "1e-300")),
        "XML: a band 99": f.changed_text(XML, offset, offset.replace('"3"', '"99"')),
        "XML: a band -1": f.changed_text(XML, offset, offset.replace('"3"', '"-1"')),
        "XML: a band without number": f.changed_text(XML, offset, offset.replace(' band_id="3"', "")),
        "XML: entities of entities": f.changed_text(XML, head, f'{head}<!DOCTYPE a [<!ENTITY l0 "lol">{lol}]>'),
        "XML: an external entity": f.changed_text(
            XML, head, f'{head}<!DOCTYPE a [<!ENTITY x SYSTEM "{{server}}/x"><!ENTITY y SYSTEM "file:///etc/passwd">]>'
        ),
        "XML: any names that lead elsewhere": f.changed_text(
            XML, "<Product_Info>", "<Product_Info><IMAGE_FILE>../../../../etc/passwd</IMAGE_FILE><IMAGE_FILE>{server}/B08"
            "</IMAGE_FILE>",
        ),
        "XML: 100,000 levels": f.replaced(XML, head + "<a>" * 10**5 + "</a>" * 10**5),
        "XML: UTF-16": f.replaced(XML, scenes.safe_xml().encode("utf-16")),
        "XML: 40 MB": f.replaced(XML, scenes.safe_xml() + " " * 40 * 2**20),
        "XML: empty": f.replaced(XML, ""),
        "XML: text": f.replaced(XML, "a product"),
        "XML: missing": g.removed(XML),
        "XML: a folder": g.folder_instead(XML),
        "XML: a FIFO": g.fifo(XML),
        "XML: a device": g.link(XML, "/dev/zero"),
        "XML: a link to itself": g.link(XML, "MTD_MSIL2A.xml"),
        "XML: another file": g.link(XML, "/etc/passwd"),
        "XML: two products": f.replaced("safe/other/MTD_MSIL2A.xml", scenes.safe_xml()),
        "XML: a product of another level beside it": f.replaced("safe/MTD_MSIL1C.xml", scenes.safe_xml()),
    }  # fmt: skip
    return found


def _mtl_edits(inputs: Path) -> dict[str, Edit]:
    text = (inputs / f"{MTL}.txt").read_text()
    key = 'REFLECTANCE_MULT_BAND_4 = "2.75e-05"'
    assert key in text
    found = {
        f"MTL: a scale of {value}": f.changed_text(f"{MTL}.txt", key, key.replace("2.75e-05", value))
        for value in ("nan", "inf", "x", "")
    }
    found |= {
        f"MTL: any scale of {value}": f.changed_text(f"{MTL}.txt", key, key.replace("2.75e-05", value))
        for value in ("1e308", "-1", "0", "1e-320")
    }
    deep = '{"LANDSAT_METADATA_FILE": ' + '{"a":' * 10**5 + "1" + "}" * 10**5 + "}"
    replacements: dict[str, tuple[str, str | bytes]] = {
        "MTL: empty": (".txt", ""),
        "MTL: bytes": (".txt", bytes(range(256)) * 100),
        "MTL: open groups": (".txt", "GROUP = A\n" * 10**5),
        "MTL: Level 1": (".txt", text.replace('"L2SP"', '"L1TP"')),
        "MTL: no level": (".txt", text.replace("PROCESSING_LEVEL", "LEVEL")),
        "MTL: JSON, 100,000 levels": (".json", deep),
        "MTL: JSON, a list": (".json", "[]"),
        "MTL: JSON, groups as text": (".json", '{"LANDSAT_METADATA_FILE": {"PRODUCT_CONTENTS": "L2SP"}}'),
        "MTL: JSON, a number as level": (".json", '{"M": {"PRODUCT_CONTENTS": {"PROCESSING_LEVEL": 2}}}'),
        "MTL: XML, text": (".xml", "a product"),
        "MTL: XML, an entity": (".xml", '<!DOCTYPE a [<!ENTITY x SYSTEM "{server}/x">]><a>&x;</a>'),
    }
    for name, (suffix, content) in replacements.items():
        found[name] = _together(g.removed(f"{MTL}.txt"), f.replaced(MTL + suffix, content))
    found["MTL: no bands"] = _together(*(g.removed(f"landsat/{scenes.LANDSAT}_SR_B{n}.TIF") for n in (4, 5)))
    found["MTL: two products"] = f.replaced("landsat/LC09_L2SP_MTL.txt", text)
    return found


def _band_edits() -> dict[str, Edit]:
    smaller = np.ones((EDGE // 2, EDGE // 2), np.uint16)
    whole = np.ones((EDGE, EDGE), np.uint16)
    found = {
        "missing": g.removed(BAND),
        "empty": f.replaced(BAND, b""),
        "text": f.replaced(BAND, "a band"),
        "a folder": g.folder_instead(BAND),
        "a FIFO": g.fifo(BAND),
        "a device": g.link(BAND, "/dev/zero"),
        "a link to itself": g.link(BAND, Path(BAND).name),
        "a dangling link": g.link(BAND, "missing"),
        "another file of this machine": g.link(BAND, "/etc/passwd"),
        "half the size": _band(smaller, 10),
        "twice the pixel size": _band(whole, 20),
        "another CRS": _band(whole, 10, crs="EPSG:32633"),
        "no CRS": _band(whole, 10, crs=None),
        "any signed numbers": _band(whole.astype(np.int16), 10),
        "1 x 1 pixels": _band(whole[:1, :1], 10),
        "any huge header": _huge_jp2,
        "two granules": _copied(BAND, OTHER),
        "no granule": g.removed("safe/GRANULE"),
        "GRANULE a link to its parent": _together(g.removed("safe/GRANULE"), g.link("safe/GRANULE", "..")),
        "any loop of links beside it": g.link("safe/GRANULE/g/loop", ".."),
        "10,001 files": _many_files,
    }
    found |= {f"{name} as .jp2": f.replaced(BAND, text) for name, text in g.remote_rasters().items()}
    return found


def _together(*edits: Edit) -> Edit:
    def edit(place: Place) -> None:
        for each in edits:
            each(place)

    return edit


def _copied(name: str, other: str) -> Edit:
    def edit(place: Place) -> None:
        (place.folder / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place.folder / name, place.folder / other)

    return edit


def _band(pixels: np.ndarray, size_m: float, **options: Any) -> Edit:
    """Return an edit that replaces a band of the product."""

    def edit(place: Place) -> None:
        (place.folder / BAND).unlink()
        scenes.write_band(place.folder / BAND, pixels, size_m, **options)

    return edit


def _huge_jp2(place: Place) -> None:
    """Write 2^31 x 2^31 pixels into the header of a JPEG 2000 file: its boxes and the size marker of its codestream."""
    data = bytearray((place.folder / BAND).read_bytes())
    for marker, skip in ((b"ihdr", 4), (b"\xff\x51", 6)):
        start = data.index(marker) + skip
        data[start : start + 8] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    (place.folder / BAND).write_bytes(data)


def _many_files(place: Place) -> None:
    (place.folder / "safe" / "many").mkdir()
    for number in range(10_001):
        (place.folder / "safe" / "many" / str(number)).touch()


# ------------------------------------------------------------------------------------------------------------ archives


def _archive_edits() -> dict[str, Edit]:
    found = {
        f"a member called {name[:20]!r}": _with_member(name, b"x")
        for name in (
            "../safe/out.txt",
            "/etc/passwd",
            "C:\\out.txt",
            "safe/../../out",
            "safe/a\nb",
            "safe/{b}",
            "..\\out",
        )
    }
    found |= {
        "metadata of 300 MB of zeros": _rewritten({XML: _Zeros(3 * 10**8)}),
        "a band of 9 GB in the listing": _stated_size(BAND, 9 * 10**9 - 2**32),
        "any band of 4 GB in the listing": _stated_size(BAND, 2**32 - 2),
        "any metadata of 4 GB in the listing, in truth a few KB": _stated_size(XML, 2**32 - 2),
        "any false checksum": _false_checksum(BAND),
        "a false checksum of the metadata": _false_checksum(XML),
        "any mark of encryption": _flagged(BAND),
        "an unknown compression": _compressed_as(XML, 99),
        "no product": _rewritten({XML: None}),
        "any member twice": _twice,
        "10,001 members": _many_members,
        "an archive in an archive": _nested,
        "any text before it": _prefixed,
        "empty": f.replaced(ZIP, b""),
        "text": f.replaced(ZIP, "an archive"),
        "only an end": f.replaced(ZIP, b"PK\x05\x06" + bytes(18)),
        "a FIFO": g.fifo(ZIP),
        "a device": g.link(ZIP, "/dev/zero"),
    }
    return found


class _Zeros:
    """The content of a member of zeros, written piece by piece."""

    def __init__(self, size: int) -> None:
        self.size = size


def _rewritten(changes: dict[str, "bytes | _Zeros | None"]) -> Edit:
    """Return an edit that replaces members of the archive, or leaves them out."""

    def edit(place: Place) -> None:
        source = place.folder / ZIP
        old = source.rename(source.with_name("old.zip"))
        with (
            zipfile.ZipFile(old) as before,
            zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as after,
        ):
            for name in before.namelist():
                content = changes.get(name, before.read(name))
                if isinstance(content, _Zeros):
                    with after.open(name, "w", force_zip64=True) as member:
                        for _ in range(content.size // 10**7):
                            member.write(bytes(10**7))
                elif content is not None:
                    after.writestr(name, content)
        old.unlink()

    return edit


def _with_member(name: str, content: bytes) -> Edit:
    def edit(place: Place) -> None:
        with zipfile.ZipFile(place.folder / ZIP, "a") as archive:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name
            archive.writestr(entry, content)

    return edit


def _twice(place: Place) -> None:
    # The module zipfile warns of it.
    with zipfile.ZipFile(place.folder / ZIP, "a") as archive:
        archive.writestr("safe/MTD_MSIL2B.xml", scenes.safe_xml(0))
    changed = (place.folder / ZIP).read_bytes().replace(b"MTD_MSIL2B.xml", b"MTD_MSIL2A.xml")
    (place.folder / ZIP).write_bytes(changed)


def _patched(name: str, offset: int, value: bytes) -> Edit:
    """Return an edit of a member's entry in the central directory of the archive."""

    def edit(place: Place) -> None:
        data = bytearray((place.folder / ZIP).read_bytes())
        entry = data.rindex(name.encode()) - 46
        if data[entry : entry + 4] != b"PK\x01\x02":
            raise ValueError(f"{name} has no entry")
        data[entry + offset : entry + offset + len(value)] = value
        (place.folder / ZIP).write_bytes(data)

    return edit


def _stated_size(name: str, size: int) -> Edit:
    return _patched(name, 24, struct.pack("<I", size % 2**32))


def _false_checksum(name: str) -> Edit:
    return _patched(name, 16, b"\x01\x02\x03\x04")


def _flagged(name: str) -> Edit:
    return _patched(name, 8, b"\x01\x00")


def _compressed_as(name: str, method: int) -> Edit:
    return _patched(name, 10, struct.pack("<H", method))


def _many_members(place: Place) -> None:
    with zipfile.ZipFile(place.folder / ZIP, "a") as archive:
        for number in range(10_001):
            archive.writestr(f"safe/many/{number}", b"")


def _nested(place: Place) -> None:
    old = (place.folder / ZIP).read_bytes()
    with zipfile.ZipFile(place.folder / ZIP, "w") as archive:
        archive.writestr("inner.zip", old)


def _prefixed(place: Place) -> None:
    path = place.folder / ZIP
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())


# --------------------------------------------------------------------------------------------------- items and options


def _item_cases(item: dict[str, Any]) -> Iterator[Case]:
    """Edit each entry of a STAC item, and where its assets are."""
    wrong = ("text", None, -1, 1e308, [], {})
    for number, (path, value) in enumerate(f.leaves(item)):
        for other in (wrong[number % 6], wrong[(number + 1 + number // 6) % 6]):
            if other != value and path[0] != "links":
                edit = f.edited_json(ITEM, path, other)
                yield Case("scene", f"item: {'.'.join(map(str, path))} = {other!r}", STAC, edit)
    for href in (
        "{server}/B08.tif", "/vsicurl/{server}/B08.tif", "/vsizip/vsicurl/{server}/b.zip/B08.tif", "s3://bucket/B08.tif",
        "file:///etc/passwd", "../../../../etc/passwd", "/dev/zero", "S2A_32TLQ.json", ".", "", "a" * 10**5, "a\0b", "a\nb",
        "B04=assets/B04.tif,B08={server}/a.tif",
    ):  # fmt: skip
        edit = _at_server(f.edited_json(ITEM, ("assets", "nir", "href"), href))
        yield Case("scene", f"item: an asset at {href[:40]!r}", STAC, edit, expected=REFUSED)
    texts = {
        "empty": "", "a list": "[]", "100,000 levels": '{"a":' * 10**5 + "1" + "}" * 10**5, "a number": "1" * 10**5,
        "no assets": json.dumps(item | {"assets": {}}), "a collection": json.dumps(item | {"type": "Collection"}),
        "40 MB": json.dumps(item) + " " * 40 * 2**20,
        "100,000 assets": json.dumps(item | {"assets": dict.fromkeys(map(str, range(10**5)), item["assets"]["blue"])}),
    }  # fmt: skip
    for name, text in texts.items():
        yield Case("scene", f"item: {name}", STAC, f.replaced(ITEM, text), expected=REFUSED)


def _at_server(edit: Edit) -> Edit:
    def edit_with_server(place: Place) -> None:
        edit(place)
        path = place.folder / ITEM
        path.write_text(path.read_text().replace("{server}", place.server))

    return edit_with_server


def _option_cases() -> Iterator[Case]:
    for mask in (
        "scl",
        "scl:",
        ":3",
        "scl:x",
        "scl:-1",
        "scl:0-99999",
        "scl:bits:",
        "scl:bits:99",
        "none:3",
        "scl:3:4",
    ):
        yield Case("scene", f"--mask {mask}", SAFE, options=("--mask", mask), expected=REFUSED)
    for bands in ("red,red", "0", "99", "-1", "red,", ",", "scl", "B99", "red,lwir11", "r" * 10**5):
        command = f.Command((*SAFE.arguments[:7], *TILING), SAFE.inputs)
        yield Case("scene", f"--bands {bands[:20]}", command, options=("--bands", bands))
    for listed in (
        "B04=", "=stac/assets/B04.tif", "B04=missing.tif", "B04=stac/assets/B04.tif,B04=stac/assets/B08.tif", "B04=stac",
        "B04=stac/S2A_32TLQ.json", "B04=B08=stac/assets/B04.tif",
        "B04=stac/assets/B04.tif,nir=stac/assets/B11.tif,x=squares.gpkg", "B04=/dev/zero", "B04=../../../../etc/passwd",
    ):  # fmt: skip
        command = f.Command((*SAFE.arguments[:2], *SAFE.arguments[3:7], *TILING), ("squares.gpkg", "stac"))
        yield Case("scene", f"--band-files {listed}", command, options=("--band-files", listed), expected=REFUSED)
