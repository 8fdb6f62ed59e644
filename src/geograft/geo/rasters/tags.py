"""Class maps: their metadata tags (classes, model card, origin), and the names of the files next to them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from geograft.card import ModelCard
from geograft.config import Cleaning
from geograft.errors import InputError
from geograft.geo.measure import check_on_earth
from geograft.geo.rasters.raster import ImageInfo
from geograft.legend import Legend
from geograft.memory import check_scene_size

CARD_TAG = "GEOGRAFT_CARD"
"""The model card as JSON."""
ORIGIN_TAG = "GEOGRAFT_ORIGIN"
"""SHA-256 of everything that determines the map: model, rasters, settings."""
BACKEND_TAG = "GEOGRAFT_BACKEND"
"""The inference backend that computed the map."""
PRECISION_TAG = "GEOGRAFT_PRECISION"
"""The precision of the network: float32, or half precision with the largest difference from float32 that was met."""
THRESHOLD_TAG = "GEOGRAFT_THRESHOLD"
"""The thresholds of a map, as for --threshold; none where the most probable of several classes is mapped."""
SCALE_TAG = "GEOGRAFT_SCALE"
"""Description of the values in a file of probabilities or uncertainty."""
CLASS_TAG = "CLASS_"
"""Prefix of the tags that name the class of each value of the map."""
BYTE_SCALE = 250
"""The byte that represents 1 in a file of values from 0 to 1."""


def check_class_map(info: ImageInfo) -> None:
    """Raise InputError unless a raster has one band of integers, or a band per class, and a possible size and place."""
    single = info.bands == 1 and np.dtype(info.dtype).kind in "ui"
    if not single and not has_band_per_class(info):
        raise InputError(
            f"{info.path} has {info.bands} bands of {info.dtype}; a class map has one band of integers. "
            "Use a map written by `geograft predict`, or another class map."
        )
    check_scene_size(str(info.path), info.grid.height, info.grid.width)
    check_on_earth(str(info.path), info.grid)


def sibling_path(path: Path, what: str) -> Path:
    """Return the path of the probabilities, uncertainty or applicability (`what`) that belongs to the map at `path`."""
    return path.with_name(f"{path.stem}.{what}.tif")


def map_tags(card: ModelCard, origin: str) -> dict[str, str]:
    """Return the tags of a map by the model of `card`, with the thresholds of the card."""
    named = list(zip(card.legend.values, card.legend.names, strict=True))
    if card.legend.overlapping:
        named = [(0, "not of the band's class"), (1, "of the band's class")]
    classes = {f"{CLASS_TAG}{value}": name for value, name in named}
    thresholds = " ".join(map(repr, card.used_thresholds))
    used = {THRESHOLD_TAG: thresholds} if thresholds else {}
    return {**classes, **used, ORIGIN_TAG: origin, CARD_TAG: json.dumps(card.content, ensure_ascii=False)}


def has_band_per_class(info: ImageInfo) -> bool:
    """Return whether a raster is a map of overlapping classes, one band per class."""
    legend = legend_from_tags(info.tags)
    return legend is not None and legend.overlapping and info.bands == len(legend.names) and info.dtype == "uint8"


def map_legend(info: ImageInfo) -> Legend | None:
    """Return the legend in a map's tags; for a single band extracted from a map of overlapping classes, that band's."""
    legend = legend_from_tags(info.tags)
    return band_legend(info.band_names[0]) if legend and legend.overlapping and info.bands == 1 else legend


def band_legend(name: str) -> Legend:
    """Return the binary legend of the band of the overlapping class `name`."""
    return Legend((f"no {name}", name))


def legend_from_tags(tags: Mapping[str, str]) -> Legend | None:
    """Return the legend in a map's tags: that of its model card, or its class tags by value; None without either."""
    try:
        return TypeAdapter(ModelCard).validate_json(tags[CARD_TAG]).legend
    except (KeyError, ValidationError):
        found = ((re.fullmatch(rf"{CLASS_TAG}(\d+)", key), name) for key, name in tags.items())
        classes = dict(sorted((int(match[1]), name) for match, name in found if match))
        try:
            return Legend(tuple(classes.values()), tuple(classes)) if classes else None
        except ValidationError:
            return None


def map_cleaning(info: ImageInfo) -> Cleaning | None:
    """Return how the objects of a class are cleaned, from the model card in a map's tags; None without either."""
    try:
        return TypeAdapter(ModelCard).validate_json(info.tags[CARD_TAG]).cleaning
    except (KeyError, ValidationError):
        return None
