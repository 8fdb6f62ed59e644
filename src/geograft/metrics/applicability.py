"""Area of applicability: the dissimilarity of new data to a model's training data, in feature space.

After Meyer & Pebesma (2021), "Predicting into unknown space? Estimating the area of applicability of spatial prediction
models", Methods in Ecology and Evolution 12, 1620-1633 (doi:10.1111/2041-210X.13650), section 2. A point is anything
with a feature vector: a pixel, or a patch of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Integer
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.spatial.distance import cdist

from geograft.bundle import BundleMember
from geograft.errors import InputError
from geograft.files import write_bytes

MAX_POINTS = 2000
"""Maximum number of training points. Larger sets are subsampled at random with a fixed seed."""
CHUNK_ROWS = 256
"""Number of points whose distances to all others are computed at once."""


@dataclass(frozen=True)
class Applicability:
    """Features of the training points, and the threshold of dissimilarity to them."""

    points: Float64[ndarray, "m d"]
    """Training features, standardised and weighted."""
    centre: Float64[ndarray, " d"]
    scale: Float64[ndarray, " d"]
    """Standardised features are (feature - centre) * scale. A scale of 0 drops the feature."""
    mean_distance: float
    """Mean distance between pairs of training points."""
    threshold: float
    """Points with a dissimilarity index above this are outside the area of applicability."""

    def dissimilarity_index(self, features: Float[ndarray, "n d"]) -> Float64[ndarray, " n"]:
        """Return the dissimilarity index of each point: distance to the nearest training point over the mean distance.

        It is 0 for a training point. Time: about 0.2 ms per point with 2,000 training points of 200 features.
        """
        scaled = (features - self.centre) * self.scale
        nearest = [block.min(axis=1) for _, block in _distances(scaled, self.points)]
        return np.concatenate(nearest) / self.mean_distance if nearest else np.zeros(0)

    def write(self, path: Path) -> None:
        """Write the features and the threshold as safetensors, atomically.

        Raises:
            OutputError: when the file cannot be written.
        """
        numbers = {"mean_distance": self.mean_distance, "threshold": self.threshold}
        arrays = {"points": self.points, "centre": self.centre, "scale": self.scale}
        content = save({**arrays, **{name: np.array([value]) for name, value in numbers.items()}})
        write_bytes(path, content)

    @classmethod
    def read(cls, path: Path | BundleMember) -> "Applicability":
        """Read a file written by `write`.

        Raises:
            InputError: when the file is missing, damaged or of another kind.
        """
        try:
            tensors = load(path.read_bytes())
            arrays = tensors["points"], tensors["centre"], tensors["scale"]
            return cls(*arrays, float(tensors["mean_distance"][0]), float(tensors["threshold"][0]))
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise InputError(f"{path} cannot be read as training features: {error}. Train the run again.") from error


def fit_applicability(
    features: Float[ndarray, "n d"],
    folds: Integer[ndarray, " n"] | None = None,
    weights: Float[ndarray, " d"] | None = None,
) -> Applicability:
    """Return the area of applicability of a model trained on points with these features.

    Features are standardised to zero mean and unit variance, so that units do not matter, and multiplied by `weights`,
    their importance to the model (default: 1). Constant features are dropped. `folds` are cross-validation folds: each
    training point is compared only with points of other folds, because new data come from other places than the
    training data (default: with all other points). The threshold is the largest dissimilarity index of the training
    points without outliers, at most the upper quartile plus 1.5 interquartile ranges.

    Of more than 2,000 points a random subset with a fixed seed is used. Time: about a second.

    Raises:
        ValueError: with fewer than two points or folds, or when all points are equal.
    """
    kept = _subset_indices(len(features))
    groups = np.arange(len(features)) if folds is None else folds
    features, groups = features[kept].astype(np.float64), groups[kept]
    if len(np.unique(groups)) < 2:
        raise ValueError(f"need points of at least 2 folds, got {len(np.unique(groups))}")
    centre, std = features.mean(axis=0), features.std(axis=0, ddof=1)
    varies = std > 1e-9 * np.abs(centre)
    scale = np.where(varies, 1 / np.where(varies, std, 1), 0.0)
    if weights is not None:
        scale = scale * weights
    points = (features - centre) * scale
    nearest, total = np.zeros(len(points)), 0.0
    for rows, block in _distances(points, points):
        total += block.sum()
        nearest[rows] = np.where(groups[rows, None] == groups, np.inf, block).min(axis=1)
    mean = total / (len(points) * (len(points) - 1))
    if not mean:
        raise ValueError(f"all {len(points)} points have equal features")
    return Applicability(points, centre, scale, mean, _max_without_outliers(nearest / mean))


def _subset_indices(count: int) -> Integer[ndarray, " m"]:
    """Return the sorted indices of the points to keep."""
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MAX_POINTS, replace=False))


def _distances(
    points: Float64[ndarray, "n d"], others: Float64[ndarray, "m d"]
) -> Iterator[tuple[slice, Float64[ndarray, "r m"]]]:
    """Yield the distances of `points` to all `others`, CHUNK_ROWS points at a time."""
    for start in range(0, len(points), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        yield rows, cdist(points[rows], others)


def _max_without_outliers(index: Float64[ndarray, " n"]) -> float:
    """Return the maximum after outlier removal (Meyer & Pebesma 2021, section 2.4)."""
    lower, upper = np.quantile(index, [0.25, 0.75])
    return float(min(upper + 1.5 * (upper - lower), index.max()))
