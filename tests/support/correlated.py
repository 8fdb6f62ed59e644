"""Maps whose errors are correlated in space, with an IoU that is known exactly.

The ground is a Gaussian field whose likeness falls off as exp(-distance / REACH); truth is where it is above LIMIT, the
map is where the field and NOISE times a second one are. What is evaluated are square blocks drawn from the whole, as a
split draws them. `python -m tests.support.correlated` prints how often intervals hold the true IoU.
"""

import sys

import numpy as np
from numpy import ndarray
from scipy import fft
from scipy.stats import multivariate_normal, norm

from geograft.metrics.intervals import intervals, resampled

BLOCK, REACH, LIMIT, NOISE = 16, 2.0, 0.5, 0.7
ROWS, SHARE, TIMES, AT_ONCE = 8, 6, 3, 40
"""A sixth of the map's blocks is held out; three such draws are made from every map, without a common block."""
TRIALS = 1000


def true_iou() -> float:
    """Return the expected overlap over the expected union: the probabilities of a bivariate normal distribution."""
    alike = 1 / np.sqrt(1 + NOISE**2)
    both = float(multivariate_normal([0, 0], [[1, alike], [alike, 1]]).cdf([-LIMIT, -LIMIT * alike]))
    return both / float(norm.cdf(-LIMIT) + norm.cdf(-LIMIT * alike) - both)


def simulated(units: int, trials: int, seed: int, block: int = BLOCK) -> tuple[ndarray, float]:
    """Return pixel counts (trials, units, 4) [both absent, invented, missed, both there], and the true IoU."""
    rng = np.random.default_rng(seed)
    shape = (ROWS * block, -(-units * SHARE // ROWS) * block)
    drawn = []
    for _ in range(0, trials, AT_ONCE * TIMES):
        ground, noise = fields(shape, rng), fields(shape, rng)
        counts = by_block(2 * (ground > LIMIT) + ((ground + NOISE * noise) > LIMIT), block)
        order = np.argsort(rng.random(counts.shape[:2]), axis=1)
        chosen = (order[:, time * units : (time + 1) * units, None] for time in range(TIMES))
        drawn += [np.take_along_axis(counts, blocks, axis=1) for blocks in chosen]
    return np.concatenate(drawn)[:trials], true_iou()


def fields(shape: tuple[int, int], rng: np.random.Generator) -> ndarray:
    """Return AT_ONCE Gaussian fields of variance 1 on a torus."""
    down, across = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    likeness = np.exp(-np.hypot(down[:, None], across) / REACH)
    spectrum = np.sqrt(np.maximum(fft.rfft2(likeness).real, 0)).astype(np.float32)
    white = fft.rfft2(rng.standard_normal((AT_ONCE, *shape), dtype=np.float32))
    field: ndarray = fft.irfft2(white * spectrum, s=shape)
    return field


def by_block(kinds: ndarray, block: int) -> ndarray:
    """Return how often each of four kinds is in every block, (n, blocks, 4)."""
    n, height, width = kinds.shape
    cut = kinds.reshape(n, height // block, block, width // block, block)
    return np.stack([(cut == kind).sum(axis=(2, 4)).reshape(n, -1) for kind in range(4)], axis=-1)


def iou(sums: ndarray) -> ndarray:
    """Return the IoU of summed counts, (n, 1)."""
    ratio: ndarray = sums[:, 3:] / np.maximum(sums[:, 1:].sum(axis=1, keepdims=True), 1)
    return ratio


def pixel_ends(counts: ndarray, draws: int, seed: int) -> ndarray:
    """Return the interval that resampling pixels gives, as if each were an observation of its own."""
    total = counts.sum(axis=0)
    drawn = np.random.default_rng(seed).multinomial(total.sum(), total / total.sum(), size=draws)
    ends: ndarray = np.quantile(iou(drawn.astype(np.float64)), (0.025, 0.975))
    return ends


def covered(ends: ndarray, truth: float) -> float:
    """Return the share of intervals (n, 2) that hold the truth."""
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


def plain_ends(counts: ndarray, draws: int) -> ndarray:
    """Return the plain percentile interval over units."""
    drawn = np.concatenate([iou(sums) for sums in resampled(counts, draws, 0)])
    ends: ndarray = np.quantile(drawn, (0.025, 0.975))
    return ends


def bca_ends(counts: ndarray, draws: int) -> ndarray:
    """Return the bias-corrected and accelerated interval over units (Efron & Tibshirani 1993, eq. 14.9 to 14.15)."""
    drawn = np.concatenate([iou(sums) for sums in resampled(counts, draws, 0)])[:, 0]
    without = iou(counts.sum(axis=0) - counts)[:, 0]
    bias = norm.ppf(np.clip((drawn < iou(counts.sum(axis=0)[None])[0, 0]).mean(), 1e-4, 1 - 1e-4))
    apart = without.mean() - without
    pull = (apart**3).sum() / (6 * max((apart**2).sum() ** 1.5, 1e-12))
    reach = bias + norm.ppf((0.025, 0.975))
    ends: ndarray = np.quantile(drawn, norm.cdf(bias + reach / (1 - pull * reach)))
    return ends


def main() -> None:
    """Print the share of nominal 95 % intervals that hold the true IoU, by the number of units."""
    sys.stdout.write(f"{'units':>5}  {'ours':>6}  {'plain':>6}  {'BCa':>6}  {'pixels':>6}\n")
    for units in (2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 100):
        counts, truth = simulated(units, TRIALS, seed=units)
        found = (
            covered(np.array([intervals(each, iou, draws=1000)[0] for each in counts]), truth),
            covered(np.array([plain_ends(each, 1000) for each in counts]), truth),
            covered(np.array([bca_ends(each, 1000) for each in counts]), truth),
            covered(np.array([pixel_ends(each, 300, seed) for seed, each in enumerate(counts)]), truth),
        )
        sys.stdout.write(f"{units:5}  " + "  ".join(f"{share:6.1%}" for share in found) + "\n")


if __name__ == "__main__":
    main()
