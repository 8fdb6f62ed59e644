"""Simulated maps with spatially correlated errors and a known IoU, to measure the coverage of confidence intervals.

The truth is a Gaussian field with covariance exp(-distance / CORRELATION_LENGTH) above THRESHOLD; the map is the field
plus NOISE times a second field above the same threshold. Samples are square blocks of the map, as in a block split.
`python -m tests.support.correlated` prints the coverage of the intervals by number of units.
"""

import sys

import numpy as np
from numpy import ndarray
from scipy import fft
from scipy.stats import multivariate_normal, norm

from geograft.metrics.intervals import bootstrap_sums, confidence_intervals

BLOCK, CORRELATION_LENGTH, THRESHOLD, NOISE = 16, 2.0, 0.5, 0.7
ROWS, MAP_TO_SAMPLE, SAMPLES_PER_MAP, MAPS_AT_ONCE = 8, 6, 3, 40
"""A sixth of the blocks of a map is one sample; three disjoint samples are drawn from every map."""
TRIALS = 1000


def true_iou() -> float:
    """Return expected intersection over expected union, from a bivariate normal distribution."""
    correlation = 1 / np.sqrt(1 + NOISE**2)
    both = float(
        multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf([-THRESHOLD, -THRESHOLD * correlation])
    )
    return both / float(norm.cdf(-THRESHOLD) + norm.cdf(-THRESHOLD * correlation) - both)


def simulate_counts(units: int, trials: int, seed: int, block: int = BLOCK) -> tuple[ndarray, float]:
    """Return pixel counts (trials, units, 4) [TN, FP, FN, TP], and the true IoU."""
    rng = np.random.default_rng(seed)
    shape = (ROWS * block, -(-units * MAP_TO_SAMPLE // ROWS) * block)
    samples = []
    for _ in range(0, trials, MAPS_AT_ONCE * SAMPLES_PER_MAP):
        truth, noise = gaussian_fields(shape, rng), gaussian_fields(shape, rng)
        counts = block_counts(2 * (truth > THRESHOLD) + ((truth + NOISE * noise) > THRESHOLD), block)
        order = np.argsort(rng.random(counts.shape[:2]), axis=1)
        chosen = (order[:, time * units : (time + 1) * units, None] for time in range(SAMPLES_PER_MAP))
        samples += [np.take_along_axis(counts, blocks, axis=1) for blocks in chosen]
    return np.concatenate(samples)[:trials], true_iou()


def gaussian_fields(shape: tuple[int, int], rng: np.random.Generator) -> ndarray:
    """Return AT_ONCE Gaussian fields of variance 1 on a torus."""
    down, across = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    covariance = np.exp(-np.hypot(down[:, None], across) / CORRELATION_LENGTH)
    spectrum = np.sqrt(np.maximum(fft.rfft2(covariance).real, 0)).astype(np.float32)
    white = fft.rfft2(rng.standard_normal((MAPS_AT_ONCE, *shape), dtype=np.float32))
    field: ndarray = fft.irfft2(white * spectrum, s=shape)
    return field


def block_counts(kinds: ndarray, block: int) -> ndarray:
    """Return the number of pixels of each of four kinds in every block, (n, blocks, 4)."""
    n, height, width = kinds.shape
    cut = kinds.reshape(n, height // block, block, width // block, block)
    return np.stack([(cut == kind).sum(axis=(2, 4)).reshape(n, -1) for kind in range(4)], axis=-1)


def iou(sums: ndarray) -> ndarray:
    """Return the IoU of summed counts, (n, 1)."""
    ratio: ndarray = sums[:, 3:] / np.maximum(sums[:, 1:].sum(axis=1, keepdims=True), 1)
    return ratio


def pixel_interval(counts: ndarray, draws: int, seed: int) -> ndarray:
    """Return the percentile interval over pixels, as if they were independent observations."""
    total = counts.sum(axis=0)
    drawn = np.random.default_rng(seed).multinomial(total.sum(), total / total.sum(), size=draws)
    ends: ndarray = np.quantile(iou(drawn.astype(np.float64)), (0.025, 0.975))
    return ends


def coverage(ends: ndarray, truth: float) -> float:
    """Return the fraction of intervals (n, 2) that contain the truth."""
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


def percentile_interval(counts: ndarray, draws: int) -> ndarray:
    """Return the plain percentile interval over units."""
    drawn = np.concatenate([iou(sums) for sums in bootstrap_sums(counts, draws, 0)])
    ends: ndarray = np.quantile(drawn, (0.025, 0.975))
    return ends


def bca_interval(counts: ndarray, draws: int) -> ndarray:
    """Return the bias-corrected and accelerated interval over units (Efron & Tibshirani 1993, eq. 14.9 to 14.15)."""
    drawn = np.concatenate([iou(sums) for sums in bootstrap_sums(counts, draws, 0)])[:, 0]
    without = iou(counts.sum(axis=0) - counts)[:, 0]
    bias = norm.ppf(np.clip((drawn < iou(counts.sum(axis=0)[None])[0, 0]).mean(), 1e-4, 1 - 1e-4))
    influence = without.mean() - without
    acceleration = (influence**3).sum() / (6 * max((influence**2).sum() ** 1.5, 1e-12))
    shifted = bias + norm.ppf((0.025, 0.975))
    ends: ndarray = np.quantile(drawn, norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    return ends


def main() -> None:
    """Print the coverage of nominal 95 % confidence intervals by number of units."""
    sys.stdout.write(f"{'units':>5}  {'ours':>6}  {'plain':>6}  {'BCa':>6}  {'pixels':>6}\n")
    for units in (2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 100):
        counts, truth = simulate_counts(units, TRIALS, seed=units)
        found = (
            coverage(np.array([confidence_intervals(each, iou, draws=1000)[0] for each in counts]), truth),
            coverage(np.array([percentile_interval(each, 1000) for each in counts]), truth),
            coverage(np.array([bca_interval(each, 1000) for each in counts]), truth),
            coverage(np.array([pixel_interval(each, 300, seed) for seed, each in enumerate(counts)]), truth),
        )
        sys.stdout.write(f"{units:5}  " + "  ".join(f"{fraction:6.1%}" for fraction in found) + "\n")


if __name__ == "__main__":
    main()
