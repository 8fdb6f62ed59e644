"""`geograft audit`: check the split of a tile set for leakage.

Leakage is counted exactly: pixels that val or test tiles share with training tiles, from the tiles' corners; scenes of
the same area on both sides of the split; and groups that the split divides. The audit also compares the distance from
held-out tiles to training tiles with the spatial autocorrelation range of images and labels: tiles within that range
are easier than new areas. Results are one conclusion in plain words, OK, CAUTION or LEAK, and tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from geograft.dataset.autocorrelation import SpatialAutocorrelation, Variogram, estimate_autocorrelation
from geograft.dataset.duplicates import STRUCTURE
from geograft.dataset.joined import project_outlines, read_all_structures
from geograft.dataset.leakage import (
    AutocorrelationRange,
    DuplicateArea,
    DuplicateScenes,
    HeldOutSplit,
    align_duplicates,
    buffer_advice,
    duplicates_by_alignment,
    duplicates_by_outline,
    find_divided_groups,
    near_fractions,
    unaligned_groups,
)
from geograft.dataset.neighbours import nearest_distances, nearest_distances_in_scene
from geograft.dataset.splits import PlannedTile, SplitScene
from geograft.dataset.tileset import SPLITS, Split, Tile, TileSet
from geograft.errors import InputError, SettingError
from geograft.figures.curves import VariogramCurve, variogram_figure
from geograft.files import StrPath, optional_path, write_bytes
from geograft.geo.coverage import SAMPLE, SceneWindow, smallest_gap, tile_overlap
from geograft.geo.rasters.opening import check_complete
from geograft.locks import lock_output
from geograft.text import format_distance, format_percentage, format_table, join_names

Verdict = Literal["OK", "CAUTION", "LEAK"]
MAX_LISTED = 5
SAMPLED = (
    "The test tiles are random areas of the images: scores on test hold for the map of these images, and may be higher "
    "than in other places."
)
BUFFER_MARGIN = 1.25
"""Ratio of the suggested buffer to the autocorrelation range, which is estimated to a fifth."""
MIN_IMBALANCE_RATIO, MIN_IMBALANCE_DIFFERENCE = 2.0, 0.02
"""A class is imbalanced if its fractions differ by more than this ratio and by more than two percentage points."""
EVIDENCE_TEXT = {
    "location": "by location",
    "file": "same file",
    "image": "by image similarity",
    "labels": "by label similarity",
}


def overlap_lines(tiles: Mapping[Split, int], held_out: Sequence[HeldOutSplit]) -> list[str]:
    """Return the table of the overlap of held-out tiles with training tiles."""
    header = ("split", "tiles", "pixels also in train", "tiles inside train", "tiles without overlap", "smallest gap")
    rows = {split: (split, f"{count:,}", "", "", "", "") for split, count in tiles.items()}
    for one in held_out:
        overlap = one.overlap
        gap = "-" if one.gap_px is None else f"{one.gap_px:,} px"
        fractions = (format_percentage(overlap.pixel_fraction), format_percentage(overlap.contained_fraction))
        rows[one.split] = (one.split, f"{overlap.tiles:,}", *fractions, f"{overlap.disjoint:,}", gap)
    return format_table([header, *rows.values()])


def distance_lines(
    held_out: Sequence[HeldOutSplit], autocorrelation_range: AutocorrelationRange | None, unit: str
) -> list[str]:
    """Return the table of distances from held-out tiles to training tiles; empty if no distance is finite."""
    near = [one for one in held_out if np.isfinite(one.distances).any()]
    if not near:
        return []
    limit = autocorrelation_range.distance if autocorrelation_range else None
    header = ["nearest training tile", "minimum", "median"]
    header += [f"within {format_distance(limit, unit)}"] if limit is not None else []
    rows = [
        [
            one.split,
            format_distance(float(one.distances.min()), unit),
            format_distance(float(np.quantile(one.distances, 0.5, method="lower")), unit),
        ]
        + ([format_percentage(one.fraction_within(limit))] if limit is not None else [])
        for one in near
    ]
    return [*format_table([header, *rows]), ""]


def autocorrelation_lines(autocorrelation: SpatialAutocorrelation | None, pixel_size: float, unit: str) -> list[str]:
    """Return the autocorrelation ranges of image and labels, and the number of pixels behind them."""
    if autocorrelation is None:
        return []
    lines = []
    for name, one in (("image", autocorrelation.image), ("labels", autocorrelation.labels)):
        if one.model is None:
            lines.append(f"  {name}: unknown, too little variation")
        elif one.resolved:
            lines.append(f"  {name}: {format_distance(pixel_size * one.range, unit)}")
        else:
            longest = format_distance(pixel_size * float(one.lag[-1]), unit)
            lines.append(f"  {name}: more than {longest}, the longest distance measured")
    sample = f"{autocorrelation.windows} windows, {autocorrelation.pixels_read / 1e6:.1f} million pixels"
    return [f"Spatial autocorrelation range, from {sample}:", *lines, ""]


def class_fraction_lines(fractions: Mapping[Split, tuple[float, ...]], classes: Sequence[str]) -> list[str]:
    """Return the table of class fractions by split, and a line for every class whose fractions differ strongly."""
    if not classes:
        return []
    rows = [(split, *map(format_percentage, values)) for split, values in fractions.items()]
    return [*format_table([("labelled pixels", *classes), *rows]), *imbalance_lines(fractions, classes), ""]


def imbalance_lines(fractions: Mapping[Split, tuple[float, ...]], classes: Sequence[str]) -> list[str]:
    """Return a line for every class whose fraction in val or test differs strongly from that in train.

    >>> imbalance_lines({"train": (0.8, 0.2), "test": (0.95, 0.05)}, ("other", "tree"))
    ['Imbalance: tree is 20.0 % of train, 5.0 % of test.']
    """
    train = fractions.get("train", ())
    return [
        f"Imbalance: {name} is {format_percentage(expected)} of train, {format_percentage(fraction)} of {split}."
        for split, values in fractions.items()
        for name, expected, fraction in zip(classes, train, values, strict=False)
        if max(fraction, expected) > MIN_IMBALANCE_RATIO * min(fraction, expected)
        and abs(fraction - expected) > MIN_IMBALANCE_DIFFERENCE
    ]


def duplicate_lines(duplicates: Sequence[DuplicateScenes]) -> list[str]:
    """Return the pairs of scenes that show the same area on both sides of the split."""
    if not duplicates:
        return []
    rows = [
        f"  {pair.held_out} (held out) and {pair.train} (train), {EVIDENCE_TEXT[pair.evidence]}"
        + ("" if pair.similarity is None else f" {pair.similarity:.2f}")
        for pair in duplicates[:MAX_LISTED]
    ]
    more = [f"  and {len(duplicates) - MAX_LISTED} more"] if len(duplicates) > MAX_LISTED else []
    return ["Duplicate scenes, the same area on both sides of the split:", *rows, *more, ""]


def leak_message(
    held_out: Sequence[HeldOutSplit], divided_groups: Sequence[str], duplicates: Sequence[DuplicateScenes]
) -> str:
    """Return in one line how much of the held-out data training contains, and what to do."""
    names = " and ".join(one.split for one in held_out)
    facts = [
        f"{format_percentage(one.overlap.pixel_fraction)} of the {one.split} pixels also lie in a training tile"
        for one in held_out
        if one.overlap.shared_pixels
    ]
    facts += [
        f"training tiles of other scenes show {format_percentage(one.duplicate_fraction)} of the {one.split} area"
        for one in held_out
        if one.duplicate_fraction > 0
    ]
    if divided_groups:
        facts.append(f"{len(divided_groups)} groups of scenes lie on both sides of the split")
    pairs = [f"{pair.held_out} with {pair.train}" for pair in duplicates]
    remedy = (
        f"put scenes of one area in one group (--groups): {join_names(pairs, limit=MAX_LISTED)}"
        if pairs
        else "use --split auto"
    )
    return f"{'; '.join(facts)}. Scores on {names} are too high. Prepare the tile set again: {remedy}."


def distance_message(
    held_out: Sequence[HeldOutSplit], autocorrelation_range: AutocorrelationRange | None, unit: str, advice: str
) -> str:
    """Return whether held-out tiles lie within the autocorrelation range of training; empty if it is unknown.

    `advice` is what to do if they do.
    """
    if autocorrelation_range is None:
        return ""
    if not any(np.isfinite(one.distances).any() for one in held_out):
        return "No scene has both training and held-out tiles."
    distance = format_distance(autocorrelation_range.distance, unit)
    name = f"spatial autocorrelation range of the {autocorrelation_range.variable}"
    if near := near_fractions(held_out, autocorrelation_range):
        fractions = " and ".join(f"{format_percentage(part)} of the {split} tiles" for split, part in near.items())
        at_least = "" if autocorrelation_range.resolved else "at least "
        return (
            f"But {fractions} lie within the {name} ({at_least}{distance}) of a training tile: scores may be slightly "
            f"higher than in new areas. {advice}"
        ).rstrip()
    if not autocorrelation_range.resolved:
        return f"The {name} is unknown: it exceeds {distance}, the longest distance measured."
    some = any(one.fraction_within(autocorrelation_range.distance) for one in held_out)
    count = "Nearly all" if some else "All"
    return f"{count} of these tiles lie beyond the {name} ({distance}) from training: scores hold for new areas."


@dataclass(frozen=True)
class Audit:
    """The result of a leakage check."""

    title: str
    tiles: Mapping[Split, int]
    held_out: tuple[HeldOutSplit, ...]
    """One entry for each of val and test that has tiles."""
    divided_groups: tuple[str, ...]
    """Groups with scenes of different sizes, some of them in train and some held out."""
    class_fractions: Mapping[Split, tuple[float, ...]]
    """Fraction of each class among the labelled pixels of a split's tiles, by class index."""
    classes: tuple[str, ...] = ()
    unit: Literal["m", "px"] = "px"
    """Unit of distances."""
    pixel_size: float = 1.0
    """Size of a pixel in that unit."""
    duplicates: tuple[DuplicateScenes, ...] = ()
    autocorrelation: SpatialAutocorrelation | None = None
    """Variograms of images and labels, in pixels; None if no image was read."""
    notes: tuple[str, ...] = ()
    """Checks that were not possible."""
    advice: str = ""
    """What to do about held-out tiles within the autocorrelation range of training."""
    sampled: bool = False
    """Whether the test tiles are random areas of the images: then distances do not affect the verdict."""

    @property
    def leaks(self) -> bool:
        """Whether training contains held-out data: the same pixels, a duplicate scene, or part of a divided group."""
        shared = any(one.overlap.shared_pixels or one.duplicate_fraction > 0 for one in self.held_out)
        return shared or bool(self.divided_groups)

    @property
    def verdict(self) -> Verdict:
        """The result in one word.

        LEAK if training contains held-out data. CAUTION if many held-out tiles lie within the autocorrelation range of
        training, or if that range is unknown or a check was not possible. OK otherwise. Random scoring areas are as
        near to training as the map's other pixels, so distances do not matter to their score.
        """
        if not self.held_out or "train" not in self.tiles:
            return "OK"
        if self.leaks:
            return "LEAK"
        reach = self.autocorrelation_range
        near = any(np.isfinite(one.distances).any() for one in self.held_out)
        unknown = near and reach is not None and not reach.resolved
        too_near = not self.sampled and (unknown or near_fractions(self.held_out, reach))
        return "CAUTION" if self.notes or too_near else "OK"

    @property
    def autocorrelation_range(self) -> AutocorrelationRange | None:
        """The longer of the ranges of images and labels; None if both are unknown."""
        if self.autocorrelation is None:
            return None
        ranges = []
        for variable in ("image", "labels"):
            one = self.autocorrelation.image if variable == "image" else self.autocorrelation.labels
            if one.model is not None:
                distance = self.pixel_size * min(one.range, float(one.lag[-1]))
                ranges.append(AutocorrelationRange(variable, distance, one.resolved))
        return max(ranges, key=lambda one: (one.distance, not one.resolved), default=None)

    @property
    def conclusion(self) -> str:
        """The verdict and its reason in one line, and what to do about it."""
        if not self.held_out or "train" not in self.tiles:
            return "OK: no leak is possible, because the tile set does not have both training and held-out tiles."
        if self.leaks:
            return f"LEAK: {leak_message(self.held_out, self.divided_groups, self.duplicates)}"
        names = " or ".join(one.split for one in self.held_out)
        distance = distance_message(self.held_out, self.autocorrelation_range, self.unit, self.advice)
        distance = SAMPLED if self.sampled else distance
        checks = "But not all checks were possible." if self.notes else ""
        parts = (f"{self.verdict}: no {names} pixel lies in a training tile.", distance, checks)
        return " ".join(part for part in parts if part)

    def lines(self) -> list[str]:
        """Return the lines that the command line prints."""
        groups = [f"Groups on both sides of the split: {join_names(self.divided_groups, limit=MAX_LISTED)}", ""]
        return [
            self.conclusion,
            "",
            self.title,
            "",
            *overlap_lines(self.tiles, self.held_out),
            "",
            *class_fraction_lines(self.class_fractions, self.classes),
            *distance_lines(self.held_out, self.autocorrelation_range, self.unit),
            *autocorrelation_lines(self.autocorrelation, self.pixel_size, self.unit),
            *duplicate_lines(self.duplicates),
            *(groups if self.divided_groups else []),
            *(f"Note: {note}" for note in self.notes),
        ]


def audit_plan(planned: Sequence[PlannedTile], scenes: Sequence[SplitScene], title: str) -> Audit:
    """Return the audit of tiles that were planned (`geograft.dataset.splits.plan_tiles`) but not written."""
    return audit_tiles([Tile(*row) for row in planned], scenes, title)


def audit_tiles(
    tiles: Sequence[Tile], scenes: Sequence[SplitScene], title: str, classes: tuple[str, ...] = ()
) -> Audit:
    """Return the audit of the `tiles` of `scenes`, from their windows alone.

    Scenes of one group show the same area. If they have the same size, a pixel at the same position in two of them
    counts as shared. If they do not, corresponding pixels are unknown, and the split must not divide the group.
    """
    unaligned = unaligned_groups(scenes)
    area_of = {scene.name: scene.name if scene.group in unaligned else scene.group for scene in scenes}
    windows: dict[Split, list[SceneWindow]] = {split: [] for split in SPLITS}
    for tile in tiles:
        windows[tile.split].append((area_of[tile.scene], tile.part))
    train, test = windows["train"], [tile for tile in tiles if tile.split == "test"]
    return Audit(
        title=f"{title}: {len(tiles):,} tiles of {len(scenes):,} {'scene' if len(scenes) == 1 else 'scenes'}",
        tiles={split: len(some) for split, some in windows.items() if some},
        held_out=tuple(
            HeldOutSplit(
                split, tile_overlap(some, train), smallest_gap(some, train), nearest_distances_in_scene(some, train)
            )
            for split, some in windows.items()
            if some and split != "train"
        ),
        divided_groups=tuple(find_divided_groups(unaligned, tiles)),
        class_fractions={
            split: _class_fractions([tile for tile in tiles if tile.split == split])
            for split in SPLITS
            if windows[split]
        },
        classes=classes,
        sampled=bool(test) and all(tile.area is not None and tile.area.kind == SAMPLE for tile in test),
    )


def _class_fractions(tiles: Sequence[Tile]) -> tuple[float, ...]:
    labelled = np.array([tile.valid * tile.window.height * tile.window.width for tile in tiles])
    fractions = np.array([tile.class_fractions for tile in tiles])
    total = labelled.sum()
    return tuple((labelled @ fractions / total).tolist()) if total > 0 else ()


def audit(tiles: StrPath, figure: StrPath | None = None) -> Audit:
    """Return the leakage check of a tile set: shared pixels, duplicate scenes, spatial autocorrelation.

    Reads the index, and at most 16 windows of 1024 x 1024 pixels for the variograms: about 10 s. Writes the variograms,
    over the distances of held-out tiles from training tiles, to the PNG file `figure` if given.

    Raises:
        InputError: if `tiles` is not a tile set, if a mask is truncated or not one of it, or if a figure is requested
            and an image cannot be read.
        SettingError: if the name of the figure does not end with .png.
        OutputError: if the figure cannot be written.
    """
    figure = optional_path(figure)
    if figure and figure.suffix.lower() != ".png":
        raise SettingError(f"--figure {figure}: the figure is a PNG file. Use a name that ends with .png.")
    with lock_output(figure or Path(), enabled=figure is not None):
        return _audit(TileSet.open(tiles), figure)


def _audit(tile_set: TileSet, figure: Path | None) -> Audit:
    for scene in tile_set.scenes:
        if tile_set.mask_path(scene).exists():
            check_complete(tile_set.mask_path(scene))
    tile_set.check_masks()
    result = audit_tile_set(tile_set)
    try:
        result = _with_advice(replace(result, autocorrelation=estimate_autocorrelation(tile_set)), tile_set)
    except InputError as error:
        if figure:
            raise
        return replace(result, notes=(*result.notes, f"the spatial autocorrelation range is unknown: {error}"))
    if figure:
        write_bytes(figure, audit_figure(result))
    return result


def _with_advice(result: Audit, tile_set: TileSet) -> Audit:
    """Return the audit with what to do about held-out tiles within the autocorrelation range."""
    reach = result.autocorrelation_range
    if result.leaks or result.sampled or reach is None or not near_fractions(result.held_out, reach):
        return result
    # Windows of other tiles give another estimate of the range.
    buffer_px = 10 * int(np.ceil(BUFFER_MARGIN * reach.distance / result.pixel_size / 10))
    return replace(result, advice=buffer_advice(tile_set, buffer_px))


def leakage_warning(tile_set: TileSet) -> str:
    """Return what leaks from training into the held-out tiles of a tile set, in one line; empty if nothing does.

    Takes as long as `audit_tile_set`.

    Raises:
        InputError: if the index cannot be read.
    """
    result = audit_tile_set(tile_set)
    return result.conclusion if result.leaks else ""


def audit_tile_set(tile_set: TileSet) -> Audit:
    """Return the audit of an open tile set from its index alone, without spatial autocorrelation.

    Takes a few seconds for 100,000 tiles, and 15 s for 1,000 scenes that are not georeferenced.

    Raises:
        InputError: if the index cannot be read.
    """
    scenes = [SplitScene.of(scene) for scene in tile_set.meta.scenes]
    result = audit_tiles(tile_set.tiles, scenes, tile_set.title, tile_set.meta.legend.names)
    if not result.held_out or "train" not in result.tiles:
        return result
    outlines = project_outlines(tile_set)
    if outlines is None:
        return _compare_structures(result, tile_set)
    shapes, scale = outlines
    train, tiles = _indices(tile_set, "train"), tile_set.tiles
    held_out = []
    duplicates: dict[Split, DuplicateArea] = {}
    for one in result.held_out:
        mine = _indices(tile_set, one.split)
        duplicates[one.split] = duplicates_by_outline(
            [tiles[i] for i in mine], [tiles[i] for i in train], (shapes[mine], shapes[train])
        )
        distances = nearest_distances(shapes[mine], shapes[train], scale[mine])
        held_out.append(replace(one, distances=distances))
    pixel_size = tile_set.meta.resolution_m or 1.0
    result = replace(result, held_out=tuple(held_out), unit="m", pixel_size=pixel_size)
    return _with_duplicates(result, tile_set, duplicates)


def audit_figure(result: Audit) -> bytes:
    """Return the figure of an audit with spatial autocorrelation, as PNG."""
    assert result.autocorrelation is not None
    curves = [
        _variogram_curve(name, one.rescale(result.pixel_size))
        for name, one in (("image", result.autocorrelation.image), ("labels", result.autocorrelation.labels))
        if len(one.lag)
    ]
    return variogram_figure(curves, {one.split: one.distances for one in result.held_out}, result.unit)


def _compare_structures(result: Audit, tile_set: TileSet) -> Audit:
    """Return the audit with duplicates of scenes that are not georeferenced, found by file, image and labels."""
    scenes = tile_set.meta.scenes
    structures = read_all_structures(tile_set)
    if structures is None and len(scenes) > 1:
        note = f"duplicate scenes were not searched for, because {STRUCTURE} is missing: prepare the tile set again"
        result = replace(result, notes=(*result.notes, note))
    train = tile_set.split("train")
    duplicates = {}
    for one in result.held_out:
        held_out = tile_set.split(one.split)
        pairs = align_duplicates({tile.scene for tile in held_out}, {tile.scene for tile in train}, scenes, structures)
        duplicates[one.split] = duplicates_by_alignment(held_out, train, tile_set.scenes, pairs)
    return _with_duplicates(result, tile_set, duplicates)


def _with_duplicates(result: Audit, tile_set: TileSet, duplicates: dict[Split, DuplicateArea]) -> Audit:
    held_out = []
    for one in result.held_out:
        area = np.array([tile.part.height * tile.part.width for tile in tile_set.split(one.split)], float)
        fraction = float(area @ duplicates[one.split].fractions / area.sum())
        held_out.append(replace(one, duplicate_fraction=fraction))
    pairs = dict.fromkeys(pair for found in duplicates.values() for pair in found.duplicates)
    return replace(result, held_out=tuple(held_out), duplicates=tuple(pairs))


def _variogram_curve(name: str, variogram: Variogram) -> VariogramCurve:
    if variogram.model is None:
        return VariogramCurve(name, variogram.lag, variogram.gamma)
    lag = np.linspace(0, float(variogram.lag[-1]), 300)
    model = np.stack([lag, variogram.evaluate(lag)])
    limit = variogram.range if variogram.resolved else None
    return VariogramCurve(name, variogram.lag, variogram.gamma, model, variogram.sill, limit)


def _indices(tile_set: TileSet, split: Split) -> list[int]:
    return [index for index, tile in enumerate(tile_set.tiles) if tile.split == split]
