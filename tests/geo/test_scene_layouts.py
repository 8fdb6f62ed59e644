"""Products of agencies and catalogues: which files are bands, and what is refused in one line."""

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geograft.errors import InputError, SettingError
from geograft.geo.product_files import MAX_TEXT_BYTES, parse_xml
from geograft.geo.rasters.scene_image import read_info
from geograft.geo.scene import SENTINEL2, BandChoice, MaskRule, SceneFiles, band_numbers, parse_mask
from geograft.geo.scene_layouts import find_scene, stac_scene
from tests.support.scenes import (
    LANDSAT,
    landsat_groups,
    metadata_text,
    reflectances,
    safe_xml,
    write_landsat,
    write_safe,
    write_stac_item,
    zip_folder,
)


def found(place: Path) -> SceneFiles:
    scene = find_scene(place)
    assert scene is not None
    return scene


def test_sentinel2_bands_have_own_and_common_names_and_their_native_size(tmp_path: Path) -> None:
    truth = reflectances(12)
    safe = write_safe(tmp_path, truth, np.ones((6, 6), np.uint8), suffix=".tif")
    for size in (20, 60):
        for name in ("B02", "B8A"):
            path = next(safe.rglob("IMG_DATA")) / f"R{size}m" / f"T32TLQ_20230702T102559_{name}_{size}m.tif"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    bands = found(safe).bands
    assert [band.names for band in bands] == [*((n, c) for n, c in SENTINEL2.items() if n != "B10"), ("SCL",)]
    sizes = {band.names[0]: Path(band.place).parent.name for band in bands}  # type: ignore[arg-type]
    assert (sizes["B02"], sizes["B8A"], sizes["B01"]) == ("R10m", "R20m", "R60m")
    assert all((band.scale, band.offset) == (1, -1000) for band in bands[:-1])
    assert bands[-1].scale is None


def test_a_level_1c_product_is_read_too(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, {"B04": np.ones((8, 8), np.uint16)}, suffix=".tif")
    xml = (safe / "MTD_MSIL2A.xml").read_text()
    (safe / "MTD_MSIL2A.xml").unlink()
    xml = xml.replace("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE").replace("BOA_ADD", "RADIO_ADD")
    (safe / "MTD_MSIL1C.xml").write_text(xml)
    images = next(safe.rglob("IMG_DATA"))
    next(images.rglob("*.tif")).rename(images / "T32TLQ_20230702T102559_B04.tif")
    assert [(band.names, band.scale, band.offset) for band in found(safe).bands] == [(("B04", "red"), 1, -1000)]


def test_landsat_names_follow_the_sensor(tmp_path: Path) -> None:
    pixels = np.ones((8, 8), np.uint16)
    product = write_landsat(tmp_path, {"SR_B4": pixels, "SR_B5": pixels})
    assert [band.names[1] for band in found(product).bands] == ["red", "nir08"]
    groups = landsat_groups()
    groups["IMAGE_ATTRIBUTES"]["SPACECRAFT_ID"] = "LANDSAT_5"
    (product / f"{LANDSAT}_MTL.txt").write_text(metadata_text(groups, ".txt"))
    assert [band.names[1] for band in found(product).bands] == ["nir08", "swir16"]


def test_a_missing_band_names_those_that_exist(tmp_path: Path) -> None:
    safe = write_safe(tmp_path, {"B04": np.ones((8, 8), np.uint16)}, suffix=".tif")
    for choice in (BandChoice(("swir16",)), BandChoice((2,)), BandChoice(masks=("scl:3",))):
        with pytest.raises(InputError, match="B04/red"):
            read_info(safe, choice)


@pytest.mark.parametrize("text", ["scl", "scl:", ":3", "scl:a", "scl:3,", "scl:9-3", "qa:bits:40", "scl:0-99999"])
def test_a_mask_that_cannot_be_parsed_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--mask"):
        parse_mask(text)


def test_masks_have_values_or_bits() -> None:
    assert parse_mask(" SCL : 3, 8-10 ") == MaskRule("SCL", (3, 8, 9, 10))
    assert parse_mask("qa_pixel:bits:1-4,7") == MaskRule("qa_pixel", bits=(1, 2, 3, 4, 7))


def test_bands_of_a_raster_are_found_by_description() -> None:
    assert band_numbers(("NIR", 1, "red"), ("red", "green ", "nir"), Path("a.tif")) == (3, 1, 1)
    for names in (("red", "red"), ("blue", "green")):
        with pytest.raises(InputError, match="1 "):
            band_numbers(("red",), names, Path("a.tif"))


BAD_XML = {
    "cut": safe_xml()[:300],
    "entities": '<!DOCTYPE a [<!ENTITY b "c">]>' + safe_xml().partition("?>")[2],
    "no quantification": safe_xml().replace("BOA_QUANTIFICATION_VALUE", "OTHER"),
    "not a number": safe_xml(quantification="ten"),
    "zero": safe_xml(quantification="0"),
    "infinite": safe_xml(quantification="inf"),
    "unknown band": safe_xml().replace('band_id="3"', 'band_id="33"'),
    "offset": safe_xml().replace(">-1000<", "><"),
}


@pytest.mark.parametrize("name", BAD_XML)
def test_metadata_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    safe = write_safe(tmp_path, {"B04": np.ones((8, 8), np.uint16)}, suffix=".tif")
    (safe / "MTD_MSIL2A.xml").write_text(BAD_XML[name])
    with pytest.raises(InputError, match=r"MTD_MSIL2A\.xml"):
        find_scene(safe)


def test_xml_in_other_encodings_is_refused() -> None:
    with pytest.raises(InputError):
        parse_xml(safe_xml().encode("utf-16"), "a.xml")


def test_folders_and_archives_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no zip file")
    for place in ("empty", "a.zip", "gone.zip"):
        with pytest.raises(InputError):
            find_scene(tmp_path / place)
    several = tmp_path / "several"
    for name in ("one", "two"):
        write_safe(several / name, {"B04": np.ones((8, 8), np.uint16)}, suffix=".tif")
    with pytest.raises(InputError, match="2 Sentinel-2 products"):
        find_scene(several)
    product = write_landsat(tmp_path / "level1", {"SR_B4": np.ones((8, 8), np.uint16)})
    groups = landsat_groups()
    groups["PRODUCT_CONTENTS"]["PROCESSING_LEVEL"] = "L1TP"
    (product / f"{LANDSAT}_MTL.txt").write_text(metadata_text(groups, ".txt"))
    with pytest.raises(InputError, match="L1TP"):
        find_scene(product)
    groups = landsat_groups()
    del groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]["REFLECTANCE_ADD_BAND_4"]
    (product / f"{LANDSAT}_MTL.txt").write_text(metadata_text(groups, ".txt"))
    with pytest.raises(InputError, match="lacks a scale"):
        find_scene(product)


@pytest.mark.parametrize("name", ["../MTD_MSIL2A.xml", "/etc/MTD_MSIL2A.xml", "C:/a.jp2", "a/../../b.jp2", "a\\..\\b"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    archive = zip_folder(write_safe(tmp_path, {"B04": np.ones((8, 8), np.uint16)}, suffix=".tif"), tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "x")
    with pytest.raises(InputError, match="not read"):
        find_scene(archive)


def test_metadata_that_unpacks_to_gigabytes_is_refused_early(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/MTD_MSIL2A.xml", "w") as member:
        for _ in range(MAX_TEXT_BYTES // 2**20 + 8):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="too large"):
        find_scene(path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    content = zip_folder(
        write_safe(tmp_path, {"B04": np.ones((8, 8), np.uint16)}, suffix=".tif"), tmp_path / "a.zip"
    ).read_bytes()
    damaged = bytearray(content)
    start = content.index(b"MTD_MSIL2A.xml") + 40
    damaged[start : start + 40] = bytes(40)
    (tmp_path / "b.zip").write_bytes(damaged)
    with pytest.raises(InputError):
        find_scene(tmp_path / "b.zip")
    assert zipfile.is_zipfile(io.BytesIO(content))


def edited_item(folder: Path, **changes: Any) -> Path:
    path = write_stac_item(folder, {"B04": np.full((8, 8), 900, np.uint16)})
    item = json.loads(path.read_text())
    path.write_text(json.dumps(item | changes))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "Collection"},
        {"assets": []},
        {"assets": {}},
        {"assets": {"red": {"eo:bands": [{"name": "B04"}]}}},
        {"assets": {"red": {"href": "a.tif", "eo:bands": "red"}}},
        {"assets": {"red": {"href": "a.tif", "eo:bands": [{"name": "B04"}], "raster:bands": [{"scale": "x"}]}}},
        {
            "assets": {
                "red": {"href": "a.tif", "eo:bands": [{"name": "B04"}], "raster:bands": [{"offset": float("inf")}]}
            }
        },
        {"assets": {"red": "a.tif"}},
        {"assets": {"red": {"href": "https://example.com/a.tif?sig=1", "eo:bands": [{"name": "B04"}]}}},
        {"assets": {"red": {"href": "s3://bucket/a.tif", "eo:bands": [{"name": "B04"}]}}},
        {"assets": {"red": {"href": "/vsicurl/http://example.com/a.tif", "eo:bands": [{"name": "B04"}]}}},
    ],
)
def test_items_that_cannot_be_used_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        find_scene(edited_item(tmp_path, **changes))
    (tmp_path / "b.json").write_text("[")
    with pytest.raises(InputError):
        find_scene(tmp_path / "b.json")


def test_offsets_of_catalogues(tmp_path: Path) -> None:
    def offset(properties: dict[str, Any], raster: list[dict[str, Any]] | None) -> float:
        asset: dict[str, Any] = {"href": "a.tif", "eo:bands": [{"name": "B04", "common_name": "red"}]}
        asset |= {"raster:bands": raster} if raster else {}
        path = edited_item(tmp_path, properties={"platform": "sentinel-2a"} | properties, assets={"B04": asset})
        return found(path).bands[0].offset

    stated = [{"scale": 1e-4, "offset": -0.1}]
    assert offset({}, stated) == -1000
    assert offset({"earthsearch:boa_offset_applied": True}, stated) == 0
    assert offset({"earthsearch:boa_offset_applied": False}, stated) == -1000
    assert offset({"s2:processing_baseline": "05.09"}, None) == -1000
    assert offset({"s2:processing_baseline": "03.01"}, None) == 0


def test_an_asset_of_one_band_wins_over_a_picture(tmp_path: Path) -> None:
    def asset(file: str, *names: str) -> dict[str, Any]:
        return {"href": file, "eo:bands": [{"name": name, "common_name": SENTINEL2[name]} for name in names]}

    assets = {"visual": asset("tci.tif", "B04", "B03", "B02"), "B04": asset("b.tif", "B04")}
    bands = found(edited_item(tmp_path, assets=assets)).select(BandChoice(("red", "green"))).bands
    assert (bands[0].place, bands[0].number) == (tmp_path / "b.tif", 1)
    assert (bands[1].place, bands[1].number) == (tmp_path / "tci.tif", 2)


def test_plain_rasters_and_existing_paths_are_no_scenes(tmp_path: Path) -> None:
    path = tmp_path / "B04=a.tif"
    path.touch()
    assert find_scene(path) is None
    assert find_scene(tmp_path / "year=2020" / "a.tif") is None
    assert find_scene(tmp_path / "a.tif") is None
    with pytest.raises(InputError, match="twice"):
        find_scene(Path("B04=a.tif,b04=b.tif"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 10**400)
    | st.floats()
    | st.sampled_from(["B04", "red", "a.tif", "", "..", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "href", "scale", "x"]), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["href", "eo:bands", "raster:bands", "bands", "nodata", "raster:scale", "raster:offset", "roles", "eo:common_name"]
)


@given(asset=JSON | st.dictionaries(FIELDS, JSON), properties=JSON, bands=JSON)
@settings(max_examples=150, deadline=None)
def test_any_item_is_a_scene_or_an_error(asset: Any, properties: Any, bands: Any) -> None:
    full = {"href": "a.tif", "eo:bands": bands} | (asset if isinstance(asset, dict) else {})
    for value in (asset, full):
        item = {"type": "Feature", "stac_version": "1.0.0", "properties": properties, "assets": {"red": value}}
        with contextlib.suppress(InputError):
            assert stac_scene(item, Path("item.json"), Path).bands


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("form", ["MTD_MSIL2A.xml", f"{LANDSAT}_MTL.txt", f"{LANDSAT}_MTL.json", f"{LANDSAT}_MTL.xml"])
def test_damaged_metadata_is_a_scene_or_an_error(tmp_path: Path, form: str, data: st.DataObject) -> None:
    (tmp_path / f"{LANDSAT}_SR_B4.TIF").touch()
    images = tmp_path / "GRANULE" / "L2A" / "IMG_DATA" / "R10m"
    images.mkdir(parents=True, exist_ok=True)
    (images / "T32TLQ_20230702T102559_B04_10m.jp2").touch()
    text = safe_xml() if form.startswith("MTD") else metadata_text(landsat_groups(), Path(form).suffix)
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=4))
    (tmp_path / form).write_bytes(content)
    with contextlib.suppress(InputError):
        assert found(tmp_path).bands
