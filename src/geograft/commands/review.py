"""`geograft review`: where a run is wrong, and where the labels probably are, as layers to look at in a GIS.

The worst tiles and the labels that are probably wrong, from canvases.

The layers of a review, for a GIS: what is wrong at every pixel, the worst tiles, the suspected labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float64, Int64, Shaped
from numpy import ndarray
from pyproj import CRS

from geograft.card import tiles_of
from geograft.config import ReviewConfig
from geograft.dataset.tileset import Split, TileSet, check_fit
from geograft.errors import InputError
from geograft.figures.style import FOUND, INVENTED, MISSED
from geograft.files import building, refuse_existing
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import areas_and_perimeters, on_ground
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.writer import BLOCK_PX, MapLayout, create_map
from geograft.geo.vectors.outlines import common_crs
from geograft.geo.vectors.reader import Features, reprojected
from geograft.geo.vectors.writer import write_polygons
from geograft.inference.predictor import Predictor
from geograft.legend import IGNORE
from geograft.mapping.canvases import Canvas, Look, kept_canvases
from geograft.mapping.polygons.shapes import as_array
from geograft.mapping.suspects import confident_from, self_confidence, suspects
from geograft.metrics.errors import FALSE, RIGHT, error_names, error_raster, tile_counts, worst_tiles
from geograft.metrics.errors import MISSED as MISSED_VALUE
from geograft.metrics.scores import confusion_of


@dataclass(frozen=True)
class WrongTile:
    """A tile in which much is wrong."""

    scene: str
    window: Window
    wrong: float
    """Share of its labelled pixels that are mapped as another class."""
    iou: float
    labelled_px: int


@dataclass(frozen=True)
class Suspect:
    """A place where the label is probably wrong."""

    scene: str
    shape: shapely.Polygon
    """In pixels of the scene, (column, row)."""
    labelled: str
    seen: str
    """The class that the model sees."""
    confidence: float
    """Mean probability that the model gives to what it sees."""
    doubt: float
    """Mean probability that it leaves to the label."""
    pixels: int

    @property
    def gravity(self) -> float:
        """Pixels times the distance between the two probabilities."""
        return self.pixels * (self.confidence - self.doubt)


@dataclass(frozen=True)
class Found:
    """What a review found."""

    worst: tuple[WrongTile, ...]
    """The worst first."""
    suspects: tuple[Suspect, ...]
    """The gravest first."""
    wrong: float
    """Share of the labelled pixels that are mapped as another class."""


def found_in(looks: Sequence[Look], kept: Sequence[Sequence[Canvas]], config: ReviewConfig) -> Found:
    """Return the worst tiles and the suspected labels, each look judged by its own model's confidence."""
    counts: list[Int64[ndarray, "n layers c c"]] = []
    doubted: list[Suspect] = []
    wrong = labelled = 0
    for look, canvases in zip(looks, kept, strict=True):
        counted, ground, thresholds = _first_look(look, canvases)
        counts.append(counted)
        right = np.trace(ground, axis1=1, axis2=2)
        wrong, labelled = wrong + int(ground.sum() - right.sum()), labelled + int(ground.sum())
        for canvas in canvases:
            doubted += _suspects(canvas, look, thresholds[canvas.layer], config.suspect_px)
    counting = looks[0].counting
    every = np.concatenate(counts)
    every = every.reshape(len(every), *counting.shape)
    tiles = [tile for look in looks for tile in look.tiles]
    ranked = worst_tiles(every, tiles[0].window.height, config.worst, overlapping=counting.overlapping)
    worst = tuple(
        WrongTile(tiles[i].scene, tiles[i].window, wrong, iou, counting.pixels(every[i]))
        for i, wrong, iou in zip(ranked.tiles.tolist(), ranked.wrong.tolist(), ranked.iou.tolist(), strict=True)
    )
    doubted.sort(key=lambda place: -place.gravity)
    return Found(worst, tuple(doubted), wrong / max(1, labelled))


def _first_look(
    look: Look, canvases: Sequence[Canvas]
) -> tuple[Int64[ndarray, "n layers c c"], Int64[ndarray, "layers c c"], Float64[ndarray, "layers c"]]:
    """Return by layer the confusion matrix of every tile, that of the ground, which tiles may share, and by class the
    probability from which on the model is confident.
    """
    layers, k = len(look.layers), len(look.layers[0])
    counts, ground = np.zeros((len(look.tiles), layers, k, k), np.int64), np.zeros((layers, k, k), np.int64)
    sums = np.zeros((layers, k, 2))
    for canvas in canvases:
        truth, predicted, probabilities = canvas.read()
        sums[canvas.layer] += self_confidence(truth, probabilities)
        ground[canvas.layer] += confusion_of(truth, predicted, k)
        parts = [
            (index, shared.within(canvas.window))
            for index, tile in enumerate(look.tiles)
            if tile.scene == canvas.scene and (shared := tile.window.overlap(canvas.window))
        ]
        found = tile_counts(truth, predicted, [window for _, window in parts], k)
        counts[[index for index, _ in parts], canvas.layer] += found
    return counts, ground, np.stack([confident_from(own) for own in sums])


def _suspects(canvas: Canvas, look: Look, thresholds: Float64[ndarray, " k"], least_px: int) -> Iterator[Suspect]:
    truth, predicted, probabilities = canvas.read()
    truth[predicted == IGNORE] = IGNORE
    found = suspects(truth, probabilities, thresholds, least_px)
    names = look.layers[canvas.layer]
    offset = np.array([canvas.window.col, canvas.window.row])
    for i in range(len(found)):
        yield Suspect(
            canvas.scene,
            shapely.transform(found.shapes[i], lambda points: points + offset),
            names[found.labelled[i]],
            names[found.predicted[i]],
            float(found.confidence[i]),
            float(found.doubt[i]),
            int(found.pixels[i]),
        )


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


DEFAULT = ReviewConfig()


@dataclass(frozen=True)
class Review:
    """What `review` wrote."""

    folder: Path
    scenes: int
    tiles: int
    """Tiles that were looked at."""
    found: Found
    notes: tuple[str, ...]
    unit: str = "labelled pixels"
    """What is counted as wrong or right, in words."""

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        found = self.found
        return [
            f"{self.tiles:,} held-out tiles of {self.scenes:,} {'scene' if self.scenes == 1 else 'scenes'}: "
            f"{found.wrong:.1%} of the {self.unit} are mapped as another class",
            f"{self.folder / 'errors'}: what is wrong at every pixel, a raster a scene",
            f"{self.folder / 'worst.gpkg'}: {len(found.worst):,} tiles, the worst first",
            f"{self.folder / 'suspects.gpkg'}: {len(found.suspects):,} places where the label is probably wrong",
            *(f"Note: {note}" for note in self.notes),
        ]


def review(runs: Path | Sequence[Path], out: Path, tiles: Path | None = None, config: ReviewConfig = DEFAULT) -> Review:
    """Write error rasters, the worst tiles and suspected labels of the ground that runs did not train on to `out`.

    Of one run, its validation and test tiles are looked at; with `tiles`, all tiles of that other tile set. Of several,
    which are the runs of a comparison by folds, each one's test tiles: together all labels, each seen by a model that
    did not train on it. Takes about as long as `evaluate`. Memory: one canvas of 2,048 x 2,048 pixels, some 300 MB.

    Raises:
        InputError: when runs and tiles cannot be used or do not fit each other, or there is nothing to look at.
        OutputError: when `out` exists or cannot be written.
    """
    refuse_existing(out)
    several = [runs] if isinstance(runs, Path) else list(runs)
    looks = [look for run in several for look in _looks(run, tiles, several)]
    if not looks:
        raise InputError(
            f"{several[0]} holds no tile back from training. Prepare with --test above 0, or give --tiles."
        )
    with building(out) as part:
        canvases = [kept_canvases(look, part / "canvases" / str(index)) for index, look in enumerate(looks)]
        found = found_in(looks, canvases, config)
        write_layers(part, looks, canvases, found)
    scenes = {(look.tile_set.folder, tile.scene) for look in looks for tile in look.tiles}
    unit = "labels, one a pixel and class," if looks[0].counting.overlapping else "labelled pixels"
    return Review(out, len(scenes), sum(len(look.tiles) for look in looks), found, _notes(several, tiles, looks), unit)


def _looks(run: Path, tiles: Path | None, several: Sequence[Path]) -> list[Look]:
    predictor = Predictor.load(run)
    tile_set = TileSet.open(tiles or tiles_of(run))
    check_fit(predictor.card, tile_set)
    splits: tuple[Split, ...] = ("test",) if len(several) > 1 else ("val", "test")
    chosen: tuple[Split, ...] = ("train", "val", "test") if tiles else splits
    return [Look(predictor, tile_set, split) for split in chosen if tile_set.split(split)]


def _notes(several: Sequence[Path], tiles: Path | None, looks: Sequence[Look]) -> tuple[str, ...]:
    if tiles:
        return (f"{tiles} must be ground that {several[0]} did not train on: a model repeats the mistakes it learned.",)
    if len(several) > 1:
        return ()
    return ("only held-out tiles were looked at. For all labels, compare by folds and give the runs of all folds.",)
