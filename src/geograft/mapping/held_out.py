"""Predict the tiles of a tile set exactly as `predict` maps their scenes: the same windows, blended in the same way.

Only windows that touch one of the tiles are predicted. A tile is assembled from the strips that complete its pixels.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.tileset import Tile, TileSet
from geograft.geo.grid import Window, WindowIndex
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.raster import Image
from geograft.geo.scene import only_numbers
from geograft.inference.predictor import EnsemblePredictor, PixelBatch
from geograft.legend import IGNORE, Legend
from geograft.mapping.batches import RasterSource
from geograft.mapping.blend import Strip, blend
from geograft.mapping.classmap import class_indices, class_probabilities
from geograft.mapping.models import RunModel
from geograft.mapping.plan import decoding_threads, plan_blend, plan_windows, sample_windows
from geograft.progress import progress_bar

Extract = Callable[[Strip], Sequence[Shaped[ndarray, "bands h w"]]]
"""Function from a strip to arrays over its data that are wanted of it."""


@dataclass(frozen=True)
class PartOfInterest:
    """A raster of which only some windows are wanted (a `RasterSource`)."""

    raster: Mosaic | RasterSource
    windows: tuple[Window, ...]

    @cached_property
    def _index(self) -> WindowIndex:
        return WindowIndex(self.windows)

    def is_empty(self, window: Window) -> bool:
        """Whether a window is known, without reading it, to have no valid pixel of interest."""
        return not self._index.query(window) or self.raster.is_empty(window)

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the bands and spectral indices of a window, and a mask of the valid pixels."""
        return self.raster.read(window)

    def mask_of_interest(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return a mask of the pixels of a window that are wanted."""
        mask = np.zeros((window.height, window.width), bool)
        for position in self._index.query(window):
            shared = self.windows[position].intersection(window)
            if shared is not None:
                mask[shared.relative_to(window).slices] = True
        inside = None if isinstance(self.raster, Mosaic) else self.raster.mask_of_interest(window)
        return mask if inside is None else mask & inside


@dataclass(frozen=True)
class TilePrediction:
    """The prediction of one tile."""

    index: int
    """Index among the tiles that were asked for."""
    probabilities: Float32[ndarray, "k h w"]
    """Probability of each class; 0 for pixels that are not valid."""
    classes: UInt8[ndarray, "*k h w"]
    """Class index of each pixel; for overlapping classes 1 inside and 0 outside each class. 255 where not valid."""


def predict_tiles(model: RunModel, tile_set: TileSet, tiles: Sequence[Tile], title: str) -> Iterator[TilePrediction]:
    """Yield the predictions of tiles, scene by scene, each tile as soon as its last pixel is complete.

    Without a title no progress is shown.

    Memory: that of `blend`, and the tiles that are not complete: those of a row, and along the border of a panel.

    Raises:
        InputError: if a run or an image cannot be used.
        SettingError: if the device or the backend is not available.
    """
    legend, thresholds = model.card.legend, model.card.output_thresholds
    total = sum(tile.window.height * tile.window.width for tile in tiles) / 1e6
    with progress_bar(title, total, "Mpx of tiles", enabled=bool(title)) as bar:
        for scene, indices in _by_scene(tiles).items():
            mosaic = _scene_mosaic(tile_set, scene, model)
            windows = tuple(tiles[index].window for index in indices)
            strips = blend_part(model, PartOfInterest(mosaic, windows), mosaic)
            with closing(mosaic), closing(strips):
                for position, arrays in assemble(strips, windows, lambda s: _classes(s, legend, thresholds)):
                    bar.advance(windows[position].height * windows[position].width / 1e6)
                    probabilities, classes, (mapped,) = arrays
                    probabilities[:, ~mapped], classes[:, ~mapped] = 0, IGNORE
                    classes = classes if legend.overlapping else classes[0]
                    yield TilePrediction(indices[position], probabilities, classes)


def load_predictors(
    model: RunModel, tile_set: TileSet, tiles: Sequence[Tile]
) -> tuple[EnsemblePredictor, PixelBatch | None]:
    """Load the predictors for the windows of all scenes with tiles, and return the one that is used first.

    Also returns two windows that it predicts; None if no pixel of the tiles is valid.

    Raises:
        InputError: if a run or an image cannot be used.
        SettingError: if the device or the backend is not available.
    """
    found: EnsemblePredictor | None = None
    windows: PixelBatch | None = None
    for scene, indices in _by_scene(tiles).items():
        own = tile_set.scenes[scene]
        size = plan_blend((own.height, own.width), 1, model.card, model.settings, model.layers).lanes.tiles.tile_px
        if size in model.loaded and (windows is not None or model.loaded[size] is not found):
            continue
        with closing(_scene_mosaic(tile_set, scene, model)) as mosaic:
            part = PartOfInterest(mosaic, tuple(tiles[index].window for index in indices))
            plan = plan_windows(mosaic, model.card, model.settings, model.layers)
            sample = partial(sample_windows, plan, part)
            predictor = model.predictor(size, plan.batch_size, sample)
            found = found or predictor
            windows = sample() if windows is None and predictor is found else windows
    assert found is not None, "there are tiles"
    return found, windows


def blend_part(model: RunModel, source: RasterSource, mosaic: Mosaic) -> Generator[Strip, None, None]:
    """Return the strips of a raster, blended as in a map; see `geograft.mapping.blend.blend`."""
    plan = plan_windows(mosaic, model.card, model.settings, model.layers)
    sample = partial(sample_windows, plan, source)
    return blend(plan, source, model.predictor(plan.lanes.tiles.tile_px, plan.batch_size, sample))


@dataclass
class _Pending:
    """A window that is not complete."""

    missing_px: int
    arrays: list[ndarray] = field(default_factory=list)


def assemble(
    strips: Iterable[Strip], windows: Sequence[Window], extract: Extract
) -> Iterator[tuple[int, list[Shaped[ndarray, "bands h w"]]]]:
    """Yield the position and the arrays of each window when strips have completed it; 0 outside of their data.

    Windows without data are yielded, too.
    """
    index = WindowIndex(windows)
    pending: dict[int, _Pending] = {}
    for strip in strips:
        touched = index.query(strip.window) if strip.window.height and strip.window.width else []
        values = extract(strip) if touched else []
        for position in touched:
            window = windows[position]
            own = pending.setdefault(position, _Pending(window.height * window.width))
            own.arrays = own.arrays or [
                np.zeros((len(array), window.height, window.width), array.dtype) for array in values
            ]
            _paste(own.arrays, window, values, strip.data)
            covered = window.intersection(strip.window)
            own.missing_px -= covered.height * covered.width if covered else 0
            if not own.missing_px:
                yield position, pending.pop(position).arrays


def _paste(targets: Sequence[ndarray], window: Window, values: Sequence[ndarray], data: Window) -> None:
    shared = window.intersection(data)
    if shared is None:
        return
    there, here = shared.relative_to(window).slices, shared.relative_to(data).slices
    for target, value in zip(targets, values, strict=True):
        target[:, *there] = value[:, *here]


def _classes(strip: Strip, legend: Legend, thresholds: Sequence[float]) -> list[ndarray]:
    return [class_probabilities(strip, legend), class_indices(strip.sums, legend, thresholds), strip.mapped[None]]


def _by_scene(tiles: Sequence[Tile]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, tile in enumerate(tiles):
        found.setdefault(tile.scene, []).append(index)
    return found


def _scene_mosaic(tile_set: TileSet, scene: str, model: RunModel) -> Mosaic:
    with Image.open(tile_set.image_path(scene), validity=tile_set.meta.validity) as image:
        info = image.info
    # A tile beyond the border of another image would never be complete.
    tile_set.check_image(scene, info)
    threads = decoding_threads(model.settings)
    return Mosaic((info,), only_numbers(tile_set.meta.settings.bands), None, model.card.indices, threads)


def predict_classes(model: RunModel, tile_set: TileSet, tiles: Sequence[Tile]) -> list[UInt8[ndarray, "*k h w"]]:
    """Return the classes of tiles, in their order; see `TilePrediction`."""
    found = {one.index: one.classes for one in predict_tiles(model, tile_set, tiles, f"predicting {tile_set.title}")}
    return [found[index] for index in range(len(tiles))]


def evenly_spaced(count: int, max_count: int) -> list[int]:
    """Return at most `max_count` indices spread evenly over range(`count`), with both ends.

    >>> evenly_spaced(9, 3)
    [0, 4, 8]
    """
    return [round(place) for place in np.linspace(0, count - 1, min(count, max_count))]
