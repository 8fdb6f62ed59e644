"""Spatial autocorrelation of the images and labels of a tile set: empirical variograms and their ranges.

The variogram at a distance is half the mean squared difference of two pixels at that distance (Matheron 1963,
"Principles of geostatistics", Economic Geology 58; the estimator as in Cressie 1993, "Statistics for Spatial
Data", eq. 2.4.2). It grows with distance up to the range, beyond which two pixels are uncorrelated. Summed over class
indicators it is the probability that two pixels differ in class. It is estimated from a bounded sample of windows.
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
from geograft.geo.scene import only_numbers
from geograft.labels import class_fractions, decode_fractions
from geograft.progress import track

VariogramModel = Literal["exponential", "spherical", "gaussian"]

BINS_PER_OCTAVE = 4
MIN_PAIRS = 100
"""Lags with fewer pairs of pixels are left out."""
MIN_LAGS = 6
"""The range cannot be estimated from fewer lags."""
MAX_RESOLVED_FRACTION = 0.95
"""A range beyond this fraction of the longest lag counts as not reached within the windows."""


@dataclass(frozen=True)
class LagSums:
    """Sums over pairs of pixels by distance class. Sums of several windows can be added."""

    edges: Float64[ndarray, " e"]
    """Bounds of the distance classes, in pixels."""
    pairs: Float64[ndarray, " b"]
    half_squares: Float64[ndarray, " b"]
    """Sum of half the squared differences."""
    distances: Float64[ndarray, " b"]
    """Sum of the distances."""

    def __add__(self, other: "LagSums") -> "LagSums":
        return LagSums(
            self.edges,
            self.pairs + other.pairs,
            self.half_squares + other.half_squares,
            self.distances + other.distances,
        )


@dataclass(frozen=True)
class Variogram:
    """The variogram at a number of lags, and the model that fits it best."""

    lag: Float64[ndarray, " l"]
    """Mean distance of the pairs in each distance class, ascending."""
    gamma: Float64[ndarray, " l"]
    """Semivariance: half the mean squared difference at that distance."""
    pairs: Float64[ndarray, " l"]
    model: VariogramModel | None
    """None if there are too few lags or the values do not vary."""
    nugget: float = 0.0
    """Semivariance of the model at distance 0: noise, and structure smaller than a pixel."""
    sill: float = 0.0
    """Limit of the model: the variance between uncorrelated pixels."""
    range: float = 0.0
    """Distance at which the model reaches the sill; for the exponential and the Gaussian model, which only approach it,
    95 % of the way from the nugget."""

    @property
    def resolved(self) -> bool:
        """Whether the range lies within the lags. If not, pixels are still correlated at the longest lag."""
        return self.model is not None and self.range <= MAX_RESOLVED_FRACTION * float(self.lag[-1])

    def evaluate(self, lag: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
        """Return the semivariance of the model at other distances."""
        assert self.model is not None
        value: Float64[ndarray, " n"] = self.nugget + (self.sill - self.nugget) * MODEL_FUNCTIONS[self.model](
            lag / self.range
        )
        return value

    def rescale(self, factor: float) -> "Variogram":
        """Return the variogram with distances times `factor`, such as metres per pixel."""
        return Variogram(
            self.lag * factor, self.gamma, self.pairs, self.model, self.nugget, self.sill, self.range * factor
        )


def lag_edges(longest: float) -> Float64[ndarray, " _"]:
    """Return the bounds of distance classes from one to `longest` pixels, four per octave.

    >>> lag_edges(2.1).round(2).tolist()
    [0.92, 1.09, 1.3, 1.54, 1.83, 2.18]
    """
    steps = int(np.ceil(BINS_PER_OCTAVE * np.log2(max(longest, 1.0)) + 0.5))
    return np.asarray(2 ** ((np.arange(steps + 1) - 0.5) / BINS_PER_OCTAVE))


def window_lag_sums(
    fields: Iterable[Float[ndarray, "h w"]], known: Bool[ndarray, "h w"], edges: Float64[ndarray, " e"], step: int = 1
) -> LagSums:
    """Return the sums over all pairs of known pixels of one window whose distance is at most half its side.

    All pairs in all directions count, by Fourier transforms (Marcotte 1996, "Fast variogram computation with FFT",
    Computers & Geosciences 22(10)). Squared differences of several fields (one per class) are added. `step` is the
    distance in pixels between adjacent rows or columns. 512 x 512 pixels take 0.3 s per field and 40 MB.
    """
    shape = tuple(scipy.fft.next_fast_len(side + side // 2, real=True) for side in known.shape)
    mask = scipy.fft.rfft2(known, s=shape)
    half_squares = np.zeros((shape[0], shape[1]))
    for field in fields:
        # Subtracting the mean keeps the difference of the two sums below accurate.
        centred = np.where(known, field - field[known].mean() if known.any() else 0.0, 0.0)
        spectrum = scipy.fft.rfft2(centred, s=shape)
        square = scipy.fft.rfft2(centred**2, s=shape)
        half_squares += scipy.fft.irfft2(square * mask.conj() - spectrum * spectrum.conj(), s=shape)
    pairs = scipy.fft.irfft2(mask * mask.conj(), s=shape).round()
    down, right = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    distance = np.hypot(*np.meshgrid(down, right, indexing="ij")) * step
    near = (down <= known.shape[0] // 2)[:, None] & (right <= known.shape[1] // 2)[None]
    near &= distance <= min(known.shape) // 2 * step
    return _binned(edges, distance[near], pairs[near], half_squares[near])


def pool_variogram(lags: Sequence[LagSums]) -> Variogram:
    """Return the variogram over all windows, with its model.

    Only pairs within a window count, so differences between scenes do not. All `lags` must have the same edges.
    """
    total = reduce(add, lags)
    enough = (total.pairs >= MIN_PAIRS) & (total.half_squares >= 0)
    pairs = total.pairs[enough]
    return fit_variogram(total.distances[enough] / pairs, total.half_squares[enough] / pairs, pairs)


def fit_variogram(
    lag: Float64[ndarray, " l"], gamma: Float64[ndarray, " l"], pairs: Float64[ndarray, " l"]
) -> Variogram:
    """Return the variogram with the exponential, spherical or Gaussian model that has the lowest error.

    The fit is least squares with a soft L1 loss, robust to outliers, over logarithmically spaced lags, so short and
    long distances have equal weight. (Cressie 1985, "Fitting variogram models by weighted least squares", weights by
    pairs; that would favour the longest lags, which rest on the fewest independent locations.)
    """
    top = float(gamma.max(initial=0.0))
    if len(lag) < MIN_LAGS or top <= 0:
        return Variogram(lag, gamma, pairs, None)
    fits = [
        (result.cost, kind, result.x)
        for kind, function in MODEL_FUNCTIONS.items()
        for start in (0.1, 0.5)
        for result in [_fit(function, lag, gamma / top, start)]
    ]
    _, kind, (nugget, rise, log_range) = min(fits, key=lambda one: one[0])
    return Variogram(lag, gamma, pairs, kind, top * nugget, top * (nugget + rise), float(np.exp(log_range)))


def _exponential(distance: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
    return np.asarray(1 - np.exp(-3 * distance), float)


def _spherical(distance: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
    inside = np.minimum(distance, 1)
    return np.asarray(1.5 * inside - 0.5 * inside**3, float)


def _gaussian(distance: Float[ndarray, " n"]) -> Float64[ndarray, " n"]:
    return np.asarray(1 - np.exp(-3 * distance**2), float)


MODEL_FUNCTIONS: dict[VariogramModel, Callable[[ndarray], ndarray]] = {
    "exponential": _exponential,
    "spherical": _spherical,
    "gaussian": _gaussian,
}
"""The models, from 0 to 1, as functions of distance / range (Cressie 1993, sec. 2.3.1, with practical ranges)."""


def _fit(
    function: Callable[[ndarray], ndarray], lag: Float64[ndarray, " l"], gamma: Float64[ndarray, " l"], start: float
) -> Any:
    def residuals(parameters: ndarray) -> ndarray:
        return np.asarray(parameters[0] + parameters[1] * function(lag / np.exp(parameters[2])) - gamma)

    longest = float(lag[-1])
    bounds = ([0, 1e-6, np.log(lag[0] / 2)], [1.5, 3, np.log(2 * longest)])
    return least_squares(residuals, [0.1, 0.9, np.log(longest * start)], bounds=bounds, loss="soft_l1", f_scale=0.05)


def _binned(
    edges: Float64[ndarray, " e"],
    distance: Float64[ndarray, " n"],
    pairs: Float64[ndarray, " n"],
    half_squares: Float64[ndarray, " n"],
) -> LagSums:
    place = np.searchsorted(edges, distance, side="right") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    # Every pair occurs twice, once in each direction.
    sums = (
        np.bincount(place[inside], weights=weights[inside] / 2, minlength=len(edges) - 1)
        for weights in (pairs, half_squares, pairs * distance)
    )
    return LagSums(edges, *sums)


MAX_WINDOWS = 16
WINDOW_PX = 1024
"""Side of a sampled window."""
FFT_PX = 256
"""Side of the array that is Fourier transformed."""


@dataclass(frozen=True)
class SpatialAutocorrelation:
    """The variograms of a tile set, with distances in pixels."""

    image: Variogram
    """Of the first principal component of the bands, standardised with the statistics of the training tiles."""
    labels: Variogram
    """Of the class indicators, summed: the probability that two pixels differ in class. For overlapping classes the
    mean over classes: the probability that two pixels differ in whether they belong to a class."""
    pixels_read: int
    windows: int


@dataclass(frozen=True)
class VariogramSample:
    """Pixels and class fractions of a window, every `step`-th row and column."""

    pixels: Float32[ndarray, "b h w"]
    valid: Bool[ndarray, "h w"]
    class_fractions: Float32[ndarray, "k h w"]
    """Fraction of each class, 0 to 1; NaN if unknown."""
    step: int


def estimate_autocorrelation(tile_set: TileSet, seed: int = 0) -> SpatialAutocorrelation:
    """Return the variograms of images and labels, from at most 16 windows of 1024 x 1024 pixels.

    Each window is sampled twice: its centre at full resolution, and the whole window at every fourth pixel. The longest
    distance is half a window. About 10 s; 25 MB, plus 8 MB per band. The same `seed` gives the same windows.

    Raises:
        InputError: if an image or a mask cannot be read.
    """
    windows = sample_windows(tile_set, seed)
    samples = [
        one
        for name, window in track(windows, len(windows), "Reading", "windows")
        for one in _read(tile_set, name, window)
    ]
    edges = lag_edges(max(min(window.height, window.width) for _, window in windows) / 2)
    axis = principal_axis(samples, tile_set.meta)
    image, labels = [], []
    for sample in track(samples, len(samples), "Variogram", "windows"):
        image.append(window_lag_sums([np.tensordot(axis, sample.pixels, 1)], sample.valid, edges, sample.step))
        labels += _label_lags(sample, edges, tile_set.meta.legend.overlapping)
    read = sum(window.height * window.width for _, window in windows)
    return SpatialAutocorrelation(pool_variogram(image), pool_variogram(labels), read, len(windows))


def sample_windows(tile_set: TileSet, seed: int = 0) -> list[tuple[str, Window]]:
    """Return at most 16 windows around random tiles, over as many scenes as possible, each with its scene's name."""
    rng = np.random.default_rng(seed)
    by_scene: dict[str, list[Tile]] = {}
    for tile in tile_set.tiles:
        by_scene.setdefault(tile.scene, []).append(tile)
    names = [str(name) for name in rng.permutation(sorted(by_scene))]
    chosen: dict[tuple[str, Window], None] = {}
    for turn in range(MAX_WINDOWS):
        name = names[turn % len(names)]
        scene, tile = tile_set.scenes[name], by_scene[name][rng.integers(len(by_scene[name]))]
        if len(chosen) < MAX_WINDOWS:
            chosen[name, _around(tile.window, scene.height, scene.width)] = None
    return list(chosen)


def principal_axis(samples: Sequence[VariogramSample], meta: TileSetMeta) -> Float64[ndarray, " b"]:
    """Return the band weights, in the images' units, of the first principal component."""
    std = np.array(meta.std[: meta.bands])
    scale = 1 / np.where(std > 0, std, 1)
    inside = np.concatenate([sample.pixels[:, sample.valid] for sample in samples], axis=1) * scale[:, None]
    if inside.shape[1] < 2:
        return scale
    covariance = np.atleast_2d(np.cov(inside))
    axis: Float64[ndarray, " b"] = np.linalg.eigh(covariance)[1][:, -1] * scale
    return axis


def _label_lags(sample: VariogramSample, edges: Float64[ndarray, " e"], overlapping: bool) -> list[LagSums]:
    """Return the lag sums of all classes together, or one per class if classes overlap."""
    known = np.isfinite(sample.class_fractions)
    fields = np.where(known, sample.class_fractions, 0).astype(float)
    if overlapping:
        return [window_lag_sums([field], here, edges, sample.step) for field, here in zip(fields, known, strict=True)]
    return [window_lag_sums(fields, known.all(axis=0), edges, sample.step)]


def _around(tile: Window, height: int, width: int) -> Window:
    rows, cols = min(WINDOW_PX, height), min(WINDOW_PX, width)
    top = min(max(tile.row + tile.height // 2 - rows // 2, 0), height - rows)
    left = min(max(tile.col + tile.width // 2 - cols // 2, 0), width - cols)
    return Window(top, left, rows, cols)


def _read(tile_set: TileSet, name: str, window: Window) -> Iterator[VariogramSample]:
    meta = tile_set.meta
    with Image.open(
        tile_set.image_path(name), bands=only_numbers(meta.settings.bands), validity=meta.validity
    ) as image:
        pixels, valid = image.read(window)
    bands = read_mask(tile_set.mask_path(name), window)
    coarse = max(1, -(-max(window.height, window.width) // FFT_PX))
    yield _subsample(pixels, valid, bands, coarse, tile_set.meta)
    if coarse > 1:
        rows, cols = (slice(max(side - FFT_PX, 0) // 2, max(side - FFT_PX, 0) // 2 + FFT_PX) for side in valid.shape)
        yield _subsample(pixels[:, rows, cols], valid[rows, cols], bands[:, rows, cols], 1, tile_set.meta)


def _subsample(
    pixels: Shaped[ndarray, "b h w"],
    valid: Bool[ndarray, "h w"],
    bands: UInt8[ndarray, "o h w"],
    step: int,
    meta: TileSetMeta,
) -> VariogramSample:
    stride = (slice(None, None, step), slice(None, None, step))
    label = decode_fractions(bands[:, *stride]) if meta.fractional else bands[0, *stride]
    return VariogramSample(
        pixels[:, *stride].astype(np.float32), valid[stride].copy(), class_fractions(label, meta.legend), step
    )
