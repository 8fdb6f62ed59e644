"""Scenes as agencies deliver them: small bands in the folders, names and metadata of Sentinel-2, Landsat and STAC."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy import ndarray

from geograft.geo.scene import SENTINEL2

UTM32 = "EPSG:32632"
CORNER = (399960.0, 5000040.0)
TILE = "T32TLQ_20230702T102559"
PRODUCT = "S2A_MSIL2A_20230702T102559_N0509_R108_T32TLQ_20230702T163408"
LANDSAT = "LC08_L2SP_193028_20230702_20230712_02_T1"
JP2 = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO"}
SIZES = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60}


def write_band(path: Path, pixels: ndarray, size_m: float, crs: str = UTM32, **options: Any) -> Path:
    """Write one band, (H, W), at the corner of the tile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = JP2 if path.suffix == ".jp2" else {"driver": "GTiff", "tiled": True, "blockxsize": 32, "blockysize": 32}
    profile = {"count": 1, "height": pixels.shape[0], "width": pixels.shape[1], "dtype": pixels.dtype, "crs": crs}
    profile |= {"transform": Affine(size_m, 0, CORNER[0], 0, -size_m, CORNER[1])} | kind | options
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels, 1)
    return path


def reflectances(edge_px: int = 96, seed: int = 0) -> dict[str, ndarray]:
    """Return the reflectance x 10,000 of Sentinel-2's bands, uint16 from 1, on an area of `edge_px` pixels of 10 m."""
    random = np.random.default_rng(seed)
    edges = {name: edge_px * 10 // SIZES.get(name, 20) for name in SENTINEL2 if name != "B10"}
    return {name: random.integers(1, 6000, (edge, edge)).astype(np.uint16) for name, edge in edges.items()}


def safe_xml(offset: int = -1000, quantification: str = "10000") -> str:
    """Return MTD_MSIL2A.xml; before baseline 04.00 (`offset` 0) without offsets."""
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{number}">{offset}</BOA_ADD_OFFSET>' for number in range(13))
    listed = f"<BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>" if offset else ""
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
        '<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">'
        "<n1:General_Info><Product_Info><PRODUCT_START_TIME>2023-07-02T10:25:59.024Z</PRODUCT_START_TIME>"
        f"<PROCESSING_BASELINE>{'05.09' if offset else '03.01'}</PROCESSING_BASELINE></Product_Info>"
        "<Product_Image_Characteristics><QUANTIFICATION_VALUES_LIST>"
        f'<BOA_QUANTIFICATION_VALUE unit="none">{quantification}</BOA_QUANTIFICATION_VALUE>'
        f'<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>{listed}'
        "</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"
    )


def write_safe(
    folder: Path, bands: Mapping[str, ndarray], scl: ndarray | None = None, offset: int = -1000, suffix: str = ".jp2"
) -> Path:
    """Write a .SAFE folder of reflectances x 10,000, where 0 is nodata, as JPEG 2000 with a baseline's offset."""
    safe = folder / f"{PRODUCT}.SAFE"
    images = safe / "GRANULE" / "L2A_T32TLQ_A041912_20230702T102858" / "IMG_DATA"
    images.mkdir(parents=True)
    (safe / "MTD_MSIL2A.xml").write_text(safe_xml(offset), encoding="utf-8")
    for name, pixels in bands.items():
        size = SIZES.get(name, 20)
        stored = np.where(pixels > 0, pixels.astype(int) - offset, 0).astype(np.uint16)
        write_band(images / f"R{size}m" / f"{TILE}_{name}_{size}m{suffix}", stored, size)
    if scl is not None:
        write_band(images / "R20m" / f"{TILE}_SCL_20m{suffix}", scl, 20)
    return safe


def zip_folder(folder: Path, path: Path) -> Path:
    """Write a folder into a zip archive, deflated, under its own name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return path


def write_stac_item(
    folder: Path, bands: Mapping[str, ndarray], scl: ndarray | None = None, offset: int = -1000, modern: bool = False
) -> Path:
    """Write a STAC item of GeoTIFFs beside it, with the fields of STAC 1.0, or of 1.1."""
    assets: dict[str, Any] = {}
    for name, pixels in bands.items():
        common, size = SENTINEL2[name], SIZES.get(name, 20)
        stored = np.where(pixels > 0, pixels.astype(int) - offset, 0).astype(np.uint16)
        write_band(folder / "assets" / f"{name}.tif", stored, size)
        asset = {"href": f"./assets/{name}.tif", "roles": ["data"], "type": "image/tiff; application=geotiff"}
        if modern:
            asset |= {"bands": [{"name": name, "eo:common_name": common}], "nodata": 0}
            asset |= {"raster:scale": 1e-4, "raster:offset": offset * 1e-4}
        else:
            asset |= {"eo:bands": [{"name": name, "common_name": common}]}
            asset |= {"raster:bands": [{"nodata": 0, "scale": 1e-4, "offset": offset * 1e-4}]}
        assets[common] = asset
    if scl is not None:
        write_band(folder / "assets" / "SCL.tif", scl, 20)
        assets["scl"] = {"href": "./assets/SCL.tif", "roles": ["data"]}
    properties = {"datetime": "2023-07-02T10:25:59.024Z", "platform": "sentinel-2a"}
    item = {"type": "Feature", "stac_version": "1.1.0" if modern else "1.0.0", "id": "S2A_32TLQ", "geometry": None}
    path = folder / "S2A_32TLQ.json"
    path.write_text(json.dumps({**item, "properties": properties, "links": [], "assets": assets}), encoding="utf-8")
    return path


def landsat_groups() -> dict[str, dict[str, str]]:
    """Return the metadata of a Landsat 8 product, by group."""
    reflectance = {
        f"REFLECTANCE_{what}_BAND_{number}": value
        for number in range(1, 8)
        for what, value in (("MULT", "2.75e-05"), ("ADD", "-0.2"))
    }
    return {
        "PRODUCT_CONTENTS": {"LANDSAT_PRODUCT_ID": LANDSAT, "PROCESSING_LEVEL": "L2SP"},
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": "LANDSAT_8", "DATE_ACQUIRED": "2023-07-02", "SCENE_CENTER_TIME": "10:09:58.1234560Z",
        },
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": reflectance,
        "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS": {
            "TEMPERATURE_MULT_BAND_ST_B10": "0.00341802", "TEMPERATURE_ADD_BAND_ST_B10": "149.0",
        },
        "LEVEL1_RADIOMETRIC_RESCALING": {"REFLECTANCE_MULT_BAND_2": "2.0000E-05", "REFLECTANCE_ADD_BAND_2": "-0.1"},
    }  # fmt: skip


def metadata_text(groups: Mapping[str, Mapping[str, str]], form: str) -> str:
    """Return the metadata of Landsat as its .json, .xml or .txt."""
    if form == ".json":
        return json.dumps({"LANDSAT_METADATA_FILE": groups})
    if form == ".xml":
        inner = "".join(
            f"<{name}>{''.join(f'<{key}>{value}</{key}>' for key, value in values.items())}</{name}>"
            for name, values in groups.items()
        )
        return f'<?xml version="1.0"?>\n<LANDSAT_METADATA_FILE>{inner}</LANDSAT_METADATA_FILE>'
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for name, values in groups.items():
        lines += [f"  GROUP = {name}", *(f'    {key} = "{value}"' for key, value in values.items())]
        lines += [f"  END_GROUP = {name}"]
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END"])


def write_landsat(folder: Path, bands: Mapping[str, ndarray], qa: ndarray | None = None, form: str = ".txt") -> Path:
    """Write the folder of a Landsat 8 Level 2 product; pixels of SR_B* and ST_B10 as they are stored."""
    product = folder / LANDSAT
    product.mkdir(parents=True)
    (product / f"{LANDSAT}_MTL{form}").write_text(metadata_text(landsat_groups(), form), encoding="utf-8")
    for name, pixels in bands.items():
        write_band(product / f"{LANDSAT}_{name}.TIF", pixels, 30, nodata=0)
    if qa is not None:
        write_band(product / f"{LANDSAT}_QA_PIXEL.TIF", qa, 30, nodata=1)
    return product
