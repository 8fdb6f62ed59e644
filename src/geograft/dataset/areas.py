"""Labelled areas of a project (labels.gpkg) on scenes, and the tiles of the tile set that they make.

The test split is the random scoring areas and nothing else. Training areas give the train and val splits. An area is
its window on a scene, in pixels; areas of one role whose windows overlap are one. Training tiles keep the buffer to the
windows of validation and scoring areas, also across scenes. Tiles may extend beyond their area, where nothing is
labelled.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Bool
from numpy import ndarray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.config import PrepareConfig
from geograft.dataset.neighbours import connected_components
from geograft.dataset.splits import (
    MIN_BLOCKS,
    MIN_GROUPS,
    SplitScene,
    covering_offsets,
    cut_blocks,
    training_stride,
    training_tiles,
)
from geograft.dataset.statistics import ClassCounts
from geograft.dataset.stratify import SplitBlock, assign_splits
from geograft.dataset.tileset import Split, Tile
from geograft.dataset.vector_labels import BACKGROUND, PlacedPolygons, check_crs, pixel_transform, pixel_windows, place
from geograft.errors import InputError, SettingError
from geograft.geo.coverage import SAMPLE, AreaKind, AreaWindow, covered_pixels, window_boxes
from geograft.geo.grid import Grid, Window, WindowIndex
from geograft.geo.rasters.raster import ImageInfo
from geograft.geo.rasters.rasterize import PixelShapes, to_pixel_shapes
from geograft.geo.vectors.label_file import Area, LabelFile, Role, list_areas, read_label_file
from geograft.geo.vectors.reader import Polygons, reproject
from geograft.text import join_names, pluralise

MAX_UNUSED = 0.1
"""Fraction of the training areas that may be in no tile before a note says so."""
MIN_BLOCKS_IN_AREAS = 4
"""With fewer blocks in all training areas, validation takes a whole area instead."""


@dataclass(frozen=True)
class SceneLabels:
    """What labels.gpkg says about one scene."""

    polygons: PlacedPolygons
    """The polygons in labelled areas."""
    labelled: PixelShapes
    """Polygons of the labelled areas. A pixel is labelled if the last one over it has the value 1."""


@dataclass(frozen=True)
class PlacedAreas:
    """The content of labels.gpkg on the scenes of a tile set."""

    windows: tuple[AreaWindow, ...]
    """The labelled areas on each scene, clipped to it."""
    scenes: tuple[SceneLabels, ...]
    """In the order of the images."""
    classes: tuple[str, ...]
    """The classes of the polygons in labelled areas, without background."""
    notes: Mapping[str, str]


def place_label_file(path: Path, infos: Sequence[ImageInfo], names: Sequence[str]) -> PlacedAreas:
    """Return the polygons and labelled areas of labels.gpkg on images, which are scenes with these names.

    Raises:
        InputError: if the file cannot be used; if no area is labelled, no labelled area lies on an image, or no polygon
            in one; if a labelled scoring area is not random, or contains polygons that a model has suggested.
    """
    content = read_label_file(path)
    _check_areas(content)
    _check_suggested(content)
    if not len(content.polygons_in(None).shapes):
        raise _no_polygon_error(path)
    if len(infos) > 1 and any(info.grid.crs is None for info in infos):
        raise InputError(
            f"{path} has areas of {len(infos)} images, but some of these are not georeferenced, so that their areas "
            "are unknown. Assign them a CRS, or prepare each image with labels of its own."
        )
    layers: dict[str, _Layers] = {}
    found, used = [], set()
    for name, info in zip(names, infos, strict=True):
        key = info.grid.crs.to_wkt() if info.grid.crs else ""
        if key not in layers:
            layers[key] = _Layers.read(content, info.grid.crs)
        check_crs(path, content.crs, info)
        found.append(layers[key].on_scene(name, info.grid))
        used |= layers[key].used_classes
    windows = (*_merge("training", found), *_merge("scoring", found))
    if not windows:
        raise InputError(
            f"no labelled area of {path} lies on an image. Check that both show the same place, and the CRS of both."
        )
    if not used - {BACKGROUND}:
        raise _no_polygon_error(path)
    scenes = tuple(_scene_labels(one, windows) for one in found)
    return PlacedAreas(windows, scenes, tuple(sorted(used - {BACKGROUND})), _notes(content, found, windows))


def _no_polygon_error(path: Path) -> InputError:
    return InputError(
        f"no polygon of {path} lies in a labelled area: all of it would be background. Draw the outlines of classes in "
        "the layer labels."
    )


def _check_areas(content: LabelFile) -> None:
    path, labelled = content.path, content.labelled_areas
    if not labelled:
        raise InputError(
            f"{path}: none of its {pluralise(len(content.areas), 'area')} is labelled. Label everything inside of "
            "some, then set their field labelled to true."
        )
    if chosen := [area for area in labelled if area.role == "scoring" and not area.is_sample]:
        origins = " or ".join(sorted({area.origin for area in chosen}))
        raise InputError(
            f"{path}: {list_areas(chosen)} cannot be used for scoring: of origin {origins}, not random, so a score "
            "would not hold for the images. Set the role to training, or labelled to false."
        )


def _check_suggested(content: LabelFile) -> None:
    """Raise InputError if a scoring area contains outlines of a model: a score against these would be too high."""
    polygons = content.polygons_in(content.crs)
    shapes = polygons.shapes[content.suggested]
    samples = np.array([area.shape for area in content.labelled_areas if area.is_sample], object)
    if not len(shapes) or not len(samples):
        return
    inside, there = shapely.STRtree(samples).query(shapes, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[inside], samples[there])) > 0
    if count := len(np.unique(inside[shared])):
        raise InputError(
            f"{content.path}: {pluralise(count, 'polygon')} of origin suggested in scoring areas. A score against a "
            "model's own outlines would be too high: check them, then set their origin to drawn."
        )


@dataclass(frozen=True)
class _PlacedArea:
    """A labelled area on one scene."""

    number: int
    """Position among the labelled areas."""
    area: Area
    shapes: PixelShapes
    window: Window


@dataclass(frozen=True)
class _Scene:
    """The labelled areas and the polygons in them on one scene."""

    name: str
    areas: tuple[_PlacedArea, ...]
    polygons: PlacedPolygons


@dataclass(frozen=True)
class _Layers:
    """The labelled areas and the polygons in one CRS."""

    areas: tuple[Area, ...]
    polygons: Polygons
    in_areas: Bool[ndarray, " n"]
    """Which polygons touch a labelled area."""

    @classmethod
    def read(cls, content: LabelFile, crs: CRS | None) -> "_Layers":
        areas = tuple(area for area in content.areas_in(crs) if area.labelled)
        polygons = content.polygons_in(crs)
        in_areas = np.zeros(len(polygons.shapes), bool)
        touched = polygons.tree.query(np.array([area.shape for area in areas], object), predicate="intersects")[1]
        in_areas[touched] = True
        return cls(areas, polygons, in_areas)

    @property
    def used_classes(self) -> set[str]:
        return {name for name, inside in zip(self.polygons.classes, self.in_areas, strict=True) if inside}

    def on_scene(self, name: str, grid: Grid) -> _Scene:
        shapes = np.array([area.shape for area in self.areas], object)
        to_pixels = pixel_transform(grid, tuple(shapely.total_bounds(shapes)))
        windows = pixel_windows(shapes, to_pixels)
        placed = []
        for number, (area, window) in enumerate(zip(self.areas, windows, strict=True)):
            inside = window.intersection(grid.window)
            if inside is not None and area.scene in ("", name):
                value = np.ones(1, np.uint8)
                placed.append(_PlacedArea(number, area, to_pixel_shapes(shapes[[number]], value, to_pixels), inside))
        polygons = place(self.polygons, grid)
        hits = polygons.hits[self.in_areas[polygons.hits]]
        return _Scene(name, tuple(placed), replace(polygons, hits=hits))


def _merge(role: Role, scenes: Sequence[_Scene]) -> list[AreaWindow]:
    """Return the windows of the areas of a role on each scene. Areas whose windows overlap on a scene are one area."""
    placed = [(scene.name, one) for scene in scenes for one in scene.areas if one.area.role == role]
    known = {one.number: one.area for _, one in placed}
    count = max(known, default=-1) + 1
    pairs: list[tuple[int, int]] = []
    while True:
        group = connected_components(count, pairs)
        windows: dict[tuple[str, int], Window] = {}
        for scene, one in placed:
            key = scene, group[one.number]
            windows[key] = _union(windows[key], one.window) if key in windows else one.window
        overlapping = _overlapping(windows)
        if not overlapping:
            break
        pairs += overlapping
    members: dict[int, list[Area]] = defaultdict(list)
    for number, area in sorted(known.items()):
        members[group[number]].append(area)
    kind: AreaKind = SAMPLE if role == "scoring" else "training area"
    return [
        AreaWindow(list_areas(members[one]), scene, kind, window) for (scene, one), window in sorted(windows.items())
    ]


def _overlapping(windows: Mapping[tuple[str, int], Window]) -> list[tuple[int, int]]:
    by_scene: dict[str, list[tuple[int, Window]]] = defaultdict(list)
    for (scene, group), window in windows.items():
        by_scene[scene].append((group, window))
    pairs = []
    for mine in by_scene.values():
        index = WindowIndex([window for _, window in mine])
        for group, window in mine:
            pairs += [(group, mine[other][0]) for other in index.query(window) if mine[other][0] > group]
    return pairs


def _union(one: Window, other: Window) -> Window:
    row, col = min(one.row, other.row), min(one.col, other.col)
    return Window(row, col, max(one.stop_row, other.stop_row) - row, max(one.stop_col, other.stop_col) - col)


def _scene_labels(scene: _Scene, windows: Iterable[AreaWindow]) -> SceneLabels:
    """Return the labels of a scene: in the window of a scoring area only the area itself is labelled."""
    training, scoring = (
        [one.shapes.parts for one in scene.areas if one.area.role == role] for role in ("training", "scoring")
    )
    held = [one.window.outline for one in windows if one.scene == scene.name and one.kind == SAMPLE]
    layers = (np.concatenate([_NONE, *training]), np.array(held, object), np.concatenate([_NONE, *scoring]))
    values = np.repeat(np.array([1, 0, 1], np.uint8), [len(parts) for parts in layers])
    return SceneLabels(scene.polygons, PixelShapes(np.concatenate(layers), values))


_NONE = np.zeros(0, object)


def _notes(content: LabelFile, scenes: Sequence[_Scene], windows: Sequence[AreaWindow]) -> dict[str, str]:
    labelled, samples = content.labelled_areas, [area for area in content.areas if area.is_sample]
    ready = sum(area.labelled for area in samples)
    parts = [
        pluralise(sum(area.role == "training" for area in labelled), "training area"),
        f"{ready} of {pluralise(len(samples), 'random scoring area')}, the test split"
        if ready
        else "no random scoring area is labelled, so there is no test split",
    ]
    seen = {one.number for scene in scenes for one in scene.areas}
    parts += [f"{len(labelled) - len(seen)} outside all images"] if len(seen) < len(labelled) else []
    scoring = [one for one in windows if one.kind == SAMPLE]
    cut = {one.name for one in windows if one not in scoring and any(_overlap(one, other) for other in scoring)}
    parts += [f"{pluralise(len(cut), 'training area')} cut by scoring areas"] if cut else []
    notes = {"areas": ", ".join(parts)}
    ranks = {area.rank for area in samples if area.labelled and area.rank}
    if skipped := [rank for rank in range(1, max(ranks, default=0)) if rank not in ranks]:
        notes["WARNING"] = (
            f"random scoring areas were skipped: rank {join_names(map(str, skipped), limit=5)} not labelled, but "
            f"{max(ranks)}. Label them in the order of their rank, or the score depends on your choice"
        )
    return notes


def _overlap(one: AreaWindow, other: AreaWindow) -> bool:
    return one.scene == other.scene and one.window.intersection(other.window) is not None


def area_settings(config: PrepareConfig) -> PrepareConfig:
    """Return the settings of a tile set of labelled areas.

    Raises:
        SettingError: if settings were chosen that have no effect on it.
    """
    default = PrepareConfig()
    chosen = {
        f"--split {config.split}": config.split not in ("auto", "areas"),
        f"--test {config.test:g}": config.test not in (0, default.test),
        "--val-groups": bool(config.val_groups),
        "--test-groups": bool(config.test_groups),
        "--val 1": config.val >= 1,
    }
    if wrong := [flag for flag, given in chosen.items() if given]:
        raise SettingError(
            f"{wrong[0]} cannot be used with the labelled areas of a project: their random scoring areas are the test "
            "split, and --val is a part of the training areas. Omit it."
        )
    return replace(config, split="areas", test=0.0)


def plan_area_tiles(
    areas: Sequence[AreaWindow], scenes: Sequence[SplitScene], grids: Mapping[str, Grid], config: PrepareConfig
) -> list[Tile]:
    """Return the tiles of labelled areas, in the order of `scenes`: train, val, then test.

    Validation takes whole training areas if there are at least six, else blocks of them with the buffer, else one whole
    area. Areas that overlap scoring areas are never validated on. A tile of an area that is smaller than a tile is
    centred on it, and training tiles move away from held-out areas as far as needed.

    Raises:
        SettingError: if the training areas are too few and too small for validation.
    """
    test = [area for area in areas if area.kind == SAMPLE]
    training = [area for area in areas if area.kind == "training area"]
    val = _validation_areas(training, test, scenes, config) if config.val > 0 and training else []
    whole = {area.name for area in val}
    train = [area for area in training if area.name not in whole]
    forbidden = _forbidden([*val, *test], grids, config.buffer_px)
    stride, size = training_stride(config), config.tile_px
    planned: list[Tile] = []
    for scene in scenes:
        windows = dict.fromkeys(
            window
            for area in train
            if area.scene == scene.name
            for window in training_tiles(scene.window, forbidden[scene.name], size, stride, area.window)
        )
        planned += [Tile(scene.name, window, "train") for window in windows]
        planned += _held_tiles(val, "val", scene, size)
        planned += _held_tiles(test, "test", scene, size)
    return planned


def _held_tiles(areas: Sequence[AreaWindow], split: Split, scene: SplitScene, size: int) -> list[Tile]:
    tiles = []
    for area in areas:
        if area.scene == scene.name:
            rows, cols = covering_offsets(scene.window, area.window, size, size)
            tiles += [Tile(area.scene, Window(row, col, size, size), split, area=area) for row in rows for col in cols]
    return tiles


def _validation_areas(
    training: Sequence[AreaWindow], test: Sequence[AreaWindow], scenes: Sequence[SplitScene], config: PrepareConfig
) -> list[AreaWindow]:
    """Return the training areas, or blocks of them, that are the val split."""
    free = [area for area in training if not any(_overlap(area, other) for other in test)]
    names = {area.name for area in training}
    spare = {area.name for area in free} - {area.name for area in training if area not in free}
    whole = [area for area in free if area.name in spare]
    if len(names) >= MIN_GROUPS and len(spare) >= min(len(names), 2):
        return _assign(whole, scenes, config)
    blocks = _blocks(training, test, config)
    if len(blocks) >= MIN_BLOCKS_IN_AREAS:
        return _assign(blocks, scenes, config)
    if len(names) > 1 and spare:
        return _assign(whole, scenes, config) if len(spare) > 1 else whole
    if len(blocks) > 1:
        return _assign(blocks, scenes, config)
    raise SettingError(
        f"{pluralise(len(names), 'training area')} of at most "
        f"{max(max(area.window.height, area.window.width) for area in training)} pixels cannot be divided into "
        "training and validation: label another training area, lower --tile-px, or set --val 0."
    )


def _blocks(training: Sequence[AreaWindow], test: Sequence[AreaWindow], config: PrepareConfig) -> list[AreaWindow]:
    """Return the blocks of training areas outside of scoring areas, of the largest size that gives enough."""
    sizes = (config.block_px,) if config.block_px else (2 * config.tile_px, config.tile_px, config.tile_px // 2)
    blocks: list[AreaWindow] = []
    for size in sizes:
        blocks = [
            AreaWindow(f"{area.name}, block {number}", area.scene, "block", window)
            for area in training
            for number, window in enumerate(cut_blocks(area.window, size), start=1)
        ]
        blocks = [block for block in blocks if not any(_overlap(block, other) for other in test)]
        if len(blocks) >= MIN_BLOCKS:
            return blocks
    return blocks


def _assign(areas: Sequence[AreaWindow], scenes: Sequence[SplitScene], config: PrepareConfig) -> list[AreaWindow]:
    """Return the areas that are the val split, stratified by class; an area on several scenes is not divided."""
    counts = {scene.name: scene.class_pixels for scene in scenes}
    blocks = []
    for area in areas:
        count = counts[area.scene]
        blocks.append(SplitBlock(area.scene, area.window, area.name, tuple(count(area.window)) if count else ()))
    chosen = assign_splits(blocks, {"train": 1 - config.val, "val": config.val}, config.seed)
    return [area for area, split in zip(areas, chosen, strict=True) if split == "val"]


def _forbidden(held: Sequence[AreaWindow], grids: Mapping[str, Grid], buffer_px: int) -> dict[str, list[Window]]:
    """Return for each scene the windows that training tiles must not touch: the held-out areas of all scenes."""
    found = {name: [area.window.pad(buffer_px) for area in held if area.scene == name] for name in grids}
    for name, grid in grids.items():
        others = [area for area in held if area.scene != name]
        outlines = [_outline(grids[area.scene], area.window, grid.crs) for area in others]
        windows = pixel_windows(np.array(outlines, object), ~grid.transform)
        found[name] += [near for window in windows if (near := window.pad(buffer_px)).intersection(grid.window)]
    return found


def _outline(grid: Grid, window: Window, crs: CRS | None) -> BaseGeometry:
    footprint: BaseGeometry = grid.footprint(window)
    if crs is None or grid.crs is None or crs.equals(grid.crs, ignore_axis_order=True):
        return footprint
    moved: BaseGeometry = reproject(np.array([footprint], object), grid.crs, crs)[0]
    return moved


def labelled_area_tiles(
    planned: Iterable[Tile],
    areas: Sequence[AreaWindow],
    count_window: Callable[[str, Window], ClassCounts],
    min_valid: float,
) -> list[Tile]:
    """Return the planned tiles with labelled pixels, with their class fractions.

    Training tiles need a labelled fraction of at least `min_valid` in the windows of areas; every labelled pixel of
    validation and scoring areas counts.
    """
    training: dict[str, list[Window]] = defaultdict(list)
    for area in areas:
        if area.kind == "training area":
            training[area.scene].append(area.window)
    boxes = {scene: window_boxes(windows) for scene, windows in training.items()}
    tiles = []
    for tile in planned:
        counts = count_window(tile.scene, tile.part)
        needed = 0.0
        if tile.area is None:
            needed = min_valid * int(covered_pixels(window_boxes([tile.window]), boxes[tile.scene])[0])
        if counts.labelled and counts.labelled >= needed:
            valid = counts.labelled / (tile.window.height * tile.window.width)
            tiles.append(replace(tile, valid=valid, class_fractions=counts.fractions))
    return tiles


def check_area_splits(areas: Sequence[AreaWindow], tiles: Sequence[Tile], config: PrepareConfig) -> None:
    """Raise InputError if training or scoring areas are labelled, but no tile of them has a labelled, valid pixel."""
    present, kinds = {tile.split for tile in tiles}, {area.kind for area in areas}
    if SAMPLE in kinds and "test" not in present:
        raise InputError("no random scoring area has a valid pixel: all is nodata there. Label other areas.")
    if "training area" in kinds and config.val > 0 and "val" not in present:
        raise InputError("no validation area has a valid pixel. Use another --seed, or label another training area.")
    if "training area" in kinds and "train" not in present:
        raise InputError(
            f"no training tile of {config.tile_px} pixels with at least {config.min_valid:.0%} of its area labelled "
            f"and valid keeps {config.buffer_px} pixels from validation and scoring areas: label areas elsewhere, "
            "or lower --tile-px, --buffer-px or --min-valid."
        )


def area_notes(areas: Sequence[AreaWindow], tiles: Sequence[Tile], config: PrepareConfig) -> dict[str, str]:
    """Return notes on what is validated on, on unused parts of areas, and on areas without a valid pixel."""
    val = {tile.area for tile in tiles if tile.split == "val" and tile.area}
    notes = {}
    if val:
        blocks, count = any(area.kind == "block" for area in val), len({area.name for area in val})
        kind = pluralise(count, "block" if blocks else "whole training area")
        notes["validation"] = f"{kind} of training areas" if blocks else kind
    if (unused := _unused_fraction(areas, tiles)) > MAX_UNUSED:
        notes["unused"] = (
            f"{unused:.0%} of the training areas, where no tile of {config.tile_px} px keeps {config.buffer_px} px "
            "from validation and scoring areas. A smaller --tile-px uses more"
        )
    scored = {tile.area.name for tile in tiles if tile.split == "test" and tile.area}
    if empty := {area.name for area in areas if area.kind == SAMPLE} - scored:
        notes["without valid pixels"] = join_names(sorted(empty), "; ")
    return notes


def _unused_fraction(areas: Sequence[AreaWindow], tiles: Sequence[Tile]) -> float:
    """Return the fraction of the windows of training areas that is in no training or validation tile."""
    training = [area for area in areas if area.kind == "training area"]
    total = sum(area.window.height * area.window.width for area in training)
    used = 0
    for area in training:
        parts = [tile.part for tile in tiles if tile.split != "test" and tile.scene == area.scene]
        used += int(covered_pixels(window_boxes([area.window]), window_boxes(parts))[0])
    return 1 - used / total if total else 0.0
