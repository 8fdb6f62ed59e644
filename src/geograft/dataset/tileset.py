"""The tile set: a folder with the tiles of the train, val and test splits and their labels.

    TILES/
      tiles.gpkg       one row per tile: scene, window, split, valid and class fractions, outline; opens in QGIS
      masks/NAME.tif   class index of each pixel of a scene, or the fraction of each class in 250ths; 255 for pixels
                       that are neither trained nor scored
      structure.npy    structure of scenes that are not georeferenced, from which `geograft audit` finds duplicates
      images/NAME.tif  only for images that cannot be read by window (PNG, JPEG, zipped, large strips, scenes of files)
      tileset.json     everything else: classes, bands, statistics, scenes, settings, fingerprint

Pixels stay in the images: a tile is a window, read on demand. `TrainingArea` gives random crops around training tiles
that contain no held-out pixel.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float64, Shaped, UInt8
from numpy import ndarray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as settings

from geograft.card import BandNames, DtypeName, Finite, PositiveFinite, check_band_statistics
from geograft.config import PrepareConfig, describe_fault
from geograft.errors import InputError
from geograft.files import StrPath
from geograft.geo.coverage import AreaWindow, TrainingArea, ignored_windows
from geograft.geo.grid import Window
from geograft.geo.rasters.nodata import ValidityRule
from geograft.geo.rasters.raster import DEFAULT_RULE, Image, ImageInfo, read_mask
from geograft.geo.scene import only_numbers
from geograft.geo.vectors.reader import read_frame, read_tiles
from geograft.indices import Index, append_indices, check_indices, fill_missing
from geograft.labels import Label, decode_fractions, missing_value
from geograft.legend import IGNORE, SPLIT_COLOURS, Legend
from geograft.text import html_table

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

INDEX = "tiles.gpkg"
META = "tileset.json"
RENAMED_KEYS = {"shares": "fractional"}
"""Old keys of tileset.json and their new names, for error messages; old keys are not accepted."""
MASKS = "masks"
IMAGES = "images"
ROUNDING_ERROR = 1e-6


@dataclass(frozen=True)
class Tile:
    """A window of one scene, and its split."""

    scene: str
    window: Window
    split: Split
    valid: float = 1.0
    """Fraction of its pixels that are labelled and valid."""
    class_fractions: tuple[float, ...] = ()
    """Fraction of each class among these pixels, by class index."""
    area: AreaWindow | None = None
    """The labelled area that a validation or test tile belongs to, in a tile set of such areas."""

    @property
    def part(self) -> Window:
        """The part of the window whose labels count for the tile: that in its area, or all of it."""
        return (self.window.intersection(self.area.window) if self.area else None) or self.window

    @property
    def record(self) -> tuple[Any, ...]:
        """The row of the index."""
        own = (self.scene, self.window, self.split, self.valid, self.class_fractions)
        return (*own, self.area.name) if self.area else own

    @property
    def content(self) -> dict[str, Any]:
        """The fields for digests; `area` only if there is one, so that digests of other tile sets stay valid."""
        return {name: value for name, value in asdict(self).items() if name != "area" or value}


FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Offset = Annotated[int, Field(ge=-(2**40), le=2**40)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Position:
    """The position of a scene among adjacent or overlapping scenes on one grid, such as the sheets of an orthophoto."""

    place: Annotated[str, Field(min_length=1)]
    """Name of the first of these scenes."""
    row: Offset
    col: Offset
    """Upper left pixel, on the grid of that scene."""


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Scene:
    """One image with its label mask on the same grid."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/\x00]+$")]
    image: FilePath
    """Path of the image: relative if it lies in the tile set, otherwise absolute."""
    digest: str
    """SHA-256 of the image file's bytes."""
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    resolution_m: PositiveFinite | None
    group: str
    """Scenes of one group, such as two dates of one area, are in the same split; the scene's own name by default."""
    position: Position | None = None
    """None if no other scene is adjacent."""


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TileSetMeta:
    """The content of tileset.json."""

    legend: Legend
    band_names: BandNames
    """Input channels of the network, in order: the images' bands, then the indices."""
    dtype: DtypeName
    """dtype of the images, as a NumPy name."""
    scale: PositiveFinite | None
    """Pixel value of full brightness (255 for uint8, 2048 for DSTL), if known."""
    mean: tuple[Finite, ...]
    """Per band and index over the valid pixels of the training part, in their own units."""
    std: tuple[PositiveFinite, ...]
    """Per band and index over the valid pixels of the training part, in their own units; 1 for a constant band."""
    scenes: Annotated[tuple[Scene, ...], Field(min_length=1)]
    settings: PrepareConfig
    source: dict[str, str]
    """Notes on the origin of labels and images, and on repairs."""
    fingerprint: str
    """SHA-256 over all inputs of training: images, masks, tiles, splits, classes."""
    masks: FilePath = MASKS
    """Folder of the masks: relative if it lies in the tile set, otherwise absolute."""
    indices: tuple[Index, ...] = ()
    """Spectral indices, the last of the bands, computed when pixels are read."""
    fractional: bool = False
    """Whether masks have class fractions instead of class indices; always true for overlapping classes."""
    areas: tuple[AreaWindow, ...] = ()
    """The labelled areas of the validation and test tiles; empty if the split is of scenes or blocks."""

    def __post_init__(self) -> None:
        check_indices(self.indices, self.bands)
        check_band_statistics(self.band_names, self.mean, self.std)
        double = next((name for name, count in Counter(s.name for s in self.scenes).items() if count > 1), None)
        if double is not None:
            raise ValueError(f"scenes has the name {double!r} twice")
        chosen = only_numbers(self.settings.bands)
        if chosen and (len(chosen) != self.bands or len(set(chosen)) < len(chosen)):
            raise ValueError(f"settings.bands is {list(chosen)}, but band_names has {self.bands} bands")
        if self.legend.overlapping and not self.fractional:
            raise ValueError("masks of class indices cannot hold overlapping classes")

    @property
    def bands(self) -> int:
        """Number of bands of the images, without indices."""
        return len(self.band_names) - len(self.indices)

    @property
    def validity(self) -> ValidityRule:
        """How invalid pixels of the images are recognised."""
        return ValidityRule(self.settings.nodata, self.settings.alpha)

    @property
    def mask_bands(self) -> int:
        """Number of bands of the masks."""
        return self.legend.outputs if self.fractional else 1

    @property
    def resolution_m(self) -> float | None:
        """Pixel size in metres, the median over georeferenced scenes; None if there are none."""
        sizes = sorted(scene.resolution_m for scene in self.scenes if scene.resolution_m is not None)
        return sizes[len(sizes) // 2] if sizes else None


@dataclass(frozen=True)
class TileSet:
    """An opened tile set."""

    folder: Path
    meta: TileSetMeta
    tiles: tuple[Tile, ...] = field(repr=False)
    members: tuple["TileSet", ...] = field(default=(), repr=False)
    """The tile sets that this one joins in memory (`geograft.dataset.joined`); empty for one that lies in a folder."""
    masks: Mapping[str, Path] = field(default_factory=dict, repr=False)
    """Paths of masks by scene, for scenes whose mask is not in the tile set's own folder."""
    weights: Mapping[str, float] = field(default_factory=dict, repr=False)
    """How often the training tiles of a scene are drawn, relative to those of others; 1 for scenes that it lacks."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the tile set, or of those that it joins."""
        return tuple(member.folder for member in self.members) or (self.folder,)

    @property
    def title(self) -> str:
        """Its folders as text."""
        return " and ".join(str(folder) for folder in self.folders)

    @classmethod
    def open(cls, folder: StrPath) -> "TileSet":
        """Read a tile set's index and settings; no image is opened.

        Raises:
            InputError: if `folder` is not a tile set, or a tile of the index does not fit tileset.json.
        """
        folder = Path(folder)
        try:
            meta = TypeAdapter(TileSetMeta).validate_json((folder / META).read_bytes())
        except OSError as error:
            raise InputError(f"{folder} is not a tile set (no {META}). Create one with `geograft prepare`.") from error
        except ValidationError as error:
            fault = describe_fault(error, RENAMED_KEYS)
            raise InputError(f"{folder / META}: {fault}. Prepare the tile set again.") from error
        return cls(folder, meta, _read_tiles(folder / INDEX, meta))

    def split(self, split: Split) -> tuple[Tile, ...]:
        """Return the tiles of one split, in the index's order."""
        return tuple(tile for tile in self.tiles if tile.split == split)

    def class_fractions(self, split: Split) -> Float64[ndarray, "tiles k"]:
        """Return the fraction of each class among all pixels of each tile of one split."""
        rows = [[tile.valid * fraction for fraction in tile.class_fractions] for tile in self.split(split)]
        return np.array(rows, np.float64).reshape(len(rows), len(self.meta.legend.names))

    def training_area(self) -> TrainingArea:
        """Return the area from which random training crops are taken."""
        train = [(tile.scene, tile.window) for tile in self.tiles if tile.split == "train"]
        held_out = [(tile.scene, tile.part) for tile in self.tiles if tile.split != "train"]
        shapes = {name: (scene.height, scene.width) for name, scene in self.scenes.items()}
        return TrainingArea.from_tiles(shapes, train, held_out)

    def lines(self) -> list[str]:
        """Return the lines that the command line prints: scenes, bands, pixel size, classes, tiles and notes."""
        meta = self.meta
        tiles = ", ".join(f"{len(self.split(split)):,} {split}" for split in SPLITS if self.split(split))
        resolution = f", {meta.resolution_m:.3g} m per pixel" if meta.resolution_m else ", not georeferenced"
        statistics = zip(meta.indices, meta.mean[meta.bands :], meta.std[meta.bands :], strict=True)
        return [
            f"scenes: {len(meta.scenes):,}, {meta.bands} {'band' if meta.bands == 1 else 'bands'} of "
            f"{meta.dtype}{resolution}",
            *(f"index {i.name}: {i.formula}, mean {m:.3g}, standard deviation {s:.3g}" for i, m, s in statistics),
            *([f"bands: {_selected_bands(meta)}"] if meta.settings.bands else []),
            f"classes: {', '.join(meta.legend.names)}{_label_remark(meta)}",
            f"tiles of {meta.settings.tile_px} px: {tiles}",
            *(f"{what}: {words}" for what, words in meta.source.items()),
            f"tile set: {self.folder}",
        ]

    def picture(self, scene: str, longest_px: int = 640) -> UInt8[ndarray, "h w 3"]:
        """Return a scene as an RGB picture with the area of its training, validation and test tiles."""
        from geograft.dataset.thumbnails import split_thumbnail  # noqa: PLC0415  (imports matplotlib)

        windows = {split: [tile.window for tile in self.split(split) if tile.scene == scene] for split in SPLITS}
        path, bands = self.image_path(scene), only_numbers(self.meta.settings.bands)
        with Image.open(path, bands=bands, validity=self.meta.validity) as image:
            return split_thumbnail(image, windows, longest_px)

    def plot(self, scene: str = "", ax: Any = None) -> Any:
        """Draw a scene, by default the first, with the area of each split; return the matplotlib Axes."""
        from geograft.figures.style import draw_picture  # noqa: PLC0415  (imports matplotlib)

        name = scene or self.meta.scenes[0].name
        return draw_picture(self.picture(name), name, SPLIT_COLOURS, ax)

    def to_geodataframe(self) -> Any:
        """Return the tiles as a GeoDataFrame: outline, scene, split, valid fraction and class fractions."""
        return read_frame(self.folder / INDEX)

    def __fspath__(self) -> str:
        return str(self.folder)

    def _repr_html_(self) -> str:
        return html_table("tile set", [line.split(": ", 1) for line in self.lines()])

    @cached_property
    def scenes(self) -> dict[str, Scene]:
        """The scenes by name."""
        return {scene.name: scene for scene in self.meta.scenes}

    def image_path(self, scene: str) -> Path:
        """Return the path of a scene's image."""
        return self.folder / self.scenes[scene].image

    def mask_path(self, scene: str) -> Path:
        """Return the path of a scene's label mask."""
        return self.masks.get(scene) or self.folder / self.meta.masks / f"{scene}.tif"

    def check_image(self, scene: str, info: ImageInfo) -> None:
        """Raise InputError if a scene's image no longer has the bands, size and dtype that tileset.json says."""
        own, info = self.scenes[scene], info.select(only_numbers(self.meta.settings.bands))
        _check_shape(info, (self.meta.bands, own.height, own.width))
        if info.dtype != self.meta.dtype:
            raise InputError(
                f"{info.path} has dtype {info.dtype}, but {META} says {self.meta.dtype}. Prepare the tile set again."
            )

    def check_masks(self) -> None:
        """Raise InputError if a mask that exists has other bands, size or dtype than tileset.json says."""
        for name, scene in self.scenes.items():
            path = self.mask_path(name)
            if path.exists():
                _check_mask(path, (self.meta.mask_bands, scene.height, scene.width))

    def samples(self, split: Split, unique_pixels: bool = False, means: Sequence[float] = ()) -> "Samples":
        """Return the tiles of one split as arrays, read on demand. A tile of a labelled area has no labels outside it.

        `means` are those of all bands in the run's card, if the run was trained on another tile set. With
        `unique_pixels`, a pixel in several tiles is labelled in the first of them only, and so is counted once.
        """
        tiles = self.split(split)
        masked_windows = ignored_windows([(tile.scene, tile.window, tile.part) for tile in tiles], unique_pixels)
        paths = {tile.scene: (self.image_path(tile.scene), self.mask_path(tile.scene)) for tile in tiles}
        fill_values = tuple((means or self.meta.mean)[self.meta.bands :])
        return Samples(
            tiles,
            masked_windows,
            paths,
            self.meta.indices,
            fill_values,
            fractional=self.meta.fractional,
            bands=only_numbers(self.meta.settings.bands),
            validity=self.meta.validity,
            shapes={
                str(path): (bands, self.scenes[name].height, self.scenes[name].width)
                for name, pair in paths.items()
                for path, bands in zip(pair, (self.meta.bands, self.meta.mask_bands), strict=True)
            },
            classes=len(self.meta.legend.names),
        )


def _read_tiles(path: Path, meta: TileSetMeta) -> tuple[Tile, ...]:
    """Return the tiles of an index, or raise InputError for the first that does not fit tileset.json."""
    scenes = {scene.name: scene for scene in meta.scenes}
    areas = {(area.scene, area.name): area for area in meta.areas}
    seen: set[tuple[str, Window, AreaWindow | None]] = set()
    tiles = []
    for number, (scene, window, split, valid, fractions, name) in enumerate(read_tiles(path), start=1):
        area = areas.get((scene, name))
        fault = "" if split in SPLITS else f"its split is {split!r}, not {', '.join(SPLITS)}"
        if (scene, window, area) in seen:
            fault = fault or f"its row {window.row} and col {window.col} are those of an earlier tile"
        if name and (area is None or not window.intersection(area.window)):
            fault = fault or f"its area {name!r} is not one of {META} that it overlaps"
        if not fault:
            tiles.append(Tile(scene, window, split, valid, fractions, area))
            fault = _tile_fault(tiles[-1], scenes, meta)
        if fault:
            raise InputError(f"{path}: tile {number}: {fault}. Prepare the tile set again.")
        seen.add((scene, window, area))
    return tuple(tiles)


def _tile_fault(tile: Tile, scenes: Mapping[str, Scene], meta: TileSetMeta) -> str:
    """Return what is wrong with a tile, naming the field; empty if nothing is."""
    if tile.scene not in scenes:
        return f"its scene {tile.scene!r} is not in {META}"
    scene, window, size = scenes[tile.scene], tile.window, meta.settings.tile_px
    for name, start, side, length in (
        ("row", window.row, window.height, scene.height),
        ("col", window.col, window.width, scene.width),
    ):
        side_name = "height" if name == "row" else "width"
        if side != size:
            return f"its {side_name} is {side}, but tile_px in {META} is {size}"
        if not 0 <= start <= length - side:
            return f"its {name} is {start}, outside {scene.name}, whose {side_name} in {META} is {length}"
    if not 0 <= tile.valid <= 1:
        return f"its valid is {tile.valid}, not a fraction from 0 to 1"
    return _class_fault(tile, meta.legend)


def _class_fault(tile: Tile, legend: Legend) -> str:
    if len(tile.class_fractions) != len(legend.names):
        return f"it has {len(tile.class_fractions)} fields fraction_*, but {META} has {len(legend.names)} classes"
    for name, fraction in zip(legend.names, tile.class_fractions, strict=True):
        if not 0 <= fraction <= 1 + ROUNDING_ERROR:
            return f"its fraction of {name} is {fraction}, not from 0 to 1"
    return ""


def _selected_bands(meta: TileSetMeta) -> str:
    """Return the numbers and names of the bands in use."""
    pairs = zip(only_numbers(meta.settings.bands), meta.band_names, strict=False)
    return ", ".join(str(number) if name == f"band {number}" else f"{number} {name}" for number, name in pairs)


def _label_remark(meta: TileSetMeta) -> str:
    """Return a remark on overlapping or fractional labels; empty if each pixel has one class."""
    if meta.legend.overlapping:
        return "; overlapping: a pixel may belong to several or none"
    return "; fractional labels" if meta.fractional else ""


@dataclass
class Samples:
    """Tiles as pairs of arrays: the image float32 (B, H, W) in its own units, the label uint8 (H, W).

    Channels are the image's bands in use, then the indices. Invalid pixels are 0 in all channels and 255 in the label.
    A valid pixel without a finite index value (0/0) gets the mean of the index. Fractional labels are float32
    (outputs, H, W) with NaN instead of 255. Can be pickled for worker processes, without the open files.
    """

    tiles: Sequence[Tile]
    masked_windows: Sequence[tuple[Window, ...]]
    paths: dict[str, tuple[Path, Path]]
    indices: tuple[Index, ...] = ()
    fill_values: tuple[float, ...] = ()
    """Value of each index for pixels where it is not finite."""
    training_area: TrainingArea | None = None
    """Area from which random crops are taken; None for no crops."""
    fractional: bool = False
    """Whether the masks have class fractions instead of class indices."""
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)
    """Expected bands, height and width of images and masks by path, from tileset.json; others are an error."""
    classes: int = IGNORE
    """Number of classes; a higher index in a mask is an error."""
    bands: tuple[int, ...] = ()
    """Band numbers of the images, counted from 1; empty: all."""
    validity: ValidityRule = DEFAULT_RULE
    """How invalid pixels are recognised."""
    stored: bool = False
    """Whether images of at most 16 bits without indices keep their dtype, instead of float32."""
    _open: dict[str, Image] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Shaped[ndarray, "b h w"], Label]:
        tile = self.tiles[index]
        image, label = self._read(tile.scene, tile.window)
        for window in self.masked_windows[index]:
            label[..., *window.slices] = missing_value(label)
        return image, label

    def random_crop(self, index: int, rng: np.random.Generator) -> tuple[Shaped[ndarray, "b h w"], Label]:
        """Return a random crop near a tile, inside the training area; the tile itself without a training area."""
        tile = self.tiles[index]
        window = (
            tile.window
            if self.training_area is None
            else self.training_area.random_window(tile.scene, tile.window, rng)
        )
        return self._read(tile.scene, window)

    def _read(self, scene: str, window: Window) -> tuple[Shaped[ndarray, "b h w"], Label]:
        image_path, mask_path = self.paths[scene]
        pixels, valid = self._image(image_path, mask_path).read(window)
        bands = read_mask(mask_path, window)
        if not self.fractional and ((bands >= self.classes) & (bands != IGNORE)).any():
            raise InputError(f"{mask_path} has class indices above {self.classes - 1}. Prepare the tile set again.")
        label = decode_fractions(bands) if self.fractional else bands[0]
        label[..., ~valid] = missing_value(label)
        image = append_indices(pixels, valid, self.indices)
        dtype = image.dtype if self.stored and image.itemsize <= 2 else np.float32
        return fill_missing(image.astype(dtype, copy=False), self.fill_values), label

    def name(self, index: int, /) -> str:
        """Return the position of a tile for messages: its scene, rows and columns."""
        tile = self.tiles[index]
        rows, cols = (tile.window.row, tile.window.stop_row), (tile.window.col, tile.window.stop_col)
        return f"{tile.scene}, rows {rows[0]} to {rows[1] - 1}, columns {cols[0]} to {cols[1] - 1}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def _image(self, path: Path, mask: Path) -> Image:
        # Keep at most 16 files open, whatever the number of scenes.
        if str(path) not in self._open:
            if len(self._open) >= 16:
                self._open.pop(next(iter(self._open))).close()
            image = Image.open(path, bands=self.bands, validity=self.validity)
            _check_shape(image.info, self.shapes.get(str(path)))
            _check_mask(mask, self.shapes.get(str(mask)))
            self._open[str(path)] = image
        return self._open[str(path)]


def _check_shape(info: ImageInfo, expected: tuple[int, int, int] | None) -> None:
    found = (info.bands, info.grid.height, info.grid.width)
    for name, number, needed in zip(("bands", "height", "width"), found, expected or found, strict=True):
        if number != needed:
            raise InputError(f"{info.path} has {name} {number}, but {META} says {needed}. Prepare the tile set again.")


def _check_mask(path: Path, expected: tuple[int, int, int] | None) -> None:
    with Image.open(path) as mask:
        _check_shape(mask.info, expected)
        if mask.info.dtype != "uint8":
            raise InputError(f"{path} has dtype {mask.info.dtype}, but masks have uint8. Prepare the tile set again.")
