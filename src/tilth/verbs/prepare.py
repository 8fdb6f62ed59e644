"""`tilth prepare`: images and labels become a tile set."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int64
from numpy import ndarray

from tilth.config import PrepareConfig
from tilth.errors import InputError
from tilth.files import building, file_digest, json_digest, refuse_existing, write_json
from tilth.geo.grid import Window, cells
from tilth.geo.rasters.raster import Image, close_labels, read_labels
from tilth.geo.rasters.rasterout import BLOCK_PX, copy_tiled, create_labels
from tilth.geo.splitting.sameground import same_ground
from tilth.geo.splitting.splits import Place, plan
from tilth.geo.tilesets.scenes import Gathered, LabelledScene, Source, listed
from tilth.geo.tilesets.statistics import Moments, band_moments
from tilth.geo.tilesets.structure import STRUCTURE, Looks, write_structures
from tilth.geo.tilesets.tileset import IMAGES, INDEX, MASKS, META, Scene, Split, Tile, TileSet, TileSetMeta
from tilth.geo.vectors.outlines import outlines
from tilth.geo.vectors.vectorout import write_tiles
from tilth.indices import Index, indices_of
from tilth.legend import IGNORE, Legend
from tilth.progress import Meter, meter, track

CELL = (BLOCK_PX, 4096)
"""Rows and columns burned at a time."""
FULL_BRIGHTNESS = {"uint8": 255.0}


@dataclass(frozen=True)
class BurntScene:
    """A scene whose labels are on disk, on the grid of an image that can be read by windows."""

    scene: LabelledScene
    image: Path
    image_digest: str
    mask: Path
    labels_digest: str
    """SHA-256 of the class indices, however the mask is compressed."""
    class_pixels: Int64[ndarray, " k"]
    structures: Int8[ndarray, "2 2 64 64"] | None = None
    """What the scene looks like, where that is needed to know it again; see `tilth.geo.tilesets.structure`."""

    @property
    def place(self) -> Place:
        """What the split must know of the scene."""
        grid = self.scene.info.grid
        return Place(self.scene.name, grid.height, grid.width, self.scene.group, self.count)

    def count(self, window: Window) -> tuple[int, ...]:
        """Return the number of labelled, valid pixels of `window` by class index."""
        counts = np.zeros(IGNORE + 1, np.int64)
        for cell in cells(window, *CELL):
            counts += np.bincount(read_labels(self.mask, cell).ravel(), minlength=IGNORE + 1)
        return tuple(counts[: len(self.class_pixels)].tolist())


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
    indices = indices_of(settings.index, _band_names(gathered.scenes))
    _check_tile_fits(gathered.scenes, settings.tile_px)
    with building(out) as folder:
        try:
            burnt = _burn_all(gathered, folder)
            tiles = _filled_tiles(burnt, settings)
            _check_splits(tiles, settings)
            _check_classes(gathered, burnt, tiles)
            _write(folder, gathered, burnt, tiles, settings, indices)
        finally:
            close_labels()
    return TileSet.open(out)


def _burn_all(gathered: Gathered, folder: Path) -> list[BurntScene]:
    total = sum(scene.info.grid.height * scene.info.grid.width for scene in gathered.scenes)
    # Scenes without a place on the ground are known again by what they look like.
    looked = len(gathered.scenes) > 1 and any(scene.info.grid.crs is None for scene in gathered.scenes)
    with meter("Burning labels", total / 1e6, "Mpx") as bar:
        return [_burn(scene, gathered.legend, folder, bar, looked) for scene in gathered.scenes]


def _burn(scene: LabelledScene, legend: Legend, folder: Path, bar: Meter, looked: bool) -> BurntScene:
    image, mask = _readable_image(scene, folder), folder / MASKS / f"{scene.name}.tif"
    label, digest, counts = scene.labeller(), hashlib.sha256(), np.zeros(IGNORE + 1, np.int64)
    grid = scene.info.grid
    looks = Looks(scene.info.bands, len(legend.names), grid.height, grid.width) if looked else None
    with Image.open(image) as opened, create_labels(mask, grid, legend) as writer:
        for cell in cells(grid.window, *CELL):
            labels = label(cell)
            pixels, valid = opened.read(cell)
            labels[~valid] = IGNORE
            if looks:
                looks.add(pixels, valid, labels, cell)
            writer.write(labels[None], cell)
            digest.update(labels.tobytes())
            counts += np.bincount(labels.ravel(), minlength=IGNORE + 1)
            bar.advance(cell.height * cell.width / 1e6)
    known, seen = counts[: len(legend.names)], looks.structures() if looks else None
    return BurntScene(scene, image, _digest(image), mask, digest.hexdigest(), known, seen)


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


def _filled_tiles(burnt: Sequence[BurntScene], settings: PrepareConfig) -> list[Tile]:
    """Return the planned tiles that have enough labelled pixels, with the shares of the classes."""
    planned = plan([scene.place for scene in burnt], settings)
    scenes = {scene.scene.name: scene for scene in burnt}
    tiles = []
    for name, window, split in track(planned, len(planned), "Counting classes", "tiles"):
        counts = scenes[name].count(window)
        labelled = sum(counts)
        valid = labelled / (window.height * window.width)
        if labelled and valid >= settings.min_valid:
            tiles.append(Tile(name, window, split, valid, tuple(count / labelled for count in counts)))
    return tiles


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
    total = reduce(add, (scene.class_pixels for scene in burnt))
    absent = [names[index] for index in needed if not total[index]]
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


def _write(
    folder: Path,
    gathered: Gathered,
    burnt: Sequence[BurntScene],
    tiles: Sequence[Tile],
    settings: PrepareConfig,
    indices: tuple[Index, ...],
) -> None:
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
        band_names=_band_names(gathered.scenes) + tuple(index.name for index in indices),
        dtype=info.dtype,
        scale=gathered.scale or FULL_BRIGHTNESS.get(info.dtype),
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        scenes=tuple(_scene(scene, folder) for scene in burnt),
        settings=settings,
        source=gathered.notes | _twins(same_ground(gathered.scenes, looks)) | _gaps(indices, moments),
        fingerprint=_fingerprint(gathered.legend, burnt, tiles, indices),
        indices=indices,
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


def _band_names(scenes: Sequence[LabelledScene]) -> tuple[str, ...]:
    """Return the names that all scenes give their bands, and a number for bands that they call differently."""
    by_band = zip(*(scene.info.band_names for scene in scenes), strict=True)
    return tuple(names[0] if len(set(names)) == 1 else f"band {i}" for i, names in enumerate(by_band, start=1))


def _scene(burnt: BurntScene, folder: Path) -> Scene:
    inside = burnt.image.is_relative_to(folder)
    path = burnt.image.relative_to(folder) if inside else burnt.image
    grid, scene = burnt.scene.info.grid, burnt.scene
    return Scene(
        scene.name, path.as_posix(), burnt.image_digest, grid.height, grid.width, grid.resolution_m, scene.group
    )


def _fingerprint(legend: Legend, burnt: Sequence[BurntScene], tiles: Sequence[Tile], indices: Sequence[Index]) -> str:
    scenes = [(scene.scene.name, scene.image_digest, scene.labels_digest) for scene in burnt]
    seen = {"legend": legend.content, "scenes": scenes, "tiles": [asdict(tile) for tile in tiles]}
    return json_digest(seen | ({"indices": [asdict(index) for index in indices]} if indices else {}))
