"""The layers of a review, for a GIS: what is wrong at every pixel, the worst tiles, the suspected labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float64, Shaped
from numpy import ndarray
from pyproj import CRS

from geograft.figures.colours import FOUND, INVENTED, MISSED
from geograft.geo.accuracy.errors_map import FALSE, RIGHT, error_names, error_raster
from geograft.geo.accuracy.errors_map import MISSED as MISSED_VALUE
from geograft.geo.grid import Grid, Window
from geograft.geo.polygons.shapes import as_array
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterout import BLOCK_PX, MapLayout, create_map
from geograft.geo.vectors.features import Features
from geograft.geo.vectors.measure import areas_and_perimeters, on_ground
from geograft.geo.vectors.outlines import common_crs
from geograft.geo.vectors.vector import reprojected
from geograft.geo.vectors.vectorout import write_polygons
from geograft.verbs.review.canvases import Canvas, Look
from geograft.verbs.review.finding import Found, Suspect, WrongTile

Layers = Sequence[tuple[str, ...]]
"""The classes that are told apart: all of them, or each of overlapping ones from what it is not."""
ERRORS, WORST, SUSPECTS, CANVASES = "errors", "worst.gpkg", "suspects.gpkg", "canvases"


def write_layers(folder: Path, looks: Sequence[Look], kept: Sequence[Sequence[Canvas]], found: Found) -> None:
    """Write errors/SCENE.tif, worst.gpkg and suspects.gpkg, and remove the canvases.

    Raises:
        OutputError: when one cannot be written.
    """
    grids = _grids(looks)
    crs = common_crs(list(grids.values()))
    write_polygons(folder / WORST, [_worst_features(found.worst, grids, crs)], crs)
    write_polygons(folder / SUSPECTS, [_suspect_features(found.suspects, grids, crs)], crs)
    for scene, grid in grids.items():
        mine = [canvas for canvases in kept for canvas in canvases if canvas.scene == scene]
        _write_errors(folder / ERRORS / f"{scene}.tif", grid, mine, looks[0].layers, folder / CANVASES / "errors.raw")
    rmtree(folder / CANVASES)


def _grids(looks: Sequence[Look]) -> dict[str, Grid]:
    """Return the grid of every scene that was looked at."""
    scenes = {tile.scene: look.tile_set for look in looks for tile in look.tiles}
    grids = {}
    for scene, tile_set in scenes.items():
        with Image.open(tile_set.image_path(scene)) as image:
            grids[scene] = image.info.grid
    return grids


def _worst_features(worst: Sequence[WrongTile], grids: Mapping[str, Grid], crs: CRS | None) -> Features:
    shapes = [tile.window.outline for tile in worst]
    scenes = [tile.scene for tile in worst]
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.arange(1, len(worst) + 1),
        "scene": scenes,
        "row": np.array([tile.window.row for tile in worst], np.int64),
        "col": np.array([tile.window.col for tile in worst], np.int64),
        "wrong": np.array([tile.wrong for tile in worst], float),
        "iou": np.array([tile.iou for tile in worst], float),
        "labelled_px": np.array([tile.labelled_px for tile in worst], np.int64),
    }
    return Features(_placed(shapes, scenes, grids, crs), columns)


def _suspect_features(places: Sequence[Suspect], grids: Mapping[str, Grid], crs: CRS | None) -> Features:
    scenes, shapes = [place.scene for place in places], [place.shape for place in places]
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.arange(1, len(places) + 1),
        "scene": scenes,
        "labelled": [place.labelled for place in places],
        "model_sees": [place.seen for place in places],
        "confidence": np.array([place.confidence for place in places], float),
        "label_left": np.array([place.doubt for place in places], float),
        "area_m2" if crs else "area_px": _areas(shapes, scenes, grids),
        "verdict": ["" for _ in places],
    }
    return Features(_placed(shapes, scenes, grids, crs), columns)


def _placed(
    shapes: Sequence[shapely.Polygon], scenes: Sequence[str], grids: Mapping[str, Grid], crs: CRS | None
) -> Shaped[ndarray, " n"]:
    """Return shapes in pixels of their scenes where they lie in `crs`."""
    moved = as_array(shapes)
    for name, grid in grids.items():
        mine = np.array([scene == name for scene in scenes], bool)
        if mine.any():
            moved[mine] = on_ground(moved[mine], grid)
            if crs is not None and grid.crs is not None and not crs.equals(grid.crs, ignore_axis_order=True):
                moved[mine] = reprojected(moved[mine], grid.crs, crs)
    return moved


def _areas(
    shapes: Sequence[shapely.Polygon], scenes: Sequence[str], grids: Mapping[str, Grid]
) -> Float64[ndarray, " n"]:
    areas = np.zeros(len(shapes))
    every = as_array(shapes)
    for name, grid in grids.items():
        mine = np.array([scene == name for scene in scenes], bool)
        if mine.any():
            areas[mine], _ = areas_and_perimeters(every[mine], grid)
    return areas


def _write_errors(path: Path, grid: Grid, canvases: Sequence[Canvas], layers: Layers, scratch: Path) -> None:
    """Write the error raster of one scene, a band a layer; canvases of several looks may lie between each other."""
    meanings = error_names(layers[0] if len(layers) == 1 else ("", "the band's class"))
    unknown = 255 if max(meanings) < 255 else 65535
    shape = (len(layers), grid.height, grid.width)
    values = np.memmap(scratch, np.uint8 if unknown == 255 else np.uint16, "w+", shape=shape)
    for row in range(0, grid.height, BLOCK_PX):
        values[:, row : row + BLOCK_PX] = unknown
    for canvas in canvases:
        truth, predicted, _ = canvas.read()
        inside = canvas.window.overlap(grid.window)
        if inside is not None:
            here = inside.within(canvas.window).slices
            wrong = error_raster(truth[here], predicted[here], len(layers[0]))
            part = values[canvas.layer][inside.slices]
            part[wrong != unknown] = wrong[wrong != unknown]
    with create_map(path, grid, _layout(meanings, values.dtype.name, unknown, layers)) as writer:
        for row in range(0, grid.height, BLOCK_PX):
            strip = np.asarray(values[:, row : row + BLOCK_PX])
            writer.write(strip, Window(row, 0, strip.shape[1], grid.width))
    del values
    scratch.unlink()


def _layout(meanings: Mapping[int, str], dtype: str, unknown: int, layers: Layers) -> MapLayout:
    alone = len(layers) == 1
    colours = {RIGHT: FOUND, MISSED_VALUE: MISSED, FALSE: INVENTED} if len(meanings) == 3 and alone else {}
    tags = {f"CLASS_{value}": meaning for value, meaning in meanings.items()}
    names = ("error",) if alone else tuple(own for _, own in layers)
    return MapLayout(len(layers), dtype, unknown, colours, tags, names)
