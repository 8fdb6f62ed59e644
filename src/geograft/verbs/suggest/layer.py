"""Suggestions as a layer for a GIS: an outline a tile, the first to label in the strongest colour."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.errors import OutputError
from geograft.geo.grid import Grid
from geograft.geo.vectors.features import Features
from geograft.geo.vectors.outlines import outlines
from geograft.geo.vectors.styles import Step, graduated, write_styled
from geograft.verbs.suggest.ranking import Suggestion

LAYER = "suggestions"
COLOURS = ("#B2182B", "#D55E00", "#E69F00", "#C9B458")
"""From what to label first to what to label last."""


def check_suffix(path: Path) -> None:
    """Raise OutputError when `path` is no GeoPackage."""
    if path.suffix.lower() != ".gpkg":
        raise OutputError(f"{path}: suggestions are written as .gpkg. Choose this suffix.")


def write_suggestions(path: Path, suggestions: Sequence[Suggestion], rasters: Sequence[tuple[Path, Grid]]) -> None:
    """Write suggestions with their outlines, in the rasters' CRS, or in WGS 84 where they differ.

    Raises:
        OutputError: when it cannot be written.
    """
    names = [str(number) for number in range(len(rasters))]
    places = [(names[one.raster], one.window) for one in suggestions]
    shapes, crs = outlines(places, dict(zip(names, (grid for _, grid in rasters), strict=True)))
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.array([one.rank for one in suggestions], np.int64),
        "score": np.array([one.score for one in suggestions], float),
        "uncertainty": np.array([one.doubt for one in suggestions], float),
        "novelty": np.array([np.nan if one.novelty is None else one.novelty for one in suggestions], float),
        "raster": [str(rasters[one.raster][0]) for one in suggestions],
    }
    for side in ("row", "col", "height", "width"):
        columns[side] = np.array([getattr(one.window, side) for one in suggestions], np.int64)
    write_styled(path, Features(shapes, columns), crs, LAYER, graduated("rank", _steps(len(suggestions))))


def _steps(count: int) -> list[Step]:
    """Return up to four steps of ranks 1 to `count`, as even as can be."""
    number = min(len(COLOURS), count)
    cuts = [count * i // number for i in range(number + 1)]
    return [
        Step(first + 0.5, last + 0.5, colour, f"{first + 1} to {last}")
        for first, last, colour in zip(cuts, cuts[1:], COLOURS, strict=False)
    ]
