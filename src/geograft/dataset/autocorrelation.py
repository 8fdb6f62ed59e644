"""How far ground resembles itself: the empirical variogram of images and labels, and its range.

The variogram at a distance is half the mean squared difference of two pixels that far apart (Matheron 1963,
"Principles of geostatistics", Economic Geology 58; the estimator as in Cressie 1993, "Statistics for Spatial
Data", eq. 2.4.2). It grows with distance until, at the range, two pixels know nothing of each other any more. Of
class indicators, summed over the classes, it is the chance that two pixels differ in class.

How far the images and the labels of a tile set resemble themselves, from a bounded sample of windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Float32, Float64, Shaped, UInt8
from numpy import ndarray
from scipy.optimize import least_squares

from geograft.dataset.tileset import Tile, TileSet, TileSetMeta
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image, read_mask
from geograft.labels import class_shares, decoded
from geograft.progress import track

Model = Literal["exponential", "spherical", "gaussian"]

BINS_AN_OCTAVE = 4
LEAST_PAIRS = 100
"""Lags with fewer pairs of pixels are left out."""
LEAST_LAGS = 6
"""Fewer lags tell no range."""
RESOLVED = 0.95
"""A range beyond this share of the longest lag is not reached within the windows."""


@dataclass(frozen=True)
class Lags:
    """Sums over pairs of pixels, by the class of their distance. Windows add up."""

    edges: Float64[ndarray, " e"]
    """Bounds of the distance classes, in pixels."""
    pairs: Float64[ndarray, " b"]
    halves: Float64[ndarray, " b"]
    """Half the squared differences, summed."""
    distances: Float64[ndarray, " b"]
    """The distances, summed."""

    def __add__(self, other: "Lags") -> "Lags":
        return Lags(self.edges, self.pairs + other.pairs, self.halves + other.halves, self.distances + other.distances)


@dataclass(frozen=True)
class Variogram:
    """The variogram at some lags, and the model that fits it best."""

    lag: Float64[ndarray, " l"]
    """Mean distance of the pairs of each class, ascending."""
    gamma: Float64[ndarray, " l"]
    """Half the mean squared difference at that distance."""
    pairs: Float64[ndarray, " l"]
    model: Model | None
    """None where there are too few lags, or nothing varies."""
    nugget: float = 0.0
    """What the model starts with at distance 0: noise, and structure smaller than a pixel."""
    sill: float = 0.0
    """What the model tends to: the variance between pixels that know nothing of each other."""
    range: float = 0.0
    """Where the model reaches the sill; of the exponential and the Gaussian model, which never do,
    95 % of the way from the nugget."""

    @property
    def resolved(self) -> bool:
        """Whether the range lies within the lags; else pixels still resemble each other at the longest."""
        return self.model is not None and self.range <= RESOLVED * float(self.lag[-1])

    def at(self, lag: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
        """Return the model at other distances."""
        assert self.model is not None
        grown: Float64[ndarray, " n"] = self.nugget + (self.sill - self.nugget) * GROWTH[self.model](lag / self.range)
        return grown

    def scaled(self, factor: float) -> "Variogram":
        """Return the same with distances in another unit: metres, with `factor` metres a pixel."""
        return Variogram(
            self.lag * factor, self.gamma, self.pairs, self.model, self.nugget, self.sill, self.range * factor
        )


def lag_edges(longest: float) -> Float64[ndarray, " _"]:
    """Return the bounds of distance classes up to `longest` pixels: four an octave, from one pixel on.

    >>> lag_edges(2.1).round(2).tolist()
    [0.92, 1.09, 1.3, 1.54, 1.83, 2.18]
    """
    steps = int(np.ceil(BINS_AN_OCTAVE * np.log2(max(longest, 1.0)) + 0.5))
    return np.asarray(2 ** ((np.arange(steps + 1) - 0.5) / BINS_AN_OCTAVE))


def window_lags(
    fields: Iterable[Float[ndarray, "h w"]], known: Bool[ndarray, "h w"], edges: Float64[ndarray, " e"], step: int = 1
) -> Lags:
    """Return the sums over all pairs of known pixels of one window that are at most half its side apart.

    Every pair of every direction counts, by Fourier transforms (Marcotte 1996, "Fast variogram computation with FFT",
    Computers & Geosciences 22(10)). Differences of several fields (one a class) add up. `step` is the distance
    in pixels from one row or column of the window to the next. 512 x 512 pixels take 0.3 s a field; 40 MB.
    """
    shape = tuple(scipy.fft.next_fast_len(side + side // 2, real=True) for side in known.shape)
    mask = scipy.fft.rfft2(known, s=shape)
    halves = np.zeros((shape[0], shape[1]))
    for field in fields:
        # About its mean a field is small, and the difference of its sums exact.
        centred = np.where(known, field - field[known].mean() if known.any() else 0.0, 0.0)
        spectrum = scipy.fft.rfft2(centred, s=shape)
        square = scipy.fft.rfft2(centred**2, s=shape)
        halves += scipy.fft.irfft2(square * mask.conj() - spectrum * spectrum.conj(), s=shape)
    pairs = scipy.fft.irfft2(mask * mask.conj(), s=shape).round()
    down, right = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    distance = np.hypot(*np.meshgrid(down, right, indexing="ij")) * step
    near = (down <= known.shape[0] // 2)[:, None] & (right <= known.shape[1] // 2)[None]
    near &= distance <= min(known.shape) // 2 * step
    return _binned(edges, distance[near], pairs[near], halves[near])


def pooled(lags: Sequence[Lags]) -> Variogram:
    """Return the variogram over all windows, with its model.

    Only pairs within a window count, so that differences between scenes do not. `lags` share their edges.
    """
    total = reduce(add, lags)
    there = (total.pairs >= LEAST_PAIRS) & (total.halves >= 0)
    pairs = total.pairs[there]
    return fitted(total.distances[there] / pairs, total.halves[there] / pairs, pairs)


def fitted(lag: Float64[ndarray, " l"], gamma: Float64[ndarray, " l"], pairs: Float64[ndarray, " l"]) -> Variogram:
    """Return the variogram with the model, exponential, spherical or Gaussian, of the least error.

    Least squares over lags that are spaced by their logarithm, so that near and far weigh alike, with a soft L1 loss,
    so that one odd lag does not decide (Cressie 1985, "Fitting variogram models by weighted least squares", weighs by
    pairs instead; there the longest lags, which rest on the fewest independent places, would decide).
    """
    top = float(gamma.max(initial=0.0))
    if len(lag) < LEAST_LAGS or top <= 0:
        return Variogram(lag, gamma, pairs, None)
    tried = [
        (result.cost, kind, result.x)
        for kind, growth in GROWTH.items()
        for start in (0.1, 0.5)
        for result in [_fit(growth, lag, gamma / top, start)]
    ]
    _, kind, (nugget, rise, log_range) = min(tried, key=lambda one: one[0])
    return Variogram(lag, gamma, pairs, kind, top * nugget, top * (nugget + rise), float(np.exp(log_range)))


def _exponential(share: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
    return np.asarray(1 - np.exp(-3 * share), float)


def _spherical(share: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
    inside = np.minimum(share, 1)
    return np.asarray(1.5 * inside - 0.5 * inside**3, float)


def _gaussian(share: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
    return np.asarray(1 - np.exp(-3 * share**2), float)


GROWTH: dict[Model, Callable[[ndarray], ndarray]] = {
    "exponential": _exponential,
    "spherical": _spherical,
    "gaussian": _gaussian,
}
"""The models by the share of the range, from 0 to 1 (Cressie 1993, sec. 2.3.1, with practical ranges)."""


def _fit(
    growth: Callable[[ndarray], ndarray], lag: Float64[ndarray, " l"], gamma: Float64[ndarray, " l"], start: float
) -> Any:
    def residuals(chosen: ndarray) -> ndarray:
        return np.asarray(chosen[0] + chosen[1] * growth(lag / np.exp(chosen[2])) - gamma)

    longest = float(lag[-1])
    bounds = ([0, 1e-6, np.log(lag[0] / 2)], [1.5, 3, np.log(2 * longest)])
    return least_squares(residuals, [0.1, 0.9, np.log(longest * start)], bounds=bounds, loss="soft_l1", f_scale=0.05)


def _binned(
    edges: Float64[ndarray, " e"],
    distance: Float64[ndarray, " n"],
    pairs: Float64[ndarray, " n"],
    halves: Float64[ndarray, " n"],
) -> Lags:
    place = np.searchsorted(edges, distance, side="right") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    # Every pair comes twice, there and back.
    sums = (
        np.bincount(place[inside], weights=weights[inside] / 2, minlength=len(edges) - 1)
        for weights in (pairs, halves, pairs * distance)
    )
    return Lags(edges, *sums)


WINDOWS = 16
SIDE_PX = 1024
"""Edge of a sampled window."""
FINE_PX = 256
"""Edge, in samples, of what goes into a Fourier transform."""


@dataclass(frozen=True)
class Likeness:
    """The variograms of a tile set, distances in pixels."""

    image: Variogram
    """Of the first principal component of the bands, each brought to unit variance over the training part."""
    labels: Variogram
    """Of the class indicators, summed: the chance that two pixels differ in class. Of overlapping classes the mean over
    these: the chance that two pixels differ in whether they are of one."""
    pixels_read: int
    windows: int


@dataclass(frozen=True)
class Sample:
    """Pixels of a window, every `step`-th row and column."""

    pixels: Float32[ndarray, "b h w"]
    valid: Bool[ndarray, "h w"]
    shares: Float32[ndarray, "k h w"]
    """Of each class, 0 to 1; NaN where it is not known."""
    step: int


def likeness(tile_set: TileSet, seed: int = 0) -> Likeness:
    """Return how far images and labels resemble themselves, from at most 16 windows of 1024 x 1024 pixels.

    Every window is looked at twice: its middle, pixel by pixel, and the whole, by every fourth pixel. Distances reach
    half of a window. About 10 s; 25 MB, and 8 MB a band. The same `seed` gives the same windows.

    Raises:
        InputError: when an image or a mask cannot be read.
    """
    windows = sampled_windows(tile_set, seed)
    samples = [
        one
        for name, window in track(windows, len(windows), "Reading", "windows")
        for one in _read(tile_set, name, window)
    ]
    edges = lag_edges(max(min(window.height, window.width) for _, window in windows) / 2)
    axis = principal_axis(samples, tile_set.meta)
    image, labels = [], []
    for sample in track(samples, len(samples), "Variogram", "windows"):
        image.append(window_lags([np.tensordot(axis, sample.pixels, 1)], sample.valid, edges, sample.step))
        labels += _label_lags(sample, edges, tile_set.meta.legend.overlapping)
    read = sum(window.height * window.width for _, window in windows)
    return Likeness(pooled(image), pooled(labels), read, len(windows))


def sampled_windows(tile_set: TileSet, seed: int = 0) -> list[tuple[str, Window]]:
    """Return at most 16 windows around tiles drawn at random, from as many scenes as there are, and their scenes."""
    rng = np.random.default_rng(seed)
    by_scene: dict[str, list[Tile]] = {}
    for tile in tile_set.tiles:
        by_scene.setdefault(tile.scene, []).append(tile)
    names = [str(name) for name in rng.permutation(sorted(by_scene))]
    chosen: dict[tuple[str, Window], None] = {}
    for turn in range(WINDOWS):
        name = names[turn % len(names)]
        scene, tile = tile_set.scenes[name], by_scene[name][rng.integers(len(by_scene[name]))]
        if len(chosen) < WINDOWS:
            chosen[name, _around(tile.window, scene.height, scene.width)] = None
    return list(chosen)


def principal_axis(samples: Sequence[Sample], meta: TileSetMeta) -> Float64[ndarray, " b"]:
    """Return the weights of the bands, in the images' units, that make their first principal component."""
    std = np.array(meta.std[: meta.bands])
    scale = 1 / np.where(std > 0, std, 1)
    inside = np.concatenate([sample.pixels[:, sample.valid] for sample in samples], axis=1) * scale[:, None]
    if inside.shape[1] < 2:
        return scale
    covariance = np.atleast_2d(np.cov(inside))
    axis: Float64[ndarray, " b"] = np.linalg.eigh(covariance)[1][:, -1] * scale
    return axis


def _label_lags(sample: Sample, edges: Float64[ndarray, " e"], overlapping: bool) -> list[Lags]:
    """Return the lags of all classes together; of overlapping ones, which are not known together, those of each."""
    known = np.isfinite(sample.shares)
    fields = np.where(known, sample.shares, 0).astype(float)
    if overlapping:
        return [window_lags([field], here, edges, sample.step) for field, here in zip(fields, known, strict=True)]
    return [window_lags(fields, known.all(axis=0), edges, sample.step)]


def _around(tile: Window, height: int, width: int) -> Window:
    rows, cols = min(SIDE_PX, height), min(SIDE_PX, width)
    top = min(max(tile.row + tile.height // 2 - rows // 2, 0), height - rows)
    left = min(max(tile.col + tile.width // 2 - cols // 2, 0), width - cols)
    return Window(top, left, rows, cols)


def _read(tile_set: TileSet, name: str, window: Window) -> Iterator[Sample]:
    with Image.open(tile_set.image_path(name)) as image:
        pixels, valid = image.read(window)
    bands = read_mask(tile_set.mask_path(name), window)
    coarse = max(1, -(-max(window.height, window.width) // FINE_PX))
    yield _thinned(pixels, valid, bands, coarse, tile_set.meta)
    if coarse > 1:
        rows, cols = (slice(max(side - FINE_PX, 0) // 2, max(side - FINE_PX, 0) // 2 + FINE_PX) for side in valid.shape)
        yield _thinned(pixels[:, rows, cols], valid[rows, cols], bands[:, rows, cols], 1, tile_set.meta)


def _thinned(
    pixels: Shaped[ndarray, "b h w"],
    valid: Bool[ndarray, "h w"],
    bands: UInt8[ndarray, "o h w"],
    step: int,
    meta: TileSetMeta,
) -> Sample:
    thin = (slice(None, None, step), slice(None, None, step))
    label = decoded(bands[:, *thin]) if meta.shares else bands[0, *thin]
    return Sample(pixels[:, *thin].astype(np.float32), valid[thin].copy(), class_shares(label, meta.legend), step)
