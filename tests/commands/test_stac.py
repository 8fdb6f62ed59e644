"""The STAC item of a run: the core's schema, and what the extension for machine-learning models asks for.

pystac brings the schemas of the core. Those of the extensions are in no package, so the rules are written out
here. With GEOGRAFT_STAC_SCHEMAS, a folder of mlm-v1.5.2.json, classification-v1.1.0.json, processing-v1.1.0.json and
raster-v1.1.0.json as stac-extensions.github.io publishes them, items are also validated by the published schemas.
"""

import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geograft.bundle import Origin, write_bundle
from geograft.card import TILES_FILE, WEIGHTS, read_card
from geograft.commands.show import Description, show
from geograft.commands.stac import stac_item, weights_href, write_stac_item
from geograft.config import ModelConfig
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.files import write_json
from geograft.indices import Index
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.runs import read_members
from geograft.training.checkpoint import save_weights
from tests.support.runs import COVERS, TREES, USES, make_run

SCHEMAS = os.environ.get("GEOGRAFT_STAC_SCHEMAS")
DTYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {"float16", "float32", "float64"}
NDVI = {
    "band_names": ("red", "green", "blue", "nir", "ndvi"),
    "mean": (1.0,) * 5,
    "std": (2.0,) * 5,
    "indices": (Index("ndvi", "(b4 - b1) / (b4 + b1)"),),
    "dtype": "uint16",
}


def trained(folder: Path, legend: Legend = TREES, **changes: Any) -> Path:
    run = make_run(folder, legend, **changes)
    save_weights(run / WEIGHTS, build(ModelConfig(architecture="unet"), len(read_card(run).band_names), legend.outputs))
    return run


def check_core(item: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Validate an item by the core's schema, without network."""
    pystac = pytest.importorskip("pystac", reason="pystac-core and jsonschema are not installed")
    validation = pytest.importorskip("pystac.validation.stac_validator")

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    validator = validation.JsonSchemaSTACValidator()
    assert validator.validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
    if SCHEMAS:
        fill_with_published(validator.schema_cache)
        for extension in item["stac_extensions"]:
            assert validator.validate_extension(item, pystac.STACObjectType.ITEM, item["stac_version"], extension)
        broken = item | {"properties": item["properties"] | {"mlm:input": [{"name": "image"}]}}
        with pytest.raises(pystac.STACValidationError):
            validator.validate_extension(
                broken, pystac.STACObjectType.ITEM, item["stac_version"], item["stac_extensions"][0]
            )
    assert pystac.Item.from_dict(item).to_dict(include_self_link=False)["properties"]["mlm:input"]


def fill_with_published(cache: dict[str, dict[str, Any]]) -> None:
    """Put the published schemas of the extensions, and of those that they refer to, into a cache by address."""
    for name in ("mlm-v1.5.2", "classification-v1.1.0", "processing-v1.1.0", "raster-v1.1.0"):
        address = f"https://stac-extensions.github.io/{name.replace('-v', '/v')}/schema.json"
        # The $id of the processing extension's 1.1.0 says 1.0.0; references to it use its address.
        cache[address] = json.loads((Path(SCHEMAS or "") / f"{name}.json").read_text()) | {"$id": f"{address}#"}


def check_model(item: dict[str, Any]) -> None:
    """Check what the extension asks for (README.md and json-schema/schema.json of its version 1.5.2)."""
    properties, (asset,) = item["properties"], item["assets"].values()
    assert "https://stac-extensions.github.io/mlm/v1.5.2/schema.json" in item["stac_extensions"]
    assert {f"mlm:{name}" for name in ("name", "architecture", "tasks", "input", "output")} <= set(properties)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:pretrained"] == (properties["mlm:pretrained_source"] is not None)
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"]
    assert not {"mlm:name", "mlm:input", "mlm:output", "mlm:hyperparameters"} & set(asset)
    (given,), (returned,) = properties["mlm:input"], properties["mlm:output"]
    names = [band if isinstance(band, str) else band["name"] for band in given["bands"]]
    # With STAC 1.1, the bands stand in the properties and in the asset.
    assert names == [band["name"] for band in properties["bands"]] == [band["name"] for band in asset["bands"]]
    assert all(set(band) == {"name", "format", "expression"} for band in given["bands"] if not isinstance(band, str))
    for structure in (given["input"], returned["result"]):
        assert len(structure["shape"]) == len(structure["dim_order"]) == 4
        assert structure["data_type"] in DTYPES
    assert given["input"]["shape"][1] == len(names) == len(given["value_scaling"])
    for scaling in given["value_scaling"]:
        assert set(scaling) == {"type", "mean", "stddev"}
    for each in returned["classification:classes"]:
        assert re.fullmatch(r"[0-9A-Za-z_-]+", each["name"])
        assert re.fullmatch(r"[0-9A-Fa-f]{6}", each["color_hint"])
        assert each["description"]
    assert len({each["name"] for each in returned["classification:classes"]}) == len(returned["classification:classes"])


@pytest.mark.parametrize(
    ("legend", "changes"),
    [(TREES, {}), (COVERS, {"weights_from": "hub timm/resnet18.a1_in1k, sha256 0"}), (USES, {}), (TREES, NDVI)],
)
def test_the_item_of_every_kind_of_run_is_valid(
    legend: Legend, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", legend, **changes)
    (note,) = write_stac_item(run, tmp_path / "items" / "item.json")
    assert "geometry" in note
    item = json.loads((tmp_path / "items" / "item.json").read_text())
    check_model(item)
    check_core(item, monkeypatch)
    href = item["assets"]["model"]["href"]
    assert (tmp_path / "items" / href).resolve() == (run / WEIGHTS).resolve()
    classes = item["properties"]["mlm:output"][0]["classification:classes"]
    assert [(each["title"], each["value"]) for each in classes] == list(zip(legend.names, legend.values, strict=True))


def test_the_geometry_is_where_the_tiles_are(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run", data_fingerprint=TileSet.open(tiles).meta.fingerprint)
    assert write_stac_item(run, tmp_path / "item.json", tiles) == ()
    write_json(run / TILES_FILE, {"tiles": str(tiles)})
    assert write_stac_item(run, tmp_path / "same.json") == ()
    assert (tmp_path / "same.json").read_bytes() == (tmp_path / "item.json").read_bytes()
    item = json.loads((tmp_path / "item.json").read_text())
    check_core(item, monkeypatch)
    area = shapely.from_geojson(json.dumps(item["geometry"]))
    assert area.is_valid
    assert item["bbox"] == pytest.approx(list(area.bounds), abs=1e-6)
    # UTM zone 12 south of the equator or north of it, and about the 25.6 m of the scene.
    west, south, east, north = item["bbox"]
    assert -114 <= west < east <= -108
    assert 0 < north - south < 25.6 / 110_000 * 1.1


def test_a_moved_or_another_tile_set_gives_no_geometry_or_an_error(tiles: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", data_fingerprint=TileSet.open(tiles).meta.fingerprint)
    moved = Path(shutil.copytree(tiles, tmp_path / "moved"))
    (note,) = write_stac_item(run, tmp_path / "item.json")
    assert "--tiles" in note
    other = trained(tmp_path / "other")
    with pytest.raises(InputError, match=str(moved)):
        write_stac_item(other, tmp_path / "other.json", moved)
    assert not (tmp_path / "other.json").exists()


def test_where_the_weights_are(tmp_path: Path) -> None:
    run, bundle = trained(tmp_path / "run"), tmp_path / "run.graft"
    write_bundle(bundle, read_members(run), Origin("none"))
    assert weights_href(run, tmp_path / "item.json") == f"run/{WEIGHTS}"
    assert weights_href(bundle, tmp_path / "items" / "item.json") == "../run.graft"
    assert weights_href(Path("hf:user/name@v1"), tmp_path / "item.json").endswith("user/name/resolve/v1/model.graft")
    item = stac_item(show(bundle), "run.graft", None)
    check_model(item)
    assert item["assets"]["model"]["type"] == "application/zip"


@given(names=st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True), name=st.text(min_size=1))
def test_any_names_of_runs_and_classes_give_a_valid_item(
    names: list[str], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    card = read_card(make_run(tmp_path_factory.mktemp("names") / "run", Legend(tuple(names)), name=name))
    item = stac_item(Description(Path("run"), card, Origin("none"), 1000, 4000, (), False), "model.safetensors", None)
    check_model(item)
    assert re.fullmatch(r"[\w-]+", item["id"], re.ASCII)
