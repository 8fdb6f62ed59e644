"""`geograft review`: write error maps, the worst tiles and suspected label errors, as layers for a GIS."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float64, Int64, Shaped
from numpy import ndarray
from pyproj import CRS

from geograft.config import ReviewConfig
from geograft.dataset.joined import check_fit, open_run_tiles
from geograft.dataset.tileset import Split
from geograft.errors import InputError
from geograft.figures.style import FN_COLOUR, FP_COLOUR, TP_COLOUR
from geograft.files import StrPath, atomic_folder, optional_path, refuse_existing
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import areas_and_perimeters, to_gis_coordinates
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.styles import classes_style, error_colours
from geograft.geo.rasters.writer import BLOCK_PX, MapLayout, create_map
from geograft.geo.vectors.reader import Features, reproject
from geograft.geo.vectors.styles import FieldForm, ranked_style
from geograft.geo.vectors.writer import Layer, common_crs, write_polygons
from geograft.legend import IGNORE
from geograft.locks import locks_output
from geograft.mapping.canvases import Canvas, HeldOutTiles, write_canvases
from geograft.mapping.models import RunModel
from geograft.mapping.plan import tile_set_band_notes
from geograft.mapping.polygons.shapes import as_array
from geograft.mapping.suspects import confidence_thresholds, find_suspects, self_confidence
from geograft.metrics.confusion import confusion_matrix
from geograft.metrics.errors import CORRECT, FALSE_POSITIVE, error_names, error_raster, tile_counts, worst_tiles
from geograft.metrics.errors import FALSE_NEGATIVE as MISSED_VALUE
from geograft.runs import to_runs


@dataclass(frozen=True)
class WorstTile:
    """One of the tiles with the highest error rates."""

    scene: str
    window: Window
    error_rate: float
    """Fraction of its labelled pixels that are predicted as another class."""
    iou: float
    labelled_px: int


@dataclass(frozen=True)
class Suspect:
    """A suspected label error: a region where the label is probably wrong."""

    scene: str
    shape: shapely.Polygon
    """In pixels of the scene, (column, row)."""
    labelled: str
    predicted: str
    """The predicted class."""
    confidence: float
    """Mean probability of the predicted class."""
    label_probability: float
    """Mean probability of the labelled class."""
    pixels: int

    @property
    def severity(self) -> float:
        """Pixels times the difference between the two probabilities."""
        return self.pixels * (self.confidence - self.label_probability)


@dataclass(frozen=True)
class Findings:
    """The worst tiles and the suspected label errors of a review."""

    worst: tuple[WorstTile, ...]
    """The highest error rate first."""
    suspects: tuple[Suspect, ...]
    """The most severe first."""
    error_rate: float
    """Fraction of the labelled pixels that are predicted as another class."""


def analyse_errors(
    held_out: Sequence[HeldOutTiles], canvases: Sequence[Sequence[Canvas]], config: ReviewConfig
) -> Findings:
    """Return the worst tiles and the suspected label errors, with the confidence thresholds of each model."""
    counts: list[Int64[ndarray, "n layers c c"]] = []
    suspects: list[Suspect] = []
    errors = labelled = 0
    for tiles, own_canvases in zip(held_out, canvases, strict=True):
        by_tile, total, thresholds = _confusions(tiles, own_canvases)
        counts.append(by_tile)
        errors += int(total.sum() - np.trace(total, axis1=1, axis2=2).sum())
        labelled += int(total.sum())
        for canvas in own_canvases:
            suspects += _suspects(canvas, tiles, thresholds[canvas.layer], config.suspect_px)
    suspects.sort(key=lambda suspect: -suspect.severity)
    return Findings(
        _worst_tiles(held_out, np.concatenate(counts), config.worst), tuple(suspects), errors / max(1, labelled)
    )


def _worst_tiles(
    held_out: Sequence[HeldOutTiles], counts: Int64[ndarray, "n layers c c"], limit: int
) -> tuple[WorstTile, ...]:
    scheme = held_out[0].scheme
    counts = counts.reshape(len(counts), *scheme.shape)
    tiles = [tile for one in held_out for tile in one.tiles]
    ranked = worst_tiles(counts, tiles[0].window.height, limit, overlapping=scheme.overlapping)
    return tuple(
        WorstTile(tiles[i].scene, tiles[i].window, error_rate, iou, scheme.pixels(counts[i]))
        for i, error_rate, iou in zip(
            ranked.tiles.tolist(), ranked.error_rate.tolist(), ranked.iou.tolist(), strict=True
        )
    )


def _confusions(
    held_out: HeldOutTiles, canvases: Sequence[Canvas]
) -> tuple[Int64[ndarray, "n layers c c"], Int64[ndarray, "layers c c"], Float64[ndarray, "layers c"]]:
    """Return the confusion matrices of each tile and of all pixels, and the confidence thresholds, by layer.

    Tiles may overlap, so the matrix of all pixels is not the sum of those of the tiles.
    """
    layers, k = len(held_out.layers), len(held_out.layers[0])
    counts, total = np.zeros((len(held_out.tiles), layers, k, k), np.int64), np.zeros((layers, k, k), np.int64)
    sums = np.zeros((layers, k, 2))
    for canvas in canvases:
        truth, predicted, probabilities = canvas.read()
        sums[canvas.layer] += self_confidence(truth, probabilities)
        total[canvas.layer] += confusion_matrix(truth, predicted, k)
        parts = [
            (index, shared.relative_to(canvas.window))
            for index, tile in enumerate(held_out.tiles)
            if tile.scene == canvas.scene and (shared := tile.window.intersection(canvas.window))
        ]
        found = tile_counts(truth, predicted, [window for _, window in parts], k)
        counts[[index for index, _ in parts], canvas.layer] += found
    return counts, total, np.stack([confidence_thresholds(own) for own in sums])


def _suspects(
    canvas: Canvas, held_out: HeldOutTiles, thresholds: Float64[ndarray, " k"], min_px: int
) -> Iterator[Suspect]:
    truth, predicted, probabilities = canvas.read()
    truth[predicted == IGNORE] = IGNORE
    found = find_suspects(truth, probabilities, thresholds, min_px)
    names = held_out.layers[canvas.layer]
    offset = np.array([canvas.window.col, canvas.window.row])
    for i in range(len(found)):
        yield Suspect(
            canvas.scene,
            shapely.transform(found.shapes[i], lambda points: points + offset),
            names[found.labelled[i]],
            names[found.predicted[i]],
            float(found.confidence[i]),
            float(found.label_probability[i]),
            int(found.pixels[i]),
        )


Layers = Sequence[tuple[str, ...]]
"""See `HeldOutTiles.layers`."""
VERDICTS = ("the label is wrong", "the label is right", "unclear")
"""What QGIS offers for the field `verdict` of a suspect."""
ERRORS, WORST, SUSPECTS, CANVASES = "errors", "worst.gpkg", "suspects.gpkg", "canvases"


def write_layers(
    folder: Path, held_out: Sequence[HeldOutTiles], canvases: Sequence[Sequence[Canvas]], findings: Findings
) -> None:
    """Write errors/SCENE.tif, worst.gpkg and suspects.gpkg, and remove the canvases.

    Raises:
        OutputError: when a file cannot be written.
    """
    grids = _grids(held_out)
    crs = common_crs(list(grids.values()))
    worst, suspects = findings.worst, findings.suspects
    write_polygons(folder / WORST, [_worst_features(worst, grids, crs)], crs, _worst_layer(len(worst)))
    write_polygons(folder / SUSPECTS, [_suspect_features(suspects, grids, crs)], crs, _suspects_layer(len(suspects)))
    for scene, grid in grids.items():
        mine = [canvas for of_model in canvases for canvas in of_model if canvas.scene == scene]
        _write_errors(
            folder / ERRORS / f"{scene}.tif", grid, mine, held_out[0].layers, folder / CANVASES / "errors.raw"
        )
    rmtree(folder / CANVASES)


def _worst_layer(count: int) -> Layer:
    aliases = {
        "error_rate": "Fraction of labelled pixels with another class",
        "iou": "IoU",
        "labelled_px": "Labelled pixels",
    }
    about = "The held-out tiles with the highest error rates, rank 1 first."
    return Layer("worst", "Worst tiles", about, ranked_style("rank", count, FieldForm(aliases, label="rank")))


def _suspects_layer(count: int) -> Layer:
    aliases = {
        "labelled": "Class of the label",
        "predicted": "Predicted class",
        "confidence": "Mean probability of the predicted class",
        "label_probability": "Mean probability of the labelled class",
        "area_m2": "Area in square metres",
        "area_px": "Area in pixels",
        "verdict": "Your verdict",
    }
    about = "Suspected label errors, the most serious first: regions where a confident model contradicts the label."
    form = FieldForm(aliases, {"verdict": VERDICTS}, label="rank")
    return Layer("suspects", "Suspected label errors", about, ranked_style("rank", count, form))


def _grids(held_out: Sequence[HeldOutTiles]) -> dict[str, Grid]:
    """Return the grid of each scene with held-out tiles."""
    scenes = {tile.scene: one.tile_set for one in held_out for tile in one.tiles}
    grids = {}
    for scene, tile_set in scenes.items():
        with Image.open(tile_set.image_path(scene)) as image:
            grids[scene] = image.info.grid
    return grids


def _worst_features(worst: Sequence[WorstTile], grids: Mapping[str, Grid], crs: CRS | None) -> Features:
    shapes = [tile.window.outline for tile in worst]
    scenes = [tile.scene for tile in worst]
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.arange(1, len(worst) + 1),
        "scene": scenes,
        "row": np.array([tile.window.row for tile in worst], np.int64),
        "col": np.array([tile.window.col for tile in worst], np.int64),
        "error_rate": np.array([tile.error_rate for tile in worst], float),
        "iou": np.array([tile.iou for tile in worst], float),
        "labelled_px": np.array([tile.labelled_px for tile in worst], np.int64),
    }
    return Features(_to_crs(shapes, scenes, grids, crs), columns)


def _suspect_features(suspects: Sequence[Suspect], grids: Mapping[str, Grid], crs: CRS | None) -> Features:
    scenes, shapes = [suspect.scene for suspect in suspects], [suspect.shape for suspect in suspects]
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.arange(1, len(suspects) + 1),
        "scene": scenes,
        "labelled": [suspect.labelled for suspect in suspects],
        "predicted": [suspect.predicted for suspect in suspects],
        "confidence": np.array([suspect.confidence for suspect in suspects], float),
        "label_probability": np.array([suspect.label_probability for suspect in suspects], float),
        "area_m2" if crs else "area_px": _areas(shapes, scenes, grids),
        "verdict": ["" for _ in suspects],
    }
    return Features(_to_crs(shapes, scenes, grids, crs), columns)


def _to_crs(
    shapes: Sequence[shapely.Polygon], scenes: Sequence[str], grids: Mapping[str, Grid], crs: CRS | None
) -> Shaped[ndarray, " n"]:
    """Return shapes, given in pixels of their scenes, in `crs`."""
    moved = as_array(shapes)
    for name, grid in grids.items():
        mine = np.array([scene == name for scene in scenes], bool)
        if mine.any():
            moved[mine] = to_gis_coordinates(moved[mine], grid)
            if crs is not None and grid.crs is not None and not crs.equals(grid.crs, ignore_axis_order=True):
                moved[mine] = reproject(moved[mine], grid.crs, crs)
    return moved


def _areas(
    shapes: Sequence[shapely.Polygon], scenes: Sequence[str], grids: Mapping[str, Grid]
) -> Float64[ndarray, " n"]:
    areas = np.zeros(len(shapes))
    shapes_array = as_array(shapes)
    for name, grid in grids.items():
        mine = np.array([scene == name for scene in scenes], bool)
        if mine.any():
            areas[mine], _ = areas_and_perimeters(shapes_array[mine], grid)
    return areas


def _write_errors(path: Path, grid: Grid, canvases: Sequence[Canvas], layers: Layers, scratch: Path) -> None:
    """Write the error raster of one scene, one band per layer; canvases of several models may interleave."""
    meanings = error_names(layers[0] if len(layers) == 1 else ("", "the band's class"))
    unknown = 255 if max(meanings) < 255 else 65535
    shape = (len(layers), grid.height, grid.width)
    values = np.memmap(scratch, np.uint8 if unknown == 255 else np.uint16, "w+", shape=shape)
    for row in range(0, grid.height, BLOCK_PX):
        values[:, row : row + BLOCK_PX] = unknown
    for canvas in canvases:
        truth, predicted, _ = canvas.read()
        inside = canvas.window.intersection(grid.window)
        if inside is not None:
            here = inside.relative_to(canvas.window).slices
            wrong = error_raster(truth[here], predicted[here], len(layers[0]))
            part = values[canvas.layer][inside.slices]
            part[wrong != unknown] = wrong[wrong != unknown]
    # Strips of the file on disk, each in memory only while it is used.
    strips = [(row, values[:, row : row + BLOCK_PX]) for row in range(0, grid.height, BLOCK_PX)]
    present = {value for _, strip in strips for value in np.unique(strip).tolist()}
    with create_map(path, grid, _layout(values.dtype.name, unknown, layers, present)) as writer:
        for row, strip in strips:
            writer.write(np.asarray(strip), Window(row, 0, strip.shape[1], grid.width))
    del strips
    del values
    scratch.unlink()


def _layout(dtype: str, unknown: int, layers: Layers, present: Collection[int]) -> MapLayout:
    """Return the layout of an error raster; its style shows the values that are `present`."""
    alone = len(layers) == 1
    meanings = error_names(layers[0] if alone else ("", "the band's class"))
    binary = {CORRECT: TP_COLOUR, MISSED_VALUE: FN_COLOUR, FALSE_POSITIVE: FP_COLOUR}
    colours = error_colours(layers[0]) if len(layers[0]) > 2 else binary
    tags = {f"CLASS_{value}": meaning for value, meaning in meanings.items()}
    names = ("error",) if alone else tuple(own for _, own in layers)
    if colours is binary and alone:
        return MapLayout(1, dtype, unknown, binary, tags, names, categories=(meanings,))
    style = classes_style({value: name for value, name in meanings.items() if value in present}, colours)
    # Names of 16-bit values would be a long table, which needs one entry per value.
    categories = (meanings,) * len(layers) if dtype == "uint8" else ()
    return MapLayout(len(layers), dtype, unknown, {}, tags, names, categories=categories, style=style)


DEFAULT = ReviewConfig()


@dataclass(frozen=True)
class Review:
    """The result of `review`."""

    folder: Path
    scenes: int
    tiles: int
    """Number of held-out tiles."""
    findings: Findings
    notes: tuple[str, ...]
    unit: str = "labelled pixels"
    """What the error rate is a fraction of, in words."""

    def lines(self) -> list[str]:
        """Return the summary that the command line prints."""
        findings = self.findings
        return [
            f"{self.tiles:,} held-out tiles of {self.scenes:,} {'scene' if self.scenes == 1 else 'scenes'}: "
            f"{findings.error_rate:.1%} of the {self.unit} are predicted as another class",
            f"{self.folder / ERRORS}: error maps, one raster per scene",
            f"{self.folder / WORST}: {len(findings.worst):,} tiles, the highest error rate first",
            f"{self.folder / SUSPECTS}: {len(findings.suspects):,} suspected label errors, the most severe first",
            *(f"Note: {note}" for note in self.notes),
        ]


@locks_output
def review(
    runs: StrPath | Sequence[StrPath], out: StrPath, tiles: StrPath | None = None, config: ReviewConfig = DEFAULT
) -> Review:
    """Write error rasters, the worst tiles and suspected label errors of held-out tiles to the folder `out`.

    One run is reviewed on its validation and test tiles; with `tiles`, on all tiles of that tile set. Several runs, the
    folds of a cross-validation, are each reviewed on their own test tiles, which together are all labelled tiles. Takes
    about as long as `evaluate`. Memory: one canvas of 2,048 x 2,048 pixels, about 300 MB.

    Raises:
        InputError: when runs or tiles cannot be used or do not fit each other, or when there is no held-out tile.
        OutputError: when `out` exists or cannot be written.
    """
    out, tiles, several = Path(out), optional_path(tiles), to_runs(runs)
    refuse_existing(out)
    held_out = [split for run in several for split in _held_out_tiles(run, tiles, several, config)]
    if not held_out:
        raise InputError(f"{several[0]} has no held-out tiles. Run prepare with --test above 0, or give --tiles.")
    with atomic_folder(out) as part:
        canvases = [write_canvases(split, part / CANVASES / str(index)) for index, split in enumerate(held_out)]
        findings = analyse_errors(held_out, canvases, config)
        write_layers(part, held_out, canvases, findings)
    scenes = {(split.tile_set.folder, tile.scene) for split in held_out for tile in split.tiles}
    count = sum(len(split.tiles) for split in held_out)
    unit = "labels, one per pixel and class," if held_out[0].scheme.overlapping else "labelled pixels"
    return Review(out, len(scenes), count, findings, (*_notes(several, tiles), *_band_notes(held_out)), unit)


def _held_out_tiles(run: Path, tiles: Path | None, several: Sequence[Path], config: ReviewConfig) -> list[HeldOutTiles]:
    model = RunModel.open(run, config)
    tile_set = open_run_tiles(run, tiles)
    check_fit(model.card, tile_set)
    splits: tuple[Split, ...] = ("test",) if len(several) > 1 else ("val", "test")
    other = tile_set.meta.fingerprint != model.card.data_fingerprint
    chosen: tuple[Split, ...] = ("train", "val", "test") if tiles and other else splits
    return [HeldOutTiles(model, tile_set, split) for split in chosen if tile_set.split(split)]


def _band_notes(held_out: Sequence[HeldOutTiles]) -> tuple[str, ...]:
    notes = (note for split in held_out for note in tile_set_band_notes(split.tile_set, split.model.card))
    return tuple(dict.fromkeys(notes))


def _notes(several: Sequence[Path], tiles: Path | None) -> tuple[str, ...]:
    if tiles:
        return (
            f"{tiles} must not contain training tiles of {several[0]}: a model repeats the label errors it learned.",
        )
    if len(several) > 1:
        return ()
    return (
        "only held-out tiles were reviewed. For all labels, run compare with folds and give the runs of all folds.",
    )
