"""Class maps: what makes a raster one, what lies beside it, and what it says of its classes and of what made it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from geograft.card import ModelCard
from geograft.errors import InputError
from geograft.geo.rasters.raster import ImageInfo
from geograft.legend import Legend

CARD_TAG = "GEOGRAFT_CARD"
"""The model card as JSON."""
ORIGIN_TAG = "GEOGRAFT_ORIGIN"
"""SHA-256 of everything that decides what the map holds: model, rasters, settings."""
BACKEND_TAG = "GEOGRAFT_BACKEND"
"""What computed the map."""
SCALE_TAG = "GEOGRAFT_SCALE"
"""What the numbers in a file of probabilities or of uncertainty mean, in words."""
CLASS_TAG = "CLASS_"
"""Followed by a value of the map: the name of its class."""
CERTAIN = 250
"""What stands for 1 in a file that holds numbers from 0 to 1 in bytes."""


def check_class_map(info: ImageInfo) -> None:
    """Raise InputError for a raster that is not one band of whole numbers."""
    if info.bands != 1 or np.dtype(info.dtype).kind not in "ui":
        raise InputError(
            f"{info.path} holds {info.bands} bands of {info.dtype}, and a class map is one band of whole numbers. "
            "Give a map that `geograft predict` wrote, or another class map."
        )


def beside(path: Path, what: str) -> Path:
    """Return where the probabilities, the uncertainty or the applicability of the map at `path` lies."""
    return path.with_name(f"{path.stem}.{what}.tif")


def map_tags(card: ModelCard, origin: str) -> dict[str, str]:
    """Return the metadata of a map that `card`'s model makes."""
    named = list(zip(card.legend.values, card.legend.names, strict=True))
    if card.legend.overlapping:
        named = [(0, "not of the band's class"), (1, "of the band's class")]
    classes = {f"{CLASS_TAG}{value}": name for value, name in named}
    return {**classes, ORIGIN_TAG: origin, CARD_TAG: json.dumps(card.content, ensure_ascii=False)}


def has_band_a_class(info: ImageInfo) -> bool:
    """Return whether a raster is a map of overlapping classes, with a band for each."""
    legend = stated_legend(info.tags)
    return legend is not None and legend.overlapping and info.bands == len(legend.names) and info.dtype == "uint8"


def map_legend(info: ImageInfo) -> Legend | None:
    """Return the classes that a map states; of one band of overlapping classes, taken out of its map, of that band."""
    legend = stated_legend(info.tags)
    return band_legend(info.band_names[0]) if legend and legend.overlapping and info.bands == 1 else legend


def band_legend(name: str) -> Legend:
    """Return the two classes that the band of the overlapping class `name` holds."""
    return Legend((f"no {name}", name))


def stated_legend(tags: Mapping[str, str]) -> Legend | None:
    """Return the classes that a map's metadata states, by value where their order is not stated; None without any."""
    try:
        return TypeAdapter(ModelCard).validate_json(tags[CARD_TAG]).legend
    except (KeyError, ValidationError):
        found = ((re.fullmatch(rf"{CLASS_TAG}(\d+)", key), name) for key, name in tags.items())
        classes = dict(sorted((int(match[1]), name) for match, name in found if match))
        try:
            return Legend(tuple(classes.values()), tuple(classes)) if classes else None
        except ValidationError:
            return None
