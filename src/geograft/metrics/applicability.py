"""Where a model may be used: how far new data lie from its training data, against how far those lie from each other.

After Meyer & Pebesma (2021), "Predicting into unknown space? Estimating the area of applicability of spatial prediction
models", Methods in Ecology and Evolution 12, 1620-1633 (doi:10.1111/2041-210X.13650), section 2. What is a point here
is whatever has features: a pixel, or a piece of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Integer
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.spatial.distance import cdist

from geograft.errors import InputError
from geograft.files import replacing

KNOWN = "known.safetensors"
"""Name of what a run knows, in its folder."""
MOST_POINTS = 2000
"""Training points that are kept; of more, a random choice with a fixed seed."""
ROWS = 256
"""Points whose distances to all others are held at a time."""


@dataclass(frozen=True)
class Applicability:
    """The training points that a model knows, and how unlike them others may be."""

    points: Float64[ndarray, "m d"]
    """Standardised and weighted."""
    centre: Float64[ndarray, " d"]
    scale: Float64[ndarray, " d"]
    """Standardised features are (feature - centre) * scale; 0 leaves a feature out."""
    mean_distance: float
    """Mean distance between two training points."""
    threshold: float
    """From this dissimilarity index on, a point is outside the area of applicability."""

    def index(self, features: Float[ndarray, "n d"]) -> Float64[ndarray, " n"]:
        """Return the dissimilarity index of points: the distance to the nearest training point over the mean distance.

        0 for a training point. Time: some 0.2 ms a point at 2,000 training points of 200 features.
        """
        scaled = (features - self.centre) * self.scale
        nearest = [block.min(axis=1) for _, block in _distances(scaled, self.points)]
        return np.concatenate(nearest) / self.mean_distance if nearest else np.zeros(0)

    def write(self, path: Path) -> None:
        """Write everything as safetensors, whole or not at all.

        Raises:
            OutputError: when it cannot be written.
        """
        numbers = {"mean_distance": self.mean_distance, "threshold": self.threshold}
        arrays = {"points": self.points, "centre": self.centre, "scale": self.scale}
        content = save({**arrays, **{name: np.array([value]) for name, value in numbers.items()}})
        with replacing(path) as part:
            part.write_bytes(content)

    @classmethod
    def read(cls, path: Path) -> "Applicability":
        """Return what `write` wrote.

        Raises:
            InputError: when the file is missing, damaged or something else.
        """
        try:
            held = load_file(path)
            arrays = held["points"], held["centre"], held["scale"]
            return cls(*arrays, float(held["mean_distance"][0]), float(held["threshold"][0]))
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise InputError(f"{path} cannot be read as what a model knows: {error}. Train the run again.") from error


def fit(
    features: Float[ndarray, "n d"],
    folds: Integer[ndarray, " n"] | None = None,
    weights: Float[ndarray, " d"] | None = None,
) -> Applicability:
    """Return the area of applicability of a model that was trained on points with these features.

    Features are standardised by their mean and standard deviation, so that their units have no say, and multiplied by
    `weights`, the importance of each to the model (default: 1). One that never varies is left out. `folds` are the
    parts of a cross-validation: a training point is compared with the points of other folds only, as new data are
    never of the training's place (default: with all others). The threshold is the largest dissimilarity index of the
    training points, outliers removed: 1.5 interquartile ranges above the upper quartile, if one is larger than that.

    Of more than 2,000 points a random choice is kept, the same one every time; the threshold is of those. Time: about
    a second.

    Raises:
        ValueError: with fewer than two points or folds, or when all points are alike.
    """
    kept = _kept(len(features))
    groups = np.arange(len(features)) if folds is None else folds
    features, groups = features[kept].astype(np.float64), groups[kept]
    if len(np.unique(groups)) < 2:
        raise ValueError("points of at least two folds are needed")
    centre, deviation = features.mean(axis=0), features.std(axis=0, ddof=1)
    varies = deviation > 1e-9 * np.abs(centre)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0.0)
    if weights is not None:
        scale = scale * weights
    points = (features - centre) * scale
    nearest, total = np.zeros(len(points)), 0.0
    for rows, block in _distances(points, points):
        total += block.sum()
        nearest[rows] = np.where(groups[rows, None] == groups, np.inf, block).min(axis=1)
    mean = total / (len(points) * (len(points) - 1))
    if not mean:
        raise ValueError("all points are alike")
    return Applicability(points, centre, scale, mean, _largest(nearest / mean))


def _kept(count: int) -> Integer[ndarray, " m"]:
    """Return the positions of the points that are kept, in order."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_POINTS, replace=False))


def _distances(
    some: Float64[ndarray, "n d"], others: Float64[ndarray, "m d"]
) -> Iterator[tuple[slice, Float64[ndarray, "r m"]]]:
    """Yield the distances of some points to all others, a few hundred points at a time."""
    for start in range(0, len(some), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, cdist(some[rows], others)


def _largest(index: Float64[ndarray, " n"]) -> float:
    """Return the largest of some numbers, outliers removed (Meyer & Pebesma 2021, section 2.4)."""
    lower, upper = np.quantile(index, [0.25, 0.75])
    return float(min(upper + 1.5 * (upper - lower), index.max()))
