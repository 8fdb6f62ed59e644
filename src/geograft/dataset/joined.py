"""Several tile sets as one: training on several places. Images, masks and indices stay where they are.

What a network sees must be equal in all of them, and in those that a run is used on (`check_fit`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from jaxtyping import Float64, Int8, Shaped
from numpy import ndarray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from geograft.card import TILES_FILE, ModelCard
from geograft.config import describe_fault
from geograft.dataset.duplicates import STRUCTURE, read_structures
from geograft.dataset.neighbours import project_to_mercator
from geograft.dataset.splits import SplitScene, splits_by_block
from geograft.dataset.tileset import INDEX, FilePath, Scene, TileSet, TileSetMeta
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, json_digest, to_json
from geograft.geo.coverage import AreaWindow
from geograft.geo.vectors.reader import read_outlines
from geograft.legend import Legend
from geograft.runs import run_file

GivenTiles: TypeAlias = StrPath | Sequence[StrPath] | Mapping[Path, float]
"""The folder of a tile set, those of several, or a mapping from folders to how often their tiles are drawn."""
MAX_WEIGHT = 1e6


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class TileSetPaths:
    """The content of tiles.json in a run folder: the tile sets that the run was trained on."""

    tiles: FilePath | Annotated[tuple[FilePath, ...], Field(min_length=2)]
    """The folder of the tile set, or their folders."""
    weights: tuple[Annotated[float, Field(gt=0, le=MAX_WEIGHT)], ...] = ()
    """How often the tiles of each are drawn, relative to the others; empty: equally often."""

    def __post_init__(self) -> None:
        if len(self.weights) not in (0, len(self.folders)):
            raise ValueError(f"weights has {len(self.weights)} values for {len(self.folders)} tile sets")

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the tile sets."""
        return tuple(Path(path) for path in ([self.tiles] if isinstance(self.tiles, str) else self.tiles))

    @classmethod
    def of(cls, tiles: GivenTiles) -> "TileSetPaths":
        """Return the absolute paths of one or several tile sets, and the weights that a mapping gives them.

        Raises:
            SettingError: if a tile set is given twice, or a weight is not a positive number.
        """
        several = [tiles] if isinstance(tiles, (str, os.PathLike)) else tiles
        weights = tuple(tiles.values()) if isinstance(tiles, Mapping) else ()
        paths = tuple(str(Path(path).resolve()) for path in several)
        double = next((path for path in paths if paths.count(path) > 1), None)
        if double is not None:
            raise SettingError(f"{double} is given twice. Give each tile set once.")
        try:
            return cls(paths if len(paths) > 1 else paths[0], weights)
        except ValidationError as error:
            raise SettingError(
                f"the weights of the tile sets are {list(weights)}. Give each a number above 0, up to {MAX_WEIGHT:g}."
            ) from error

    @classmethod
    def of_run(cls, run: Path) -> "TileSetPaths":
        """Return the tile sets that a run was trained on.

        Raises:
            InputError: if the run does not record them.
        """
        try:
            return TypeAdapter(cls).validate_json(run_file(run, TILES_FILE).read_bytes())
        except OSError as error:
            raise InputError(f"{run} does not name its tile set in {TILES_FILE}. Give --tiles.") from error
        except ValidationError as error:
            raise InputError(f"{run / TILES_FILE}: {describe_fault(error)}. Give --tiles.") from error

    def text(self) -> str:
        """Return the content of tiles.json."""
        return to_json({name: value for name, value in asdict(self).items() if value})

    def open(self) -> TileSet:
        """Open the tile sets, joined into one if they are several.

        Raises:
            InputError: if one of them cannot be read, or differs from the first in what a network sees.
        """
        return join_tile_sets([TileSet.open(folder) for folder in self.folders], self.weights)


def open_run_tiles(run: Path, given: Path | None = None) -> TileSet:
    """Open the tile set `given`, or by default those that a run was trained on, joined if they are several.

    Raises:
        InputError: if the run does not record its tile sets, or one cannot be read.
    """
    return TileSet.open(given) if given is not None else TileSetPaths.of_run(run).open()


def join_tile_sets(tile_sets: Sequence[TileSet], weights: Sequence[float] = ()) -> TileSet:
    """Return one tile set with the scenes and tiles of several, in memory; a single one as it is.

    Scenes are named SET.SCENE and groups SET.GROUP, so that none coincide. Tiles keep their split. Band statistics are
    those of all training pixels, from the statistics of each set weighted by its labelled training tiles. Units of
    confidence intervals are blocks if one of the sets is split by block.

    Raises:
        InputError: if a tile set differs from the first in classes, bands, dtype, tile size or the like.
    """
    if len(tile_sets) == 1 and not weights:
        return tile_sets[0]
    first = tile_sets[0]
    for other in tile_sets[1:]:
        _check_joinable(first, other)
    names = set_names(tile_sets)
    scenes, tiles, areas, masks, factors = [], [], [], {}, {}
    for number, (name, each) in enumerate(zip(names, tile_sets, strict=True)):
        for scene in each.meta.scenes:
            own = _renamed(scene, name, each.image_path(scene.name))
            scenes.append(own)
            masks[own.name] = each.mask_path(scene.name)
            factors[own.name] = weights[number] if weights else 1.0
        areas += [_renamed_area(area, name) for area in each.meta.areas]
        tiles += [
            replace(tile, scene=_joined(name, tile.scene), area=tile.area and _renamed_area(tile.area, name))
            for tile in each.tiles
        ]
    mean, std = _statistics(tile_sets)
    meta = replace(
        first.meta,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        scenes=tuple(scenes),
        settings=next((each.meta.settings for each in tile_sets if _by_block(each)), first.meta.settings),
        source={
            f"{name}, {what}": note
            for name, each in zip(names, tile_sets, strict=True)
            for what, note in each.meta.source.items()
        },
        fingerprint=_fingerprint(tile_sets, weights),
        areas=tuple(areas),
    )
    return TileSet(first.folder, meta, tuple(tiles), tuple(tile_sets), masks, factors if weights else {})


def project_outlines(tile_set: TileSet) -> tuple[Shaped[ndarray, " n"], Float64[ndarray, " n"]] | None:
    """Return the outlines of all tiles in World Mercator, in their order, and the scale of the projection at each.

    None if a tile set, or one of those it joins, is not georeferenced.

    Raises:
        InputError: if an index cannot be read.
    """
    parts = [read_outlines(folder / INDEX) for folder in tile_set.folders]
    projected = [project_to_mercator(shapes, crs) for shapes, crs in parts if crs is not None]
    if len(projected) < len(parts):
        return None
    shapes, scale = zip(*projected, strict=True)
    return np.concatenate(shapes), np.concatenate(scale)


def read_all_structures(tile_set: TileSet) -> Int8[ndarray, "n 2 2 64 64"] | None:
    """Return the structures of all scenes, in their order; None if those of a tile set are missing.

    Raises:
        InputError: if a file is damaged.
    """
    if tile_set.members:
        parts = [read_all_structures(member) for member in tile_set.members]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    scenes = tile_set.meta.scenes
    # The file lies next to the masks, which the folds of a cross-validation share.
    return read_structures(tile_set.mask_path(scenes[0].name).parent.parent / STRUCTURE, len(scenes))


def check_fit(card: ModelCard, tile_set: TileSet) -> None:
    """Raise InputError if a tile set has other classes, bands, dtype or indices than a run was trained on."""
    meta = tile_set.meta
    actual = (_classes(meta.legend), meta.bands, meta.dtype, [index.formula for index in meta.indices])
    expected = (_classes(card.legend), card.bands, card.dtype, [index.formula for index in card.indices])
    for what, found, needed in zip(("classes", "bands", "dtype", "indices"), actual, expected, strict=True):
        if found != needed:
            raise InputError(
                f"{tile_set.title} has the {what} {found}, but the run was trained on {needed}. "
                "Use a matching tile set."
            )


def _classes(legend: Legend) -> tuple[str, ...]:
    return (*legend.names, "(overlapping)") if legend.overlapping else legend.names


def _check_joinable(first: TileSet, other: TileSet) -> None:
    """Raise InputError for the first property of what a network sees that differs between two tile sets."""
    ours, theirs = (_seen_by_network(each.meta) for each in (first, other))
    for what, value in ours.items():
        if theirs[what] != value:
            raise InputError(
                f"{other.folder} has {what} {theirs[what]}, but {first.folder} has {value}. Prepare both with the same "
                "settings, or train on one of them."
            )


def _seen_by_network(meta: TileSetMeta) -> dict[str, Any]:
    return {
        "the classes": list(_classes(meta.legend)),
        "the bands": list(meta.band_names),
        "--bands": list(meta.settings.bands),
        "dtype": meta.dtype,
        "full brightness at": meta.scale,
        "the indices": [index.formula for index in meta.indices],
        "tiles of": f"{meta.settings.tile_px} pixels",
        "fractional labels:": meta.fractional,
        "nodata =": meta.settings.nodata,
        "alpha =": meta.settings.alpha,
    }


def set_names(tile_sets: Sequence[TileSet]) -> list[str]:
    """Return a name for each tile set: that of its folder, numbered where it occurs twice."""
    names = [each.folder.resolve().name for each in tile_sets]
    return [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def _joined(tile_set: str, name: str) -> str:
    return f"{tile_set}.{name}"


def _renamed(scene: Scene, tile_set: str, image: Path) -> Scene:
    position = scene.position and replace(scene.position, place=_joined(tile_set, scene.position.place))
    name, group = _joined(tile_set, scene.name), _joined(tile_set, scene.group)
    return replace(scene, name=name, group=group, image=str(image.resolve()), position=position)


def _renamed_area(area: AreaWindow, tile_set: str) -> AreaWindow:
    return replace(area, name=_joined(tile_set, area.name), scene=_joined(tile_set, area.scene))


def _by_block(tile_set: TileSet) -> bool:
    return splits_by_block([SplitScene.of(scene) for scene in tile_set.meta.scenes], tile_set.meta.settings)


def _statistics(tile_sets: Sequence[TileSet]) -> tuple[Float64[ndarray, " b"], Float64[ndarray, " b"]]:
    """Return the mean and standard deviation of the bands over all sets."""
    labelled = np.array([sum(tile.valid for tile in each.split("train")) for each in tile_sets])
    fractions = labelled / labelled.sum() if labelled.sum() else np.full(len(tile_sets), 1 / len(tile_sets))
    means, stds = (np.array([getattr(each.meta, name) for each in tile_sets]) for name in ("mean", "std"))
    mean = fractions @ means
    variance = fractions @ (stds**2 + (means - mean) ** 2)
    return mean, np.sqrt(variance)


def _fingerprint(tile_sets: Sequence[TileSet], weights: Sequence[float]) -> str:
    return json_digest({"joined": [each.meta.fingerprint for each in tile_sets], "weights": list(weights)})
