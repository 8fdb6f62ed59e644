"""Reading a scene of several band files as one image, on one grid and in one unit.

The grid is that of the finest band in use, or one of the pixel size that is asked for. Bands of other pixel sizes are
brought to it by `geograft.geo.rasters.resample`, quality bands by their nearest pixel; a pixel depends on its row and
column only, so that all windows agree to the bit.

Where metadata have a scale, pixels are surface reflectance x 10,000 (temperature: kelvin x 100) as uint16, at least 1,
whatever the scale and the offset of the files: products of all baselines and catalogues are in one unit, which is that
of Sentinel-2 before its baseline 04.00. 0 is nodata. Other bands keep their values and their dtype.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import check_input_file, json_digest
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.nodata import ValidityRule
from geograft.geo.rasters.opening import changed_error, raster_state
from geograft.geo.rasters.raster import DEFAULT_RULE, Image, ImageInfo
from geograft.geo.rasters.resample import MAX_RATIO, Resampler, make_resampler, round_ratio
from geograft.geo.scene import (
    ALL_BANDS,
    BandChoice,
    BandFile,
    MaskRule,
    RasterInput,
    Scene,
    SceneFiles,
    files_of_raster,
)
from geograft.geo.scene_layouts import find_scene
from geograft.locations import Place
from geograft.memory import check_band_count

SCENE_DTYPE = "uint16"
"""The dtype of bands in units of reflectance or temperature."""
ACQUIRED_TAG = "ACQUISITION_DATETIME"
"""When a scene was acquired, in ISO 8601."""
CORNER_TOLERANCE_PX = 0.01
"""Largest distance between the upper left corners of bands, in pixels of the scene."""


@dataclass(frozen=True)
class _Layer:
    """Bands of one file, and how they get onto the grid of the scene."""

    image: Image
    bands: tuple[BandFile, ...]
    positions: tuple[int, ...]
    """Where they are among the bands of the scene."""
    resampler: Resampler | None

    @property
    def dtype(self) -> str:
        """The dtype of the pixels that `read` returns."""
        return SCENE_DTYPE if self.bands[0].scale is not None else self.image.info.dtype

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window of the scene, and which are valid."""
        return self.resampler.read(self._read, window) if self.resampler else self._read(window)

    def is_empty(self, window: Window) -> bool:
        """Return whether a window of the scene is known to have no valid pixel."""
        return self.image.is_empty(self.resampler.source_window(window) if self.resampler else window)

    def _read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        stored, valid = self.image.read(window, [band.number for band in self.bands])
        pixels = stored if self.bands[0].scale is None else np.empty(stored.shape, SCENE_DTYPE)
        for i, band in enumerate(self.bands):
            if band.nodata is not None:
                valid &= stored[i] != band.nodata
            if band.scale is not None:
                pixels[i] = scale_pixels(stored[i], band.scale, band.offset)
        pixels[:, ~valid] = 0
        return pixels, valid


def scale_pixels(pixels: Shaped[ndarray, "h w"], scale: float, offset: float) -> Shaped[ndarray, "h w"]:
    """Return pixel * scale + offset, rounded and clipped to 1 ... 65535.

    >>> scale_pixels(np.array([[1, 1000, 1001, 5000]]), 1, -1000).tolist()
    [[1, 1, 1, 4000]]
    """
    limits = np.iinfo(SCENE_DTYPE)
    scaled: ndarray[Any, Any] = np.rint(pixels.astype(np.float64) * scale + offset)
    inside: ndarray[Any, Any] = np.nan_to_num(scaled, nan=1.0).clip(1, limits.max).astype(SCENE_DTYPE)
    return inside


@dataclass(frozen=True)
class _Mask:
    """A quality band and the values that are not used."""

    image: Image
    band: BandFile
    rule: MaskRule
    rows: float
    """Rows of the quality band per row of the scene."""
    cols: float

    def usable(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return the pixels of a window of the scene whose nearest quality pixel is known and not masked."""
        rows = _nearest(window.row, window.height, self.rows)
        cols = _nearest(window.col, window.width, self.cols)
        needed = Window(int(rows[0]), int(cols[0]), int(rows[-1] - rows[0]) + 1, int(cols[-1] - cols[0]) + 1)
        values, usable = self.image.read(needed, [self.band.number])
        if self.band.nodata is not None:
            usable &= values[0] != self.band.nodata
        masked = np.isin(values[0], self.rule.values)
        if self.rule.bits:
            masked |= (values[0].astype(np.int64) & sum(1 << bit for bit in self.rule.bits)) != 0
        picked: ndarray[Any, Any] = (usable & ~masked)[np.ix_(rows - needed.row, cols - needed.col)]
        return picked


def _nearest(start: int, count: int, step: float) -> Int64[ndarray, " n"]:
    """Return the pixel, each 1 / `step` pixels of the scene large, in which the centre of each of `count` ones is."""
    positions: ndarray[Any, Any] = np.floor((np.arange(start, start + count) + 0.5) * step).astype(np.int64)
    return positions


class SceneImage:
    """An open scene. Not thread-safe."""

    def __init__(self, scene: Scene, validity: ValidityRule = DEFAULT_RULE, threads: int = 1) -> None:
        """Open the files of a scene. GeoTIFFs are decoded by as many `threads`.

        Raises:
            InputError: when one is missing or corrupt; when bands differ in CRS, extent or dtype.
        """
        self.scene, self._validity = scene, validity
        check_band_count(str(scene.place), len(scene.bands))
        with ExitStack() as opened:
            places = dict.fromkeys(band.place for band in (*scene.bands, *(band for band, _ in scene.masks)))
            self._images = {
                place: opened.enter_context(Image.open(place, validity=validity, threads=threads)) for place in places
            }
            self.info = self._describe()
            self._layers = self._make_layers()
            self._masks = [
                _Mask(self._images[band.place], band, rule, *self._ratios(band.place)) for band, rule in scene.masks
            ]
            self._opened = opened.pop_all()

    def read(
        self, window: Window, bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window`, 0 where invalid, and the mask of valid pixels. It may exceed the scene.

        A pixel is valid where all bands are (with the rule "all": any band), and no mask leaves it out. `bands` are
        counted from 1; default: all.

        Raises:
            InputError: when the pixels cannot be decoded; the message names the file and the window.
        """
        pixels = np.zeros((self.info.bands, window.height, window.width), self.info.dtype)
        known = []
        for layer in self._layers:
            pixels[list(layer.positions)], valid = layer.read(window)
            known.append(valid)
        valid = np.logical_or.reduce(known) if self._validity.nodata == "all" else np.logical_and.reduce(known)
        valid &= self._inside(window)
        for mask in self._masks:
            if valid.any():
                valid &= mask.usable(window)
        pixels[:, ~valid] = 0
        return (pixels[[band - 1 for band in bands]] if bands else pixels), valid

    def is_empty(self, window: Window) -> bool:
        """Return whether `window` is known to have no valid pixel; False when that would require decoding pixels."""
        if window.intersection(self.info.grid.window) is None:
            return True
        enough = all if self._validity.nodata == "all" else any
        return enough(layer.is_empty(window) for layer in self._layers)

    def close(self) -> None:
        """Close the files, which must not be read afterwards."""
        self._opened.close()

    def __enter__(self) -> "SceneImage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _describe(self) -> ImageInfo:
        scene = self.scene
        infos = {band.place: self._images[band.place].info for band in scene.bands}
        for band in (*scene.bands, *(band for band, _ in scene.masks)):
            self._images[band.place].info.select([band.number])  # raises InputError
            if self._images[band.place].info.palette and band.scale is not None:
                raise InputError(f"{band.place} has a colour table; reflectances are needed. Get it again.")
        finest = min(infos.values(), key=lambda info: _pixel_area(info.grid))
        grid = finest.grid
        if scene.resolution_m and (scaling := make_resampler(grid, scene.resolution_m, str(finest.path))):
            grid = scaling.grid
        dtypes = {SCENE_DTYPE if band.scale is not None else infos[band.place].dtype: band for band in scene.bands}
        if len(dtypes) > 1:
            shown = ", ".join(f"{dtype} ({band.names[0]})" for dtype, band in dtypes.items())
            raise InputError(
                f"the bands of {scene.place} have several dtypes: {shown}. Choose bands of one, or convert some."
            )
        tags = {ACQUIRED_TAG: scene.acquired} if scene.acquired else {}
        etags = [image.info.etag for image in self._images.values()]
        return ImageInfo(
            path=scene.place,
            grid=grid,
            bands=len(scene.bands),
            dtype=next(iter(dtypes)),
            band_names=scene.band_names,
            windowed=False,
            palette=finest.palette,
            tags=tags,
            validity=self._validity,
            etag=json_digest(etags)[:16] if any(etags) else "",
            scene=scene,
        )

    def _make_layers(self) -> list[_Layer]:
        """Return the bands by file, and by whether they have a scale."""
        groups: dict[tuple[Place, bool], list[int]] = {}
        for position, band in enumerate(self.scene.bands):
            groups.setdefault((band.place, band.scale is None), []).append(position)
        layers = []
        for (place, _), positions in groups.items():
            image = self._images[place]
            rows, cols = self._ratios(place)
            same = rows == cols == 1
            bands = tuple(self.scene.bands[position] for position in positions)
            layers.append(
                _Layer(image, bands, tuple(positions), None if same else Resampler(image.info.grid, rows, cols))
            )
        return layers

    def _ratios(self, place: Place) -> tuple[float, float]:
        """Return the rows and columns of a file per row and column of the scene.

        Raises:
            InputError: when its CRS, corner, orientation or extent is another.
        """
        own, grid = self._images[place].info.grid, self.info.grid
        fault = "" if own.crs == grid.crs else "its CRS"
        change = ~grid.transform @ own.transform
        wide, high = change.a, change.e
        if not fault and not (1 / MAX_RATIO <= wide <= MAX_RATIO and 1 / MAX_RATIO <= high <= MAX_RATIO):
            fault = "its pixel size or orientation"
        tolerance = CORNER_TOLERANCE_PX
        turned = max(abs(change.b) * own.height, abs(change.d) * own.width)
        if not fault and max(turned, abs(change.c), abs(change.f)) > tolerance:
            fault = "its upper left corner or orientation"
        if not fault and (
            abs(own.height * high - grid.height) > max(1, high) or abs(own.width * wide - grid.width) > max(1, wide)
        ):
            fault = "its extent"
        if fault:
            finest = min(self._images.values(), key=lambda image: _pixel_area(image.info.grid)).info.path
            raise InputError(
                f"{place} does not match {finest}, another file of the scene: {fault} differs. The bands of a scene "
                "need one CRS, one upper left corner and one extent."
            )
        return round_ratio(1 / high), round_ratio(1 / wide)

    def _inside(self, window: Window) -> Bool[ndarray, "h w"]:
        inside = np.zeros((window.height, window.width), bool)
        part = window.intersection(self.info.grid.window)
        if part is not None:
            inside[part.relative_to(window).slices] = True
        return inside


def _pixel_area(grid: Grid) -> float:
    return abs(grid.transform.determinant)


def read_info(
    place: RasterInput,
    choice: BandChoice = ALL_BANDS,
    validity: ValidityRule = DEFAULT_RULE,
    defaults: BandChoice = ALL_BANDS,
) -> ImageInfo:
    """Return the metadata of a raster, or of a scene with the bands of `choice`.

    Of an ordinary raster all bands are described, unless the choice has masks or a pixel size: then it becomes a scene
    of its own bands. `defaults` has the bands and the pixel size of a scene of several files where the choice has none.

    Raises:
        InputError: when it cannot be opened, or lacks a band.
    """
    files = place if isinstance(place, SceneFiles) else find_scene(place)
    if files is None:
        assert not isinstance(place, SceneFiles)
        with Image.open(place, validity=validity) as image:
            info = image.info
        if not choice.changes_pixels:
            return info
        return scene_of_raster(info, choice)
    bands, resolution_m = choice.bands or defaults.bands, choice.resolution_m or defaults.resolution_m
    return describe_scene(files.select(replace(choice, bands=bands, resolution_m=resolution_m)), validity)


def scene_of_raster(info: ImageInfo, choice: BandChoice) -> ImageInfo:
    """Return the metadata of an ordinary raster, read as a scene with the bands of `choice`.

    Raises:
        InputError: when it lacks a band.
    """
    return describe_scene(files_of_raster(info.path, info.band_names).select(choice), info.validity)


def describe_scene(scene: Scene, validity: ValidityRule) -> ImageInfo:
    """Return the metadata of a scene.

    Raises:
        InputError: as `SceneImage`.
    """
    with SceneImage(scene, validity) as image:
        return image.info


def open_image(info: ImageInfo, threads: int = 1) -> Image | SceneImage:
    """Open what `info` describes: a raster with all of its bands, or a scene with those of its choice.

    Raises:
        InputError: when it cannot be opened, or is remote and another file than before.
    """
    image: Image | SceneImage
    if info.scene:
        image = SceneImage(info.scene, info.validity, threads)
    else:
        image = Image.open(info.path, validity=info.validity, threads=threads)
    if image.info.etag != info.etag:
        image.close()
        raise changed_error(info.path, info.etag, image.info.etag)
    return image


def image_state(info: ImageInfo) -> dict[str, Any]:
    """Return the state of a raster as `raster_state`; of a scene, of all files in use, and how they are read.

    Raises:
        InputError: when a file is missing.
    """
    if not info.scene:
        return raster_state(info.path)
    scene = info.scene
    used = [*scene.bands, *(band for band, _ in scene.masks)]
    files = {str(band.container or band.place): _file_state(band) for band in used}
    reading = [(str(band.place), band.number, band.scale, band.offset, band.nodata) for band in used]
    rules = [(rule.values, rule.bits) for _, rule in scene.masks]
    digest = json_digest([list(files.values()), reading, rules, scene.resolution_m])[:16]
    path = scene.place.absolute() if isinstance(scene.place, Path) else scene.place
    return {"path": str(path), "files": len(files), "state": digest}


def _file_state(band: BandFile) -> Any:
    if band.container is None:
        return raster_state(band.place)
    status = check_input_file(band.container)
    return [band.container.name, status.st_size, status.st_mtime_ns]
