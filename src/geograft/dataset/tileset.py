"""The tile set: a folder that says which windows of which images train, validate and test, and what they show.

    TILES/
      tiles.gpkg       one row a tile: scene, window, split, valid share, class shares, outline; opens in QGIS
      masks/NAME.tif   class index of every pixel of a scene, or how much of it is of each class, in 250ths; 255 where
                       it is neither trained nor scored
      structure.npy    what scenes look like, where several have no place on the ground; for `geograft audit`
      images/NAME.tif  only for images that cannot be read by window as they are (PNG, JPEG, zipped, large strips)
      tileset.json     everything else: classes, bands, statistics, scenes, settings, fingerprint

Pixels stay in the images: a tile is a window, read when it is needed.

Windows near training tiles, at any place and not on their grid, that hold training ground alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as settings

from geograft.card import ModelCard
from geograft.config import PrepareConfig, describe_fault
from geograft.errors import InputError
from geograft.geo.coverage import NO_BOXES, SceneWindow, box_areas, covered_pixels, earlier_overlaps, window_boxes
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image, read_mask
from geograft.geo.vectors.reader import read_tiles
from geograft.indices import Index, append_indices, check_indices, fill_missing
from geograft.labels import Label, decode_fractions, missing_value
from geograft.legend import Legend

CellKey = tuple[str, int, int]


@dataclass(frozen=True)
class TrainingArea:
    """Training ground: every pixel that a training tile holds and no validation or test tile does.

    What a split by block leaves as a buffer is in no training tile, and so no training ground.
    """

    scenes: Mapping[str, tuple[int, int]]
    """Rows and columns of each scene."""
    train: Mapping[CellKey, Int64[ndarray, "_ 4"]]
    """Corners of the training tiles, by scene and square of the scene in which their upper left pixel lies."""
    held_out: Mapping[CellKey, Int64[ndarray, "_ 4"]]
    """Corners of the other tiles likewise."""
    cell_px: int
    """Edge of a square: no tile is longer."""

    @classmethod
    def from_tiles(
        cls, scenes: Mapping[str, tuple[int, int]], train: Sequence[SceneWindow], held: Sequence[SceneWindow]
    ) -> "TrainingArea":
        """Return the training ground between `train` and `held`. Time and memory follow the number of tiles."""
        edge = max((max(window.height, window.width) for _, window in (*train, *held)), default=1)
        return cls(scenes, _by_square(train, edge), _by_square(held, edge), edge)

    def random_window(self, scene: str, window: Window, rng: np.random.Generator) -> Window:
        """Return a window of training ground, at most half a tile from `window` either way.

        The window goes by a random number of rows and columns, to the scene's edge at the most. Where that is not all
        training ground it goes half as far, and again; a training tile itself at the worst.
        """
        height, width = self.scenes[scene]
        reach = window.height // 2, window.width // 2
        down, right = (int(rng.integers(-length, length + 1)) for length in reach)
        while down or right:
            moved = Window(
                min(max(window.row + down, 0), height - window.height),
                min(max(window.col + right, 0), width - window.width),
                window.height,
                window.width,
            )
            if self.contains(scene, moved):
                return moved
            down, right = int(down / 2), int(right / 2)
        return window

    def contains(self, scene: str, window: Window) -> bool:
        """Return whether every pixel of `window` is training ground. A window may be no longer than a tile."""
        box = window_boxes([window])
        train, held = (self._near(corners, scene, window) for corners in (self.train, self.held_out))
        return bool((covered_pixels(box, train) == box_areas(box)).all() and not covered_pixels(box, held).any())

    def _near(
        self, corners: Mapping[CellKey, Int64[ndarray, "_ 4"]], scene: str, window: Window
    ) -> Int64[ndarray, "_ 4"]:
        rows = range((window.row - self.cell_px) // self.cell_px, (window.stop_row - 1) // self.cell_px + 1)
        cols = range((window.col - self.cell_px) // self.cell_px, (window.stop_col - 1) // self.cell_px + 1)
        found = [corners[scene, row, col] for row in rows for col in cols if (scene, row, col) in corners]
        return np.concatenate(found) if found else NO_BOXES


def _by_square(tiles: Iterable[SceneWindow], edge: int) -> dict[CellKey, Int64[ndarray, "_ 4"]]:
    found: dict[CellKey, list[Window]] = defaultdict(list)
    for scene, window in dict.fromkeys(tiles):
        found[scene, window.row // edge, window.col // edge].append(window)
    return {key: window_boxes(windows) for key, windows in found.items()}


Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

INDEX = "tiles.gpkg"
META = "tileset.json"
RENAMED_KEYS = {"shares": "fractional"}
"""Old keys of tileset.json and their new names, for error messages; old keys are not accepted."""
MASKS = "masks"
IMAGES = "images"


@dataclass(frozen=True)
class Tile:
    """A window of one scene, and the part it plays."""

    scene: str
    window: Window
    split: Split
    valid: float = 1.0
    """Share of its pixels that are labelled and valid."""
    class_fractions: tuple[float, ...] = ()
    """Share of each class among the valid pixels, by class index."""


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Scene:
    """One image with its label mask on the same grid."""

    name: str
    image: str
    """Path of the image: relative to the tile set where it lies inside, else absolute."""
    digest: str
    """SHA-256 of the image file's bytes."""
    height: int
    width: int
    resolution_m: float | None
    group: str
    """Scenes of one group (the same ground at two dates, say) are never split; its own name when it stands alone."""


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TileSetMeta:
    """What tileset.json holds."""

    legend: Legend
    band_names: tuple[str, ...]
    """What the network sees, in order: the images' bands, then the indices."""
    dtype: str
    """Number format of the images, as numpy names it."""
    scale: float | None
    """The images' value that stands for full brightness (255 for uint8, 2048 for DSTL), where that is known."""
    mean: tuple[float, ...]
    """Per band and index over the valid pixels of the training part, in their own units."""
    std: tuple[float, ...]
    """Per band and index over the valid pixels of the training part, in their own units."""
    scenes: tuple[Scene, ...]
    settings: PrepareConfig
    source: dict[str, str]
    """Where labels and images came from, and what was repaired, in words."""
    fingerprint: str
    """SHA-256 over everything that decides what training sees: images, masks, tiles, splits, classes."""
    masks: str = MASKS
    """Folder of the masks: relative to the tile set where it lies inside, else absolute."""
    indices: tuple[Index, ...] = ()
    """Spectral indices, the last of the bands; computed when pixels are read."""
    fractional: bool = False
    """Whether masks say how much of a pixel each class has, not which class it is; always so of overlapping classes."""

    def __post_init__(self) -> None:
        check_indices(self.indices, self.bands)
        if self.legend.overlapping and not self.fractional:
            raise ValueError("masks of class indices cannot hold overlapping classes")

    @property
    def bands(self) -> int:
        """Number of bands that the images have, without indices."""
        return len(self.band_names) - len(self.indices)

    @property
    def resolution_m(self) -> float | None:
        """Ground size of a pixel in metres, the median of the scenes that have one; None where none has."""
        sizes = sorted(scene.resolution_m for scene in self.scenes if scene.resolution_m is not None)
        return sizes[len(sizes) // 2] if sizes else None


@dataclass(frozen=True)
class TileSet:
    """An opened tile set."""

    folder: Path
    meta: TileSetMeta
    tiles: tuple[Tile, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> "TileSet":
        """Read a tile set's index and settings; no image is opened.

        Raises:
            InputError: when `folder` is no tile set.
        """
        try:
            meta = TypeAdapter(TileSetMeta).validate_json((folder / META).read_bytes())
        except OSError as error:
            raise InputError(f"{folder} is not a tile set (no {META}). Make one with `geograft prepare`.") from error
        except ValidationError as error:
            fault = describe_fault(error, RENAMED_KEYS)
            raise InputError(f"{folder / META}: {fault}. Prepare the tile set again.") from error
        return cls(folder, meta, tuple(Tile(*row) for row in read_tiles(folder / INDEX)))

    def split(self, split: Split) -> tuple[Tile, ...]:
        """Return the tiles of one split, in the index's order."""
        return tuple(tile for tile in self.tiles if tile.split == split)

    def class_fractions(self, split: Split) -> Float64[ndarray, "tiles k"]:
        """Return the share of each class among all pixels of each tile of one split."""
        rows = [[tile.valid * share for share in tile.class_fractions] for tile in self.split(split)]
        return np.array(rows, np.float64).reshape(len(rows), len(self.meta.legend.names))

    def training_area(self) -> TrainingArea:
        """Return where training tiles may be drawn."""
        train = [(tile.scene, tile.window) for tile in self.tiles if tile.split == "train"]
        held = [(tile.scene, tile.window) for tile in self.tiles if tile.split != "train"]
        return TrainingArea.from_tiles(
            {name: (scene.height, scene.width) for name, scene in self.scenes.items()}, train, held
        )

    def lines(self) -> list[str]:
        """Return what the command line prints: tiles by split, bands, ground size of a pixel, classes, and notes."""
        meta = self.meta
        tiles = ", ".join(f"{len(self.split(split)):,} {split}" for split in SPLITS if self.split(split))
        ground = f", {meta.resolution_m:.3g} m a pixel" if meta.resolution_m else ", no place on the ground"
        figures = zip(meta.indices, meta.mean[meta.bands :], meta.std[meta.bands :], strict=True)
        return [
            f"scenes: {len(meta.scenes):,}, {meta.bands} {'band' if meta.bands == 1 else 'bands'} of "
            f"{meta.dtype}{ground}",
            *(f"index {i.name}: {i.formula}, mean {mean:.3g}, deviation {std:.3g}" for i, mean, std in figures),
            f"classes: {', '.join(meta.legend.names)}{_form(meta)}",
            f"tiles of {meta.settings.tile_px} px: {tiles}",
            *(f"{what}: {words}" for what, words in meta.source.items()),
            f"tile set: {self.folder}",
        ]

    @cached_property
    def scenes(self) -> dict[str, Scene]:
        """The scenes by name."""
        return {scene.name: scene for scene in self.meta.scenes}

    def image_path(self, scene: str) -> Path:
        """Return where the image of a scene lies."""
        return self.folder / self.scenes[scene].image

    def mask_path(self, scene: str) -> Path:
        """Return where the label mask of a scene lies."""
        return self.folder / self.meta.masks / f"{scene}.tif"

    def samples(self, split: Split, unique_pixels: bool = False, means: Sequence[float] = ()) -> "Samples":
        """Return the tiles of one split as arrays, read when they are asked for.

        `means` of all bands are those of the run that the tiles are for, where it was trained on another tile set.
        With `once`, a pixel that several tiles hold is labelled in the first of them only, so that sums over the
        tiles count every pixel of the ground once.
        """
        tiles = self.split(split)
        masked = (
            earlier_overlaps([(tile.scene, tile.window) for tile in tiles])
            if unique_pixels
            else tuple(() for _ in tiles)
        )
        paths = {tile.scene: (self.image_path(tile.scene), self.mask_path(tile.scene)) for tile in tiles}
        filling = tuple((means or self.meta.mean)[self.meta.bands :])
        return Samples(tiles, masked, paths, self.meta.indices, filling, fractional=self.meta.fractional)


def _form(meta: TileSetMeta) -> str:
    """Return in words what labels of a pixel may say besides one class."""
    if meta.legend.overlapping:
        return "; a pixel may be of several or of none"
    return "; labels are shares of a pixel" if meta.fractional else ""


@dataclass
class Samples:
    """Tiles as pairs of arrays: the image float32 (B, H, W) in its own units, the label uint8 (H, W).

    The image's bands, then the indices. Pixels that are not valid are 0 in all of them and 255 in the label; where a
    valid pixel has no value of an index (0/0), it gets the index's mean, which scaling makes 0. Of masks that hold
    shares the label is float32 (outputs, H, W) with NaN for 255. Goes to worker processes by `spawn`: open files stay
    behind.
    """

    tiles: Sequence[Tile]
    masked_windows: Sequence[tuple[Window, ...]]
    paths: dict[str, tuple[Path, Path]]
    indices: tuple[Index, ...] = ()
    fill_values: tuple[float, ...] = ()
    """Of each index, what stands where it has no value."""
    training_area: TrainingArea | None = None
    """Where training tiles may be drawn."""
    fractional: bool = False
    """Whether the masks say how much of a pixel each class has."""
    _open: dict[str, Image] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Float32[ndarray, "b h w"], Label]:
        tile = self.tiles[index]
        image, label = self._read(tile.scene, tile.window)
        for window in self.masked_windows[index]:
            label[..., *window.slices] = missing_value(label)
        return image, label

    def random_crop(self, index: int, rng: np.random.Generator) -> tuple[Float32[ndarray, "b h w"], Label]:
        """Return a tile from a random place near its own, on training ground; from its own where there are no crops."""
        tile = self.tiles[index]
        window = (
            tile.window
            if self.training_area is None
            else self.training_area.random_window(tile.scene, tile.window, rng)
        )
        return self._read(tile.scene, window)

    def _read(self, scene: str, window: Window) -> tuple[Float32[ndarray, "b h w"], Label]:
        image_path, mask_path = self.paths[scene]
        pixels, valid = self._image(image_path).read(window)
        bands = read_mask(mask_path, window)
        label = decode_fractions(bands) if self.fractional else bands[0]
        label[..., ~valid] = missing_value(label)
        image = append_indices(pixels, valid, self.indices).astype(np.float32, copy=False)
        return fill_missing(image, self.fill_values), label

    def name(self, index: int, /) -> str:
        """Return where a tile lies, for messages: its scene, and the pixels of it."""
        tile = self.tiles[index]
        rows, cols = (tile.window.row, tile.window.stop_row), (tile.window.col, tile.window.stop_col)
        return f"{tile.scene}, rows {rows[0]} to {rows[1] - 1}, columns {cols[0]} to {cols[1] - 1}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def _image(self, path: Path) -> Image:
        # A handful of open files serves any number of scenes.
        if str(path) not in self._open:
            if len(self._open) >= 16:
                self._open.pop(next(iter(self._open))).close()
            self._open[str(path)] = Image.open(path)
        return self._open[str(path)]


def check_fit(card: ModelCard, tile_set: TileSet) -> None:
    """Raise InputError when a tile set has other classes, bands or pixels than a run was trained on."""
    meta = tile_set.meta
    seen = (_classes(meta.legend), meta.bands, meta.dtype, [index.formula for index in meta.indices])
    needed = (_classes(card.legend), card.bands, card.dtype, [index.formula for index in card.indices])
    for what, got, want in zip(("classes", "bands", "pixels", "indices"), seen, needed, strict=True):
        if got != want:
            raise InputError(f"{tile_set.folder} has the {what} {got}; the run was trained on {want}.")


def _classes(legend: Legend) -> tuple[str, ...]:
    return (*legend.names, "(overlapping)") if legend.overlapping else legend.names
