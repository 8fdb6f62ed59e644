"""`geograft prepare`: images and labels become a tile set.

The labels of every scene on disk, on the grid of an image that can be read by windows.

What a tile set's folder holds beside its masks: the index of tiles, statistics, and tileset.json.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

import numpy as np
from jaxtyping import Int8
from numpy import ndarray

from geograft.config import PrepareConfig
from geograft.dataset.duplicates import STRUCTURE, Looks, same_ground, write_structures
from geograft.dataset.scenes import Gathered, LabelledScene, Source, listed
from geograft.dataset.splits import Place, plan
from geograft.dataset.statistics import TALLY_CELL, Moments, Tally, band_moments, counted, labelled_tiles, tally
from geograft.dataset.tileset import IMAGES, INDEX, MASKS, META, Scene, Split, Tile, TileSet, TileSetMeta
from geograft.errors import InputError
from geograft.files import building, file_digest, json_digest, refuse_existing, write_json
from geograft.geo.grid import Window, cells
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.raster import Image, close_labels
from geograft.geo.rasters.writer import copy_tiled, create_labels
from geograft.geo.vectors.outlines import outlines
from geograft.geo.vectors.writer import write_tiles
from geograft.indices import Index, indices_of
from geograft.legend import IGNORE, Legend
from geograft.progress import Meter, meter, track


@dataclass(frozen=True)
class BurntScene:
    """A scene whose labels are on disk, on the grid of an image that can be read by windows."""

    scene: LabelledScene
    image: Path
    image_digest: str
    mask: Path
    labels_digest: str
    """SHA-256 of the class indices, however the mask is compressed."""
    held: Tally
    """What all labels of the scene hold."""
    legend: Legend
    shares: bool
    """Whether the mask holds shares."""
    structures: Int8[ndarray, "2 2 64 64"] | None = None
    """What the scene looks like, where that is needed to know it again; see `geograft.dataset.duplicates`."""

    @property
    def place(self) -> Place:
        """What the split must know of the scene."""
        grid = self.scene.info.grid
        return Place(self.scene.name, grid.height, grid.width, self.scene.group, lambda w: self.tally(w).balance)

    def tally(self, window: Window) -> Tally:
        """Return what the labelled, valid pixels of `window` hold."""
        return tally(self.mask, window, self.legend, self.shares)


def burn_all(gathered: Gathered, folder: Path) -> list[BurntScene]:
    """Return the scenes, with their masks and what images had to be copied written into a tile set's folder.

    Reads every image once.

    Raises:
        InputError: when an image or a label cannot be read.
        OutputError: when a mask or a copy cannot be written.
    """
    total = sum(scene.info.grid.height * scene.info.grid.width for scene in gathered.scenes)
    # Scenes without a place on the ground are known again by what they look like.
    looked = len(gathered.scenes) > 1 and any(scene.info.grid.crs is None for scene in gathered.scenes)
    with meter("Burning labels", total / 1e6, "Mpx") as bar:
        return [_burn(scene, gathered, folder, bar, looked) for scene in gathered.scenes]


def _burn(scene: LabelledScene, gathered: Gathered, folder: Path, bar: Meter, looked: bool) -> BurntScene:
    image, mask = _readable_image(scene, folder), folder / MASKS / f"{scene.name}.tif"
    label, digest, grid = scene.label_reader(), hashlib.sha256(), scene.info.grid
    legend, shares = gathered.legend, gathered.shares
    layers = len(legend.names) - (not legend.overlapping)
    looks = Looks(scene.info.bands, layers, grid.height, grid.width) if looked else None
    held = []
    with Image.open(image) as opened, create_labels(mask, grid, legend, shares) as writer:
        for cell in cells(grid.window, *TALLY_CELL):
            labels = label(cell)
            pixels, valid = opened.read(cell)
            labels[..., ~valid] = IGNORE
            if looks:
                looks.add(pixels, valid, labels, cell)
            bands = labels if shares else labels[None]
            writer.write(bands, cell)
            digest.update(labels.tobytes())
            held.append(counted(bands, legend, shares))
            bar.advance(cell.height * cell.width / 1e6)
    seen = looks.structures() if looks else None
    return BurntScene(scene, image, _digest(image), mask, digest.hexdigest(), reduce(add, held), legend, shares, seen)


def _readable_image(scene: LabelledScene, folder: Path) -> Path:
    if scene.info.windowed:
        return scene.info.path.resolve()
    copy_tiled(scene.info.path, folder / IMAGES / f"{scene.name}.tif")
    return folder / IMAGES / f"{scene.name}.tif"


def _digest(image: Path) -> str:
    try:
        return file_digest(image)
    except OSError as error:
        raise InputError(f"{image} cannot be read: {error.strerror}. Check the disk it is on.") from error


FULL_BRIGHTNESS = {"uint8": 255.0}


def write(
    folder: Path,
    gathered: Gathered,
    burnt: Sequence[BurntScene],
    tiles: Sequence[Tile],
    settings: PrepareConfig,
    indices: tuple[Index, ...],
) -> None:
    """Write everything of a tile set but its masks: index, structures, statistics, and what tileset.json holds.

    Reads the pixels under training tiles.

    Raises:
        InputError: when an image cannot be read, or an index has no value at any training pixel.
        OutputError: when it cannot be written.
    """
    rows = [(tile.scene, tile.window, tile.split, tile.valid, tile.shares) for tile in tiles]
    shapes, crs = outlines([row[:2] for row in rows], {scene.scene.name: scene.scene.info.grid for scene in burnt})
    write_tiles(folder / INDEX, rows, shapes, gathered.legend.names, crs)
    structures = [scene.structures for scene in burnt if scene.structures is not None]
    looks = np.stack(structures) if structures else None
    if looks is not None:
        write_structures(folder / STRUCTURE, looks)
    moments, info = _statistics(burnt, tiles, indices), burnt[0].scene.info
    meta = TileSetMeta(
        legend=gathered.legend,
        band_names=band_names(gathered.scenes) + tuple(index.name for index in indices),
        dtype=info.dtype,
        scale=gathered.scale or FULL_BRIGHTNESS.get(info.dtype),
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        scenes=tuple(_scene(scene, folder) for scene in burnt),
        settings=settings,
        source=gathered.notes | _twins(same_ground(gathered.scenes, looks)) | _gaps(indices, moments),
        fingerprint=_fingerprint(gathered, burnt, tiles, indices),
        indices=indices,
        shares=gathered.shares,
    )
    write_json(folder / META, asdict(meta))


def _twins(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return a note on scenes of the same ground, of which the split knows nothing; none where there are none."""
    named = listed(f"{one} and {other}" for one, other in pairs)
    return {"the same ground": f"{named}. Name them in --groups, or scores may flatter"} if pairs else {}


def _gaps(indices: Sequence[Index], moments: Moments) -> dict[str, str]:
    """Return a note on indices that have no value at some training pixels; none where all have."""
    shares = 1 - moments.count[len(moments.count) - len(indices) :] / max(int(moments.count.max()), 1)
    named = [f"{index.name} at {share:.2g}" for index, share in zip(indices, 100 * shares, strict=True) if share > 0]
    without = f"{' %, '.join(named)} % of the training pixels, where its mean stands for it"
    return {"index without a value": without} if named else {}


def band_names(scenes: Sequence[LabelledScene]) -> tuple[str, ...]:
    """Return the names that all scenes give their bands, and a number for bands that they call differently."""
    by_band = zip(*(scene.info.band_names for scene in scenes), strict=True)
    return tuple(names[0] if len(set(names)) == 1 else f"band {i}" for i, names in enumerate(by_band, start=1))


def _scene(burnt: BurntScene, folder: Path) -> Scene:
    inside = burnt.image.is_relative_to(folder)
    path = burnt.image.relative_to(folder) if inside else burnt.image
    grid, scene = burnt.scene.info.grid, burnt.scene
    return Scene(
        scene.name, path.as_posix(), burnt.image_digest, grid.height, grid.width, resolution_m(grid), scene.group
    )


def _fingerprint(
    gathered: Gathered, burnt: Sequence[BurntScene], tiles: Sequence[Tile], indices: Sequence[Index]
) -> str:
    scenes = [(scene.scene.name, scene.image_digest, scene.labels_digest) for scene in burnt]
    seen = {"legend": gathered.legend.content, "scenes": scenes, "tiles": [asdict(tile) for tile in tiles]}
    # What a tile set may be without is left out then, so that older ones keep their fingerprint.
    added = {"indices": [asdict(index) for index in indices], "shares": gathered.shares}
    return json_digest(seen | {name: value for name, value in added.items() if value})


def _statistics(burnt: Sequence[BurntScene], tiles: Sequence[Tile], indices: Sequence[Index]) -> Moments:
    """Return the moments of the pixels under training tiles, by band and index; under all tiles when none trains.

    Raises:
        InputError: when an index has no value at any of them.
    """
    used = [tile for tile in tiles if tile.split == "train"] or tiles
    windows = {scene.scene.name: [tile.window for tile in used if tile.scene == scene.scene.name] for scene in burnt}
    parts = (
        band_moments(scene.image, scene.mask, windows[scene.scene.name], indices)
        for scene in track(burnt, len(burnt), "Statistics", "scenes")
    )
    bands = burnt[0].scene.info.bands
    moments = reduce(add, chain.from_iterable(parts), Moments.none(bands + len(indices)))
    for index, count in zip(indices, moments.count[bands:], strict=True):
        if not count:
            raise InputError(
                f"the index {index.name} = {index.formula} is no finite number at any training pixel. "
                "Check the formula and the bands that it names."
            )
    return moments


def prepare(source: Source, out: Path, config: PrepareConfig | None = None) -> TileSet:
    """Make a tile set in the folder `out` and return it, opened.

    Pixels stay in the images they are in; those that cannot be read by windows (PNG, JPEG, zipped, large strips) are
    copied once, as tiled GeoTIFFs. Every image is read twice: for its valid pixels, and for the statistics of those
    under training tiles, each once. Memory: a few blocks, and the polygons.

    Raises:
        InputError: when images or labels cannot be used, or a class or a split would be without pixels.
        SettingError: when the split cannot be made with these settings.
        OutputError: when `out` exists already or cannot be written; nothing is left behind then.
    """
    settings = config or PrepareConfig()
    refuse_existing(out)
    gathered = source.gather()
    indices = indices_of(settings.index, band_names(gathered.scenes))
    _check_tile_fits(gathered.scenes, settings.tile_px)
    with building(out) as folder:
        try:
            burnt = burn_all(gathered, folder)
            tiles = _filled_tiles(burnt, settings)
            _check_splits(tiles, settings)
            _check_classes(gathered, burnt, tiles)
            write(folder, gathered, burnt, tiles, settings, indices)
        finally:
            close_labels()
    return TileSet.open(out)


def _filled_tiles(burnt: Sequence[BurntScene], settings: PrepareConfig) -> list[Tile]:
    """Return the planned tiles that have enough labelled pixels, with the shares of the classes."""
    planned = plan([scene.place for scene in burnt], settings)
    scenes = {scene.scene.name: scene for scene in burnt}
    passing = track(planned, len(planned), "Counting classes", "tiles")
    return labelled_tiles(passing, lambda name, window: scenes[name].tally(window), settings.min_valid)


def _check_tile_fits(scenes: Sequence[LabelledScene], tile_px: int) -> None:
    smallest = min(scenes, key=lambda scene: min(scene.info.grid.height, scene.info.grid.width)).info
    limit = min(smallest.grid.height, smallest.grid.width)
    if tile_px > limit:
        raise InputError(
            f"a tile of {tile_px} pixels is larger than {smallest.path}, which has {smallest.grid.width} x "
            f"{smallest.grid.height}. Use --tile-px {limit}, the largest that works, or leave the image out."
        )


def _check_splits(tiles: Sequence[Tile], settings: PrepareConfig) -> None:
    train = settings.split == "article" or settings.val + settings.test < 1
    wanted: dict[Split, bool] = {"train": train, "val": settings.val > 0, "test": settings.test > 0}
    if settings.split == "article":
        wanted["test"] = False
    there = {tile.split for tile in tiles}
    missing = [split for split, needed in wanted.items() if needed and split not in there]
    if missing:
        raise InputError(
            f"no {' and no '.join(missing)} tile has {settings.min_valid:.0%} of its pixels labelled and valid. "
            "Lower --min-valid, choose another --seed or smaller tiles, or label more."
        )


def _check_classes(gathered: Gathered, burnt: Sequence[BurntScene], tiles: Sequence[Tile]) -> None:
    """Raise InputError for a class that training would never see."""
    train = [tile for tile in tiles if tile.split == "train"]
    if not train:
        return
    names = gathered.legend.names
    needed = range(1 if gathered.implied and not gathered.legend.binary else 0, len(names))
    total = reduce(add, (scene.held for scene in burnt))
    absent = [names[index] for index in needed if not total.present[index]]
    if absent:
        raise InputError(
            f"no valid pixel of any image is of class {', '.join(absent)}. Check the labels, or leave it out."
        )
    unseen = [names[index] for index in needed if not any(tile.shares[index] for tile in train)]
    if unseen:
        raise InputError(
            f"no training tile holds a pixel of class {', '.join(unseen)}, only the others do. "
            "Choose another --seed, lower --val and --test, or use --split block."
        )
