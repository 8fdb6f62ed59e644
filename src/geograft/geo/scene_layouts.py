"""Finding the bands of a scene in what an agency or a catalogue delivers.

Read are a Sentinel-2 product (a .SAFE folder, or it as a zip archive), the folder or archive of a Landsat Collection 2
Level 2 product, a STAC item, and band files that are listed one by one: "B02=a.tif,B8A=b.tif".
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from geograft.errors import InputError
from geograft.geo.product_files import Archive, Folder, Groups, ProductFiles, parse_groups, parse_xml, read_json
from geograft.geo.scene import LANDSAT_OLI, LANDSAT_TM, OTHER_NAMES, QUALITY, SENTINEL2, BandFile, SceneFiles
from geograft.geo.scene import scaled_band as scaled
from geograft.locations import ADDRESS, Place, redact, to_place

BAND_LIST = re.compile(r"[A-Za-z]\w*=[^=]+(,[A-Za-z]\w*=[^=]+)*")
"""NAME=FILE,NAME=FILE"""
SAFE_METADATA = re.compile(r"(.*/)?MTD_MSIL(1C|2A)\.xml")
SAFE_BAND = re.compile(
    r".*GRANULE/([^/]+)/IMG_DATA/(?:R\d\dm/)?[^/]*_(B\d\d|B8A|SCL)(?:_(\d\d)m)?\.(?:jp2|tiff?)", re.IGNORECASE
)
SAFE_NATIVE_M = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60, "B10": 60}
"""Pixel size in metres in which a band was measured; the others have 20."""
LANDSAT_METADATA = re.compile(r"(.*/)?([^/]+)_MTL\.(json|xml|txt)", re.IGNORECASE)
LANDSAT_BAND = re.compile(r"(SR_B\d|ST_B\d\d?|QA_PIXEL|QA_RADSAT|SR_QA_AEROSOL)\.TIFF?", re.IGNORECASE)
LANDSAT_FILL = {"QA_PIXEL": 1.0, "SR_QA_AEROSOL": 1.0, "QA_RADSAT": None}
"""Value of missing pixels; 0 in other bands."""
SCENES = (
    "a Sentinel-2 product (.SAFE folder or .zip), a Landsat Collection 2 Level 2 folder, a STAC item (.json) or a list "
    "of band files (B02=a.tif,B8A=b.tif)"
)


def find_scene(place: Place) -> SceneFiles | None:
    """Return the bands of a scene of several files; None for an ordinary raster.

    Raises:
        InputError: if it is a folder or an archive of another kind, or its metadata cannot be used.
    """
    if not isinstance(place, Path):
        return None
    if is_band_list(place):
        return listed_scene(place)
    is_metadata = SAFE_METADATA.fullmatch(place.name) or LANDSAT_METADATA.fullmatch(place.name)
    if place.suffix.lower() in (".json", ".geojson") and not is_metadata:
        return stac_scene(
            read_json(Folder(place.parent).read(place.name), str(place)), place, partial(_local_asset, place)
        )
    if os.path.isdir(place) or is_metadata:  # noqa: PTH112  (False where the name is too long or not readable)
        return product_scene(Folder(place.parent if is_metadata else place))
    return product_scene(Archive(place)) if place.suffix.lower() == ".zip" else None


def is_band_list(path: Path) -> bool:
    """Return whether a text is a list of band files, and not the path of a file."""
    return BAND_LIST.fullmatch(str(path)) is not None and not os.path.exists(path)  # noqa: PTH110  (as above)


def listed_scene(path: Path) -> SceneFiles:
    """Return the scene of a list of band files, NAME=FILE,NAME=FILE. Sentinel-2's names are known; pixels stay.

    Raises:
        InputError: if a name is given twice.
    """
    pairs = [part.partition("=") for part in re.split(r",(?=[A-Za-z]\w*=)", str(path))]
    names = [name.casefold() for name, _, _ in pairs]
    double = next((name for name, folded in zip(pairs, names, strict=True) if names.count(folded) > 1), None)
    if double:
        raise InputError(f"{path} has {double[0]} twice. Give each band once.")
    bands = tuple(
        BandFile((name, *_sentinel2_name(name)), to_place(file.strip()), nodata=_fill(name)) for name, _, file in pairs
    )
    return SceneFiles(path, bands)


def _sentinel2_name(name: str) -> list[str]:
    return [SENTINEL2[name.upper()]] if name.upper() in SENTINEL2 else []


def _fill(name: str) -> float | None:
    """Return the value of missing pixels of a quality band of Sentinel-2 or Landsat."""
    return {"SCL": 0.0, **LANDSAT_FILL}.get(name.upper())


def product_scene(files: ProductFiles) -> SceneFiles:
    """Return the scene of a Sentinel-2 or Landsat product.

    Raises:
        InputError: if it is neither, or several, or its metadata cannot be used.
    """
    names = files.names()
    safe = [name for name in names if SAFE_METADATA.fullmatch(name)]
    landsat = [name for name in names if LANDSAT_METADATA.fullmatch(name)]
    if len(safe) > 1:
        raise InputError(f"{files.place} has {len(safe)} Sentinel-2 products. Pass them one by one.")
    if safe:
        return _sentinel2_scene(files, names, safe[0])
    products = {LANDSAT_METADATA.sub(r"\1\2", name) for name in landsat}
    if len(products) > 1:
        raise InputError(f"{files.place} has {len(products)} Landsat products. Pass them one by one.")
    if landsat:
        return _landsat_scene(files, names, landsat[0])
    raise InputError(f"{files.place} is not a scene: it has no MTD_MSIL2A.xml and no *_MTL.txt. Give {SCENES}.")


def _sentinel2_scene(files: ProductFiles, names: list[str], metadata: str) -> SceneFiles:
    title = f"{files.place}: {metadata}"
    root = parse_xml(files.read(metadata), title)
    quantification = _float(_text(root, "BOA_QUANTIFICATION_VALUE") or _text(root, "QUANTIFICATION_VALUE"), title)
    found = [
        (element.get("band_id", ""), _float(element.text, title))
        for element in root.iter()
        if element.tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
    ]
    offsets = {list(SENTINEL2)[int(number)]: value for number, value in found if number in map(str, range(13))}
    if quantification <= 0 or len(offsets) < len(found):
        raise InputError(f"{title} has a wrong quantification value or offset. Get it again.")
    top = metadata.rpartition("/")[0]
    matches = [match for name in names if name.startswith(top) and (match := SAFE_BAND.fullmatch(name))]
    granules = {match[1] for match in matches}
    if len(granules) != 1:
        raise InputError(f"{files.place} has {len(granules)} granules with bands; one is needed. Get it again.")
    bands = []
    for name, match in sorted(_native(matches).items(), key=_sentinel2_order):
        band = BandFile((name, *_sentinel2_name(name)), files.path(match[0]), nodata=0.0, container=files.container)
        bands.append(scaled(band, 1 / quantification, offsets.get(name, 0.0) / quantification))
    return SceneFiles(files.place, tuple(bands), _text(root, "PRODUCT_START_TIME"))


def _native(matches: list[re.Match[str]]) -> dict[str, re.Match[str]]:
    """Return the file of each band in the pixel size in which it was measured, or else the finest above it."""
    best: dict[str, tuple[tuple[bool, int], re.Match[str]]] = {}
    for match in matches:
        name, size = match[2].upper(), int(match[3] or 0)
        native = SAFE_NATIVE_M.get(name, 20)
        rank = (size < native, abs(size - native))
        if name not in best or rank < best[name][0]:
            best[name] = (rank, match)
    return {name: match for name, (_, match) in best.items()}


def _sentinel2_order(item: tuple[str, re.Match[str]]) -> int:
    order = [*SENTINEL2, "SCL"]
    return order.index(item[0]) if item[0] in order else len(order)


def _landsat_scene(files: ProductFiles, names: list[str], metadata: str) -> SceneFiles:
    title = f"{files.place}: {metadata}"
    groups = parse_groups(files.read(metadata), metadata)
    attributes = groups.get("IMAGE_ATTRIBUTES", {})
    spacecraft = attributes.get("SPACECRAFT_ID", "").upper()
    level = groups.get("PRODUCT_CONTENTS", {}).get("PROCESSING_LEVEL", "")
    if not level.startswith("L2"):
        raise InputError(
            f"{title} has the processing level {level or 'unknown'}; surface reflectance is needed (Collection 2, "
            "Level 2). Get the Level 2 product."
        )
    common = LANDSAT_OLI if spacecraft in ("LANDSAT_8", "LANDSAT_9") else LANDSAT_TM
    prefix = LANDSAT_METADATA.sub(r"\1\2_", metadata)
    bands = []
    for name in names:
        match = LANDSAT_BAND.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if match:
            own = match[1].upper()
            called = (own, *([common[own]] if own in common else []))
            fill = LANDSAT_FILL.get(own, 0.0)
            band = BandFile(called, files.path(name), nodata=fill, container=files.container)
            bands.append(scaled(band, *_landsat_scale(groups, own, title)) if own in common else band)
    if not bands:
        raise InputError(f"{files.place} has no band file {prefix}SR_B*.TIF. Get the product again.")
    acquired = "T".join(filter(None, (attributes.get("DATE_ACQUIRED", ""), attributes.get("SCENE_CENTER_TIME", ""))))
    return SceneFiles(files.place, tuple(bands), acquired)


def _landsat_scale(groups: Groups, band: str, title: str) -> tuple[float, float]:
    """Return the scale and offset of a band of Landsat, Level 2."""
    thermal = band.startswith("ST")
    group = groups.get(f"LEVEL2_SURFACE_{'TEMPERATURE' if thermal else 'REFLECTANCE'}_PARAMETERS", {})
    names = (f"TEMPERATURE_{{}}_BAND_{band}",) if thermal else (f"REFLECTANCE_{{}}_BAND_{band.removeprefix('SR_B')}",)
    scale, offset = (_float(group.get(names[0].format(what)), title) for what in ("MULT", "ADD"))
    return scale, offset


def stac_scene(item: Mapping[str, Any], place: Place, locate: Callable[[str], Place]) -> SceneFiles:
    """Return the scene of a STAC item. `locate` returns where an asset's file is, or raises InputError if not there.

    Reads the extensions eo and raster as of STAC 1.0, and their fields of the common `bands` as of STAC 1.1. Leaves out
    assets that cannot be located, unless all are.

    Raises:
        InputError: if it is no item, or an asset has invalid fields.
    """
    assets = item.get("assets")
    if item.get("type") != "Feature" or not isinstance(assets, dict) or "stac_version" not in item:
        raise InputError(f"{place} is not a STAC item: it needs type = Feature, stac_version and assets.")
    properties = item.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    bands: list[BandFile] = []
    faults: list[InputError] = []
    for key, asset in assets.items():
        try:
            bands += _asset_bands(key, asset, properties, locate)
        except InputError as error:
            faults.append(error)
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise InputError(f"{place}: the asset {key} has invalid fields ({error}). Correct the item.") from error
    if faults and all(band.is_quality for band in bands):
        raise faults[0]
    if not bands:
        raise InputError(f"{place} has no asset with bands (eo:bands or bands). Give rasters instead.")
    # Of several assets with a band, that with the fewest others, and a GeoTIFF rather than a JPEG 2000.
    count = Counter(band.place for band in bands)
    bands.sort(key=lambda band: (count[band.place], band.place.suffix.lower() == ".jp2"))
    return SceneFiles(place, tuple(bands), str(properties.get("datetime") or properties.get("start_datetime") or ""))


def _asset_bands(
    key: str, asset: Mapping[str, Any], properties: Mapping[str, Any], locate: Callable[[str], Place]
) -> Iterator[BandFile]:
    described = asset.get("bands") or asset.get("eo:bands") or []
    if not described and key.casefold() not in QUALITY:
        return
    # In STAC 1.1, fields of an asset hold for each of its bands.
    lists = ("raster:bands", "eo:bands")
    shared = {name: asset[name] for name in asset if name.startswith(("raster:", "eo:")) and name not in lists}
    rasters = asset.get("raster:bands") or [{} for _ in described or [None]]
    several = len(described) > 1
    for number, band in enumerate(described or [{}], start=1):
        raster = rasters[number - 1] if number <= len(rasters) else {}
        own = [band.get("name")] if several else [key, band.get("name")]
        names = [str(name) for name in (*own, band.get("common_name") or band.get("eo:common_name")) if name]
        fields = shared | band | raster
        nodata = fields.get("nodata", asset.get("nodata"))
        found = BandFile(
            tuple(dict.fromkeys(names + _further_names(names))) or (f"{key} {number}",),
            locate(str(asset["href"])),
            number,
            nodata=_number(nodata) if nodata is not None else _stac_fill(names, properties),
        )
        yield _stac_scaled(found, fields, properties)


def _further_names(names: list[str]) -> list[str]:
    return [
        *(SENTINEL2[name.upper()] for name in names if name.upper() in SENTINEL2),
        *(OTHER_NAMES[name.casefold()] for name in names if name.casefold() in OTHER_NAMES),
    ]


def _stac_fill(names: list[str], properties: Mapping[str, Any]) -> float | None:
    fills = [fill for name in names if (fill := _fill(name)) is not None]
    return fills[0] if fills else 0.0 if _is_sentinel2(properties) else None


def _stac_scaled(band: BandFile, fields: Mapping[str, Any], properties: Mapping[str, Any]) -> BandFile:
    """Return a band with its scale and offset; those of Sentinel-2 follow from the baseline if they are not given."""
    scale = fields.get("raster:scale", fields.get("scale"))
    offset = fields.get("raster:offset", fields.get("offset"))
    applied = any(properties.get(f"{who}:boa_offset_applied") for who in ("earthsearch", "sentinel"))
    if scale is None and offset is None:
        if not _is_sentinel2(properties):
            return band
        baseline = properties.get("s2:processing_baseline", properties.get("processing:version", "0"))
        scale, offset = 1e-4, -0.1 if _number(str(baseline).lstrip("Nn")) >= 4 else 0.0
    # Some catalogues state the offset of pixels from which it has been subtracted.
    return scaled(band, _number(1 if scale is None else scale), 0.0 if applied else _number(offset or 0))


def _is_sentinel2(properties: Mapping[str, Any]) -> bool:
    text = f"{properties.get('constellation', '')} {properties.get('platform', '')}"
    return "sentinel-2" in text.casefold()


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _local_asset(item: Path, href: str) -> Path:
    """Return the path of an asset's file. A file that someone else wrote does not decide which servers are asked."""
    place = to_place(href) if ADDRESS.fullmatch(href) else item.parent / href
    if not isinstance(place, Path) or place.as_posix().lstrip("/").casefold().startswith("vsi"):
        raise InputError(
            f"{item} has an asset at {redact(href)[:200]}, which a file may not ask for. Give it as --stac-url, "
            "and the host with --asset-hosts if you trust it."
        )
    return place


def _text(root: Any, tag: str) -> str:
    return next((element.text.strip() for element in root.iter(tag) if element.text), "")


def _float(text: str | None, title: str) -> float:
    try:
        return _number(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{title} lacks a scale or an offset, or has {text!r} for it. Get it again.") from error
