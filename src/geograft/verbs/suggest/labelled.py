"""Ground that is labelled already, by the windows of a tile set, as it lies on a raster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.tilesets.tileset import INDEX, TileSet
from geograft.geo.vectors.vector import read_polygons

MOST_LABELLED = 0.25
"""A tile of which a larger share is labelled is not suggested."""


@dataclass(frozen=True)
class Labelled:
    """The labelled ground on one raster."""

    grid: Grid
    tree: shapely.STRtree
    """Outlines of tiles in the raster's CRS; no two are counted twice where they overlap."""

    def share(self, window: Window) -> float:
        """Return the share of a window's ground that lies in labelled tiles."""
        outline = self.grid.footprint(window)
        near = self.tree.geometries[self.tree.query(outline, predicate="intersects")]
        if not len(near):
            return 0.0
        return float(shapely.intersection(outline, shapely.union_all(near)).area / outline.area)


def labelled_on(raster: Path, grid: Grid, known: TileSet | None) -> Labelled:
    """Return the ground of a tile set's tiles, of all its parts, on a raster of `grid`.

    Found by place; for an image of the tile set itself, which needs no place on the ground, by its windows.

    Raises:
        InputError: when the tile set's index cannot be read.
    """
    shapes = np.zeros(0, object) if known is None else _shapes(raster, grid, known)
    return Labelled(grid, shapely.STRtree(shapes))


def _shapes(raster: Path, grid: Grid, known: TileSet) -> Shaped[ndarray, " n"]:
    scenes = {scene for scene in known.scenes if known.image_path(scene).resolve() == raster.resolve()}
    if scenes and grid.crs is None:
        return np.array([grid.footprint(tile.window) for tile in known.tiles if tile.scene in scenes], object)
    if grid.crs is None:
        return np.zeros(0, object)
    polygons = read_polygons(known.folder / INDEX, None)
    if polygons.crs is None:
        return np.zeros(0, object)
    return read_polygons(known.folder / INDEX, grid.crs).shapes


def check_some_left(rasters: Sequence[Path], tiles: int, labelled: int) -> None:
    """Raise InputError when no tile is left to suggest, and say why."""
    if tiles:
        return
    name = f"{rasters[0]}{f' and {len(rasters) - 1} more' if len(rasters) > 1 else ''}"
    if labelled:
        raise InputError(f"{name}: all tiles with valid pixels are labelled already. Give rasters of other ground.")
    raise InputError(
        f"{name} has no valid pixel to label: all is nodata or outside --aoi. Check nodata value and mask."
    )
