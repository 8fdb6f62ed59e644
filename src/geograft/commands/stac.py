"""A STAC item of a run, for `geograft export --for stac`: with the extension for machine-learning models (MLM) 1.5.2.

https://github.com/stac-extensions/mlm, and https://github.com/radiantearth/stac-spec 1.1.0.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import shapely
from pyproj import CRS

from geograft.card import WEIGHTS, ModelCard
from geograft.commands.show import RANDOM, Description, own_tile_set, show
from geograft.dataset.tileset import INDEX, TileSet
from geograft.files import write_json
from geograft.geo.vectors.reader import read_outlines, reproject
from geograft.runs import HUB, HUB_FILE, is_bundle

STAC_VERSION = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
)
WGS84 = CRS.from_epsg(4326)
COORDINATE_DIGITS = 6
"""Decimals of degrees: about 0.1 m."""
TOLERANCE_DEGREES = 1e-5
"""How far the outline of the training area may deviate: about a metre."""
ALWAYS = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
"""The time in which a model can be used, as the extension's best practices write "any"."""
TASK = "semantic-segmentation"
DIMENSIONS = ["batch", "bands", "height", "width"]
SEMVER = re.compile(r"\d+\.\d+\.\d+(\+[\w.-]+)?", re.ASCII)


def write_stac_item(run: Path, out: Path, tiles: Path | None = None) -> tuple[str, ...]:
    """Write a STAC item of a run as JSON: input, classes, network, and where its weights are, relative to `out`.

    Its geometry is the convex hull of the tiles that it was trained on; null if the tile set is not at hand or not
    georeferenced. `tiles` is the current path of the tile set, if it was moved.

    Returns:
        Remarks for the user, one line each.

    Raises:
        InputError: if the run cannot be read, or `tiles` is not its tile set.
        OutputError: if the file cannot be written.
    """
    description = show(run)
    tile_set = own_tile_set(run, description.card, tiles)
    area = None if tile_set is None else training_area(tile_set)
    write_json(out, stac_item(description, weights_href(run, out), area))
    note = "the item has no geometry: the tile set is not georeferenced, or was moved or changed (--tiles)."
    return () if area else (note,)


def stac_item(description: Description, href: str, area: shapely.Geometry | None) -> dict[str, Any]:
    """Return the STAC item of a run whose weights are at `href`; `area` is its training area in WGS 84."""
    card = description.card
    bands = [{"name": name, "data_type": card.dtype} for name in card.band_names]
    placed = {"bbox": [round(value, COORDINATE_DIGITS) for value in shapely.bounds(area).tolist()]} if area else {}
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": f"{_slug(card.name)}-{card.weights_digest[:12]}".strip("-"),
        "geometry": json.loads(shapely.to_geojson(area)) if area else None,
        **placed,
        "properties": ALWAYS
        | {"title": card.name, "description": f"{description.task}, with Geograft", "bands": bands}
        | _model_fields(description),
        "links": [],
        "assets": {"model": {"href": href, "title": "Weights", "bands": bands} | _asset_fields(description)},
    }


def training_area(tile_set: TileSet) -> shapely.Geometry | None:
    """Return the convex hull of the tiles in WGS 84, one for each joined tile set; None if none is georeferenced."""
    parts = [read_outlines(folder / INDEX) for folder in tile_set.folders]
    placed = [reproject(outlines, crs, WGS84) for outlines, crs in parts if crs is not None]
    if not placed:
        return None
    hulls = shapely.union_all([shapely.convex_hull(shapely.union_all(outlines)) for outlines in placed])
    return shapely.set_precision(shapely.simplify(hulls, TOLERANCE_DEGREES), 10**-COORDINATE_DIGITS)


def weights_href(run: Path, out: Path) -> str:
    """Return where the weights of a run are: relative to the item at `out`, or their address on the hub."""
    if run.as_posix().startswith(HUB):
        from huggingface_hub import hf_hub_url  # noqa: PLC0415  (slow to import)

        repository, _, revision = run.as_posix().removeprefix(HUB).partition("@")
        return str(hf_hub_url(repository, HUB_FILE, revision=revision or None))
    file = run if is_bundle(run) else run / WEIGHTS
    return Path(os.path.relpath(file.resolve(), out.resolve().parent)).as_posix()


def _model_fields(description: Description) -> dict[str, Any]:
    """Return the fields of the extension in the item's properties."""
    card, size = description.card, description.card.window[0]
    pretrained = card.weights_from.rpartition(", first ")[2] != RANDOM
    torch = card.versions.get("torch", "")
    encoder = "" if card.model.architecture == "unet" else f" with {card.model.encoder}"
    kind = "Linear classifier" if card.model.architecture == "linear" else f"U-Net ({card.model.architecture})"
    return {
        "mlm:name": _model_name(card.name),
        "mlm:architecture": f"{kind}{encoder}",
        "mlm:tasks": [TASK],
        "mlm:framework": "PyTorch",
        **({"mlm:framework_version": torch} if SEMVER.fullmatch(torch) else {}),
        "mlm:total_parameters": description.parameters,
        "mlm:pretrained": pretrained,
        "mlm:pretrained_source": card.weights_from if pretrained else None,
        "mlm:input": [
            {
                "name": "image",
                "description": "Invalid pixels are replaced by the mean of their band.",
                "bands": [*card.band_names[: card.bands], *(_derived_band(card, number) for number in _indices(card))],
                "input": {
                    "shape": [-1, len(card.band_names), size, size],
                    "dim_order": DIMENSIONS,
                    "data_type": card.dtype,
                },
                "value_scaling": [
                    {"type": "z-score", "mean": mean, "stddev": std}
                    for mean, std in zip(card.mean, card.std, strict=True)
                ],
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "logits",
                "description": _output_description(card),
                "tasks": [TASK],
                "result": {
                    "shape": [-1, card.legend.outputs, size, size],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": _classes(card),
            }
        ],
    }


def _asset_fields(description: Description) -> dict[str, Any]:
    kind, artifact = ("application/zip", "geograft.export") if is_bundle(description.run) else (None, None)
    return {
        "type": kind or "application/octet-stream; application=safetensors",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": artifact or "safetensors.torch.save_file",
    }


def _indices(card: ModelCard) -> range:
    return range(len(card.indices))


def _derived_band(card: ModelCard, number: int) -> dict[str, str]:
    """Return a spectral index as a band with its expression of b1, b2, ..."""
    index = card.indices[number]
    return {"name": card.band_names[card.bands + number], "format": "python", "expression": index.formula}


def _output_description(card: ModelCard) -> str:
    function = "the sigmoid" if card.legend.outputs == 1 or card.legend.overlapping else "the softmax"
    used = ", ".join(f"{value:.4g}" for value in card.used_thresholds)
    rule = f"A class is mapped from probability {used} on." if used else "The most probable class is mapped."
    return f"Probabilities are {function} of the logits divided by {card.temperature:.6g}. {rule}"


def _classes(card: ModelCard) -> list[dict[str, Any]]:
    legend, count = card.legend, Counter(map(_slug, card.legend.names))
    return [
        {
            "value": value,
            "name": _slug(name) if count[_slug(name)] == 1 else f"{_slug(name)}-{value}",
            "title": name,
            "description": name,
            "color_hint": colour.lstrip("#"),
        }
        for name, value, colour in zip(legend.names, legend.values, legend.colours, strict=True)
    ]


def _slug(name: str) -> str:
    """Return a name of ASCII letters, digits, hyphens and underscores.

    >>> _slug("forêt / open")
    'for-t-open'
    """
    return re.sub(r"[^0-9A-Za-z_]+", "-", name).strip("-") or "unnamed"


def _model_name(name: str) -> str:
    """Return a name as the extension wants it: of three characters or more, first a letter.

    >>> _model_name("2026 crowns")
    'run 2026-crowns'
    """
    slug = _slug(name).strip("-_")
    return slug if re.fullmatch(r"[A-Za-z][\w-]+[A-Za-z0-9]", slug, re.ASCII) else f"run {slug or 'unnamed'}"
