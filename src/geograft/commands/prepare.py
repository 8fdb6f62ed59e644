"""`geograft prepare`: create a tile set from images and labels.

Rasterises the labels of each scene to a mask on the image's grid, plans the tiles of each split, computes band
statistics and class fractions, and writes the index and tileset.json.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

import numpy as np
from jaxtyping import Int8
from numpy import ndarray

from geograft.config import PrepareConfig
from geograft.dataset.adjacent import by_block, find_adjacent
from geograft.dataset.areas import area_notes, area_settings, check_area_splits, labelled_area_tiles, plan_area_tiles
from geograft.dataset.duplicates import STRUCTURE, StructureAccumulator, find_duplicate_scenes, write_structures
from geograft.dataset.scenes import LabelledScene, LabelledScenes, LabelSource, select_bands
from geograft.dataset.sources import VectorSource
from geograft.dataset.splits import SplitScene, plan_tiles, training_stride
from geograft.dataset.statistics import (
    COUNT_BLOCK,
    ClassCounts,
    Moments,
    band_moments,
    count_classes,
    count_labels,
    labelled_tiles,
)
from geograft.dataset.tileset import IMAGES, INDEX, MASKS, META, Scene, Split, Tile, TileSet, TileSetMeta
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, atomic_folder, file_digest, json_digest, refuse_existing, write_json
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.nodata import needs_all_bands
from geograft.geo.rasters.raster import Image, ImageInfo, close_labels
from geograft.geo.rasters.writer import create_labels, write_local_copy
from geograft.geo.scene import BandChoice
from geograft.geo.vectors.writer import tile_outlines, write_tiles
from geograft.indices import Index, parse_indices
from geograft.legend import IGNORE, Legend
from geograft.locks import locks_output
from geograft.memory import check_tile_count
from geograft.progress import ProgressBar, progress_bar, track
from geograft.text import join_names, pluralise


@dataclass(frozen=True)
class RasterizedScene:
    """A scene with its labels written as a mask, on the grid of an image that can be read by windows."""

    scene: LabelledScene
    image: Path
    image_digest: str
    mask: Path
    labels_digest: str
    """SHA-256 of the mask's values, independent of compression."""
    counts: ClassCounts
    """Class counts of the whole scene."""
    legend: Legend
    fractional: bool
    """Whether the mask has class fractions."""
    structures: Int8[ndarray, "2 2 64 64"] | None = None
    """Structure of image and labels for the search of duplicates, if not georeferenced; see `dataset.duplicates`."""
    partial_px: int = 0
    """Number of pixels with nodata in some bands, but not in all."""
    partial_kept: bool = True
    """Whether these are valid."""

    @property
    def split_scene(self) -> SplitScene:
        """The scene's size, group and class counts, for the split."""
        grid = self.scene.info.grid
        return SplitScene(
            self.scene.name,
            grid.height,
            grid.width,
            self.scene.group,
            lambda w: self.count_classes(w).stratification_counts,
            self.scene.position,
        )

    def count_classes(self, window: Window) -> ClassCounts:
        """Return the class counts of the labelled, valid pixels of `window`."""
        return count_classes(self.mask, window, self.legend, self.fractional)


def rasterize_labels(gathered: LabelledScenes, folder: Path) -> list[RasterizedScene]:
    """Write the masks, and copies of images where needed, to a tile set's folder, and return the scenes.

    Reads each image once.

    Raises:
        InputError: if an image or a label cannot be read.
        OutputError: if a mask or a copy cannot be written.
    """
    total = sum(scene.info.grid.height * scene.info.grid.width for scene in gathered.scenes)
    # Duplicates of scenes that are not georeferenced are found from their structure.
    with_structures = len(gathered.scenes) > 1 and any(scene.info.grid.crs is None for scene in gathered.scenes)
    with progress_bar("Rasterising labels", total / 1e6, "Mpx") as bar:
        return [_rasterize(scene, gathered, folder, bar, with_structures) for scene in gathered.scenes]


def _rasterize(
    scene: LabelledScene, gathered: LabelledScenes, folder: Path, bar: ProgressBar, with_structures: bool
) -> RasterizedScene:
    image, mask = _readable_image(scene, folder), folder / MASKS / f"{scene.name}.tif"
    label, digest, grid = scene.label_reader(), hashlib.sha256(), scene.info.grid
    legend, fractional = gathered.legend, gathered.fractional
    label_bands = len(legend.names) - (not legend.overlapping)
    accumulator = (
        StructureAccumulator(scene.info.bands, label_bands, grid.height, grid.width) if with_structures else None
    )
    counts, partial_px = [], 0
    with (
        Image.open(image, bands=scene.info.selected, validity=scene.info.validity) as opened,
        create_labels(mask, grid, legend, fractional) as writer,
    ):
        for cell in block_windows(grid.window, *COUNT_BLOCK):
            labels = label(cell)
            bands = labels if fractional else labels[None]
            # Of a large image with few labelled areas, most blocks need not be read.
            if accumulator or not gathered.areas or (labels != IGNORE).any():
                pixels, valid, partial = opened.read_counted(cell)
                labels[..., ~valid] = IGNORE
                partial_px += int(partial.sum())
                if accumulator:
                    accumulator.add(pixels, valid, labels, cell)
                writer.write(bands, cell)
            digest.update(labels.tobytes())
            counts.append(count_labels(bands, legend, fractional))
            bar.advance(cell.height * cell.width / 1e6)
        kept = needs_all_bands(scene.info.validity.nodata, opened.nodata, opened.info.dtype)
    structures = accumulator.structures() if accumulator else None
    digests = (_digest(image), mask, digest.hexdigest())
    return RasterizedScene(
        scene, image, *digests, reduce(add, counts), legend, fractional, structures, partial_px, kept
    )


def _readable_image(scene: LabelledScene, folder: Path) -> Path:
    # A remote image is copied once: training reads its pixels many times.
    if scene.info.windowed and isinstance(scene.info.path, Path):
        return scene.info.path.resolve()
    copy = folder / IMAGES / f"{scene.name}.tif"
    write_local_copy(scene.info, copy)
    return copy


def _digest(image: Path) -> str:
    try:
        return file_digest(image)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error.strerror}. Check the disk it is on.") from error


MAX_VALUES = {"uint8": 255.0}


def write_tile_set(
    folder: Path,
    gathered: LabelledScenes,
    rasterized: Sequence[RasterizedScene],
    tiles: Sequence[Tile],
    settings: PrepareConfig,
    indices: tuple[Index, ...],
) -> None:
    """Write the index, structures and tileset.json of a tile set whose masks are already written.

    Reads the pixels of training tiles, for the band statistics.

    Raises:
        InputError: if an image cannot be read, or a spectral index is not finite at any training pixel.
        OutputError: if a file cannot be written.
    """
    rows = [tile.record for tile in tiles]
    grids = {scene.scene.name: scene.scene.info.grid for scene in rasterized}
    shapes, crs = tile_outlines([(tile.scene, tile.part) for tile in tiles], grids)
    write_tiles(folder / INDEX, rows, shapes, gathered.legend.names, crs)
    parts = [scene.structures for scene in rasterized if scene.structures is not None]
    structures = np.stack(parts) if parts else None
    if structures is not None:
        write_structures(folder / STRUCTURE, structures)
    moments, info = _statistics(rasterized, tiles, indices), rasterized[0].scene.info
    meta = TileSetMeta(
        legend=gathered.legend,
        band_names=band_names(gathered.scenes) + tuple(index.name for index in indices),
        dtype=info.dtype,
        scale=gathered.scale or MAX_VALUES.get(info.dtype),
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        scenes=tuple(_scene(scene, folder) for scene in rasterized),
        settings=settings,
        source=gathered.notes
        | _duplicates_note(_other_places(gathered.scenes, find_duplicate_scenes(gathered.scenes, structures)))
        | _non_finite_note(indices, moments)
        | _partial_nodata_note(rasterized)
        | _alpha_note(gathered.scenes)
        | _acquired_note(gathered.scenes)
        | (area_notes(gathered.areas, tiles, settings) if gathered.areas else {}),
        fingerprint=_fingerprint(gathered, rasterized, tiles, indices),
        indices=indices,
        fractional=gathered.fractional,
        areas=tuple(dict.fromkeys(tile.area for tile in tiles if tile.area)),
    )
    write_json(folder / META, asdict(meta))


def _other_places(scenes: Sequence[LabelledScene], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of scenes that are not in one place, which the split keeps apart."""
    place = {scene.name: scene.position.place if scene.position else scene.name for scene in scenes}
    return [pair for pair in pairs if place[pair[0]] != place[pair[1]]]


def _duplicates_note(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return a note on duplicate scenes that are not in one group; empty if there are none."""
    named = join_names(f"{one} and {other}" for one, other in pairs)
    return {"duplicate scenes": f"{named}. List them in --groups, or scores may be too high"} if pairs else {}


def _non_finite_note(indices: Sequence[Index], moments: Moments) -> dict[str, str]:
    """Return a note on spectral indices that are not finite at some training pixels; empty if there are none."""
    fractions = 1 - moments.count[len(moments.count) - len(indices) :] / max(int(moments.count.max()), 1)
    named = [
        f"{index.name} at {percent:.2g}" for index, percent in zip(indices, 100 * fractions, strict=True) if percent > 0
    ]
    text = f"{' %, '.join(named)} % of the training pixels, where the mean is used instead"
    return {"non-finite index": text} if named else {}


def _partial_nodata_note(rasterized: Sequence[RasterizedScene]) -> dict[str, str]:
    """Return a note on pixels with nodata in some bands only; empty if there are none."""
    kept, ignored = (
        sum(scene.partial_px for scene in rasterized if scene.partial_kept is valid) for valid in (True, False)
    )
    total = sum(scene.scene.info.grid.height * scene.scene.info.grid.width for scene in rasterized)
    parts = [f"{ignored:,} ({ignored / total:.2g} of all) are ignored; --nodata all uses them"] if ignored else []
    parts += [f"{kept:,} ({kept / total:.2g} of all) are used; --nodata any ignores them"] if kept else []
    return {"pixels with nodata in some bands only": ", ".join(parts)} if parts else {}


def _acquired_note(scenes: Sequence[LabelledScene]) -> dict[str, str]:
    """Return a note on when scenes with a file per band were acquired; empty if that is unknown."""
    dates = sorted({scene.info.scene.acquired for scene in scenes if scene.info.scene and scene.info.scene.acquired})
    return {"acquired": join_names(dates)} if dates else {}


ALPHA_SAMPLE_PX, MAX_ALPHA_SAMPLES = 512, 20


def _alpha_note(scenes: Sequence[LabelledScene]) -> dict[str, str]:
    """Return a note on bands tagged alpha, which are masks, and on whether they look like spectral bands."""
    with_alpha = [scene.info for scene in scenes if scene.info.alpha]
    if not with_alpha:
        return {}
    levels = [(_alpha_levels(info), info) for info in with_alpha[:MAX_ALPHA_SAMPLES]]
    most, info = max(levels, key=lambda pair: pair[0])
    text = f"band {info.alpha} of {pluralise(len(with_alpha), 'image')} is tagged alpha: a mask, not an input"
    if most <= MAX_MASK_LEVELS:
        return {"alpha": f"{text}; --no-alpha makes it an input"}
    return {
        "WARNING": f"{text}. But in {info.path} it has {most} different values, like a spectral band. "
        "If it is one, such as near infrared, prepare again with --no-alpha"
    }


MAX_MASK_LEVELS = 8
"""A mask has two values, and a few more at edges that were resampled."""


def _alpha_levels(info: ImageInfo) -> int:
    """Return the number of different values of the alpha band at the centre of an image."""
    grid = info.grid
    high, wide = min(grid.height, ALPHA_SAMPLE_PX), min(grid.width, ALPHA_SAMPLE_PX)
    with Image.open(info.path) as image:
        centre = Window((grid.height - high) // 2, (grid.width - wide) // 2, high, wide)
        return len(np.unique(image.read_alpha(centre)))


def band_names(scenes: Sequence[LabelledScene]) -> tuple[str, ...]:
    """Return the band names that all scenes share, and "band N" for bands with differing names."""
    by_band = zip(*(scene.info.band_names for scene in scenes), strict=True)
    return tuple(names[0] if len(set(names)) == 1 else f"band {i}" for i, names in enumerate(by_band, start=1))


def _scene(rasterized: RasterizedScene, folder: Path) -> Scene:
    inside = rasterized.image.is_relative_to(folder)
    path = rasterized.image.relative_to(folder) if inside else rasterized.image
    grid, scene = rasterized.scene.info.grid, rasterized.scene
    size = (grid.height, grid.width, resolution_m(grid))
    return Scene(scene.name, path.as_posix(), rasterized.image_digest, *size, scene.group, scene.position)


def _fingerprint(
    gathered: LabelledScenes, rasterized: Sequence[RasterizedScene], tiles: Sequence[Tile], indices: Sequence[Index]
) -> str:
    scenes = [(scene.scene.name, scene.image_digest, scene.labels_digest) for scene in rasterized]
    content = {"legend": gathered.legend.content, "scenes": scenes, "tiles": [tile.content for tile in tiles]}
    # Optional fields are included only if set, so that they do not change the fingerprints of other tile sets.
    optional = {
        "indices": [asdict(index) for index in indices],
        "shares": gathered.fractional,
        "bands": list(gathered.scenes[0].info.selected),
        "nodata": "" if gathered.scenes[0].info.validity.nodata == "auto" else gathered.scenes[0].info.validity.nodata,
        "alpha as band": not gathered.scenes[0].info.validity.alpha,
    }
    return json_digest(content | {name: value for name, value in optional.items() if value})


def _statistics(rasterized: Sequence[RasterizedScene], tiles: Sequence[Tile], indices: Sequence[Index]) -> Moments:
    """Return the moments of bands and spectral indices over training tiles, or over all tiles if there are none.

    Raises:
        InputError: if a spectral index is not finite at any of these pixels.
    """
    used = [tile for tile in tiles if tile.split == "train"] or tiles
    windows = {
        scene.scene.name: [tile.window for tile in used if tile.scene == scene.scene.name] for scene in rasterized
    }
    parts = (
        band_moments(
            scene.image,
            scene.mask,
            windows[scene.scene.name],
            indices,
            scene.scene.info.selected,
            scene.scene.info.validity,
        )
        for scene in track(rasterized, len(rasterized), "Statistics", "scenes")
    )
    bands = rasterized[0].scene.info.bands
    moments = reduce(add, chain.from_iterable(parts), Moments.zeros(bands + len(indices)))
    for index, count in zip(indices, moments.count[bands:], strict=True):
        if not count:
            raise InputError(
                f"the index {index.name} = {index.formula} is not finite at any training pixel. "
                "Check the formula and its bands."
            )
    return moments


@locks_output
def prepare(source: LabelSource, out: StrPath, config: PrepareConfig | None = None) -> TileSet:
    """Create a tile set in the folder `out` and return it.

    Images stay where they are; only those that cannot be read by windows (PNG, JPEG, zipped, large strips) are copied,
    as tiled GeoTIFFs, and so are scenes with a file per band, with the bands in use on one grid. Each image is read
    twice: once for its valid pixels, once for the statistics of training tiles. Memory: a few blocks, and the polygons.

    Raises:
        InputError: if images or labels cannot be used, are too large, or a class or a split would have no pixels.
        SettingError: if these settings make the split impossible.
        OutputError: if `out` exists or cannot be written; a partial result is removed.
    """
    out = Path(out)
    settings = config or PrepareConfig()
    refuse_existing(out)
    if isinstance(source, VectorSource):
        source = replace(source, choice=BandChoice(settings.bands, settings.mask, settings.resolution_m))
    elif settings.mask or settings.resolution_m:
        raise SettingError("--mask and --resolution-m need images with polygons (prepare vector). Omit them.")
    gathered, settings = select_bands(source.gather(), settings)
    if gathered.areas:
        settings = area_settings(settings)
    elif settings.split == "areas":
        raise SettingError("--split areas needs the labels.gpkg of a project, with a layer areas. Omit it.")
    else:
        gathered = find_adjacent(gathered, settings)
    indices = parse_indices(settings.index, band_names(gathered.scenes))
    _check_effective(gathered.scenes, settings)
    _check_tile_fits(gathered.scenes, settings.tile_px)
    _check_tile_count([area.window for area in gathered.areas] or [s.info.grid for s in gathered.scenes], settings)
    with atomic_folder(out) as folder:
        try:
            rasterized = rasterize_labels(gathered, folder)
            tiles = _labelled_tiles(gathered, rasterized, settings)
            _check_splits(gathered, tiles, settings)
            _check_classes(gathered, rasterized, tiles)
            write_tile_set(folder, gathered, rasterized, tiles, settings, indices)
        finally:
            close_labels()
    return TileSet.open(out)


def _check_effective(scenes: Sequence[LabelledScene], settings: PrepareConfig) -> None:
    """Raise SettingError for a buffer or a block size that is set although no scene is split by block."""
    default = PrepareConfig()
    given = {
        "--buffer-px": settings.buffer_px not in (0, default.buffer_px) and settings.buffer_px,
        "--block-px": settings.block_px,
    }
    if not any(given.values()) or by_block(scenes, settings):
        return
    flag, value = next((flag, value) for flag, value in given.items() if value)
    raise SettingError(
        f"{flag} {value} has no effect with --split {settings.split} here, which makes no blocks of these "
        f"{pluralise(len(scenes), 'scene')}. Omit it, or use --split block."
    )


def _labelled_tiles(
    gathered: LabelledScenes, rasterized: Sequence[RasterizedScene], settings: PrepareConfig
) -> list[Tile]:
    """Return the planned tiles with enough labelled pixels, with their class fractions."""
    split_scenes = [scene.split_scene for scene in rasterized]
    scenes = {scene.scene.name: scene for scene in rasterized}

    def count(name: str, window: Window) -> ClassCounts:
        return scenes[name].count_classes(window)

    if gathered.areas:
        grids = {name: scene.scene.info.grid for name, scene in scenes.items()}
        tiles = plan_area_tiles(gathered.areas, split_scenes, grids, settings)
        counting = track(tiles, len(tiles), "Counting classes", "tiles")
        return labelled_area_tiles(counting, gathered.areas, count, settings.min_valid)
    planned = plan_tiles(split_scenes, settings)
    return labelled_tiles(track(planned, len(planned), "Counting classes", "tiles"), count, settings.min_valid)


def _check_tile_fits(scenes: Sequence[LabelledScene], tile_px: int) -> None:
    smallest = min(scenes, key=lambda scene: min(scene.info.grid.height, scene.info.grid.width)).info
    limit = min(smallest.grid.height, smallest.grid.width)
    if tile_px > limit:
        raise InputError(
            f"a tile of {tile_px} pixels is larger than {smallest.path}, which has {smallest.grid.width} x "
            f"{smallest.grid.height} pixels. Use --tile-px {limit} or less, or omit the image."
        )


def _check_tile_count(extents: Sequence[Grid | Window], settings: PrepareConfig) -> None:
    stride = training_stride(settings)
    tiles = sum(-(-extent.height // stride) * -(-extent.width // stride) for extent in extents)
    check_tile_count(tiles, settings.tile_px, stride)


def _check_splits(gathered: LabelledScenes, tiles: Sequence[Tile], settings: PrepareConfig) -> None:
    if gathered.areas:
        check_area_splits(gathered.areas, tiles, settings)
        return
    train = settings.split == "article" or settings.val + settings.test < 1
    val, test = settings.val > 0 or bool(settings.val_groups), settings.test > 0 or bool(settings.test_groups)
    required: dict[Split, bool] = {"train": train, "val": val, "test": test}
    if settings.split == "article":
        required["test"] = False
    present = {tile.split for tile in tiles}
    missing = [split for split, needed in required.items() if needed and split not in present]
    if missing:
        raise InputError(
            f"no {' and no '.join(missing)} tile has {settings.min_valid:.0%} of its pixels labelled and valid. "
            "Lower --min-valid, use another --seed or a smaller --tile-px, or label more."
        )


def _check_classes(gathered: LabelledScenes, rasterized: Sequence[RasterizedScene], tiles: Sequence[Tile]) -> None:
    """Raise InputError for a class without pixels in training tiles."""
    train = [tile for tile in tiles if tile.split == "train"]
    if not train:
        return
    names = gathered.legend.names
    needed = range(1 if gathered.implicit_background and not gathered.legend.binary else 0, len(names))
    total = reduce(add, (scene.counts for scene in rasterized))
    absent = [names[index] for index in needed if not total.present[index]]
    if absent:
        raise InputError(
            f"no image has a valid pixel of class {', '.join(absent)}. Check the labels, or omit the class."
        )
    unseen = [names[index] for index in needed if not any(tile.class_fractions[index] for tile in train)]
    if unseen:
        remedy = "Use another --seed, lower --val and --test, or use --split block."
        raise InputError(
            f"no training tile has a pixel of class {', '.join(unseen)}, only val or test tiles do. "
            f"{'Label it in a training area.' if gathered.areas else remedy}"
        )
