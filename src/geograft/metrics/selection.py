"""Which places to label next: those that stand for the most of what a model is unsure of.

Every candidate has pieces, and each piece has a weight, how much doubt there is in it, and features, what it looks
like. A candidate that is labelled teaches a model about its pieces and about what looks like them. So the candidates
are taken one by one, each time the one that adds most to

    sum over all pieces of weight * likeness of its features to those of the nearest piece of a candidate taken.

Alike candidates are not taken twice, for the first one covers the second; an odd one that nothing resembles is not
taken before a common kind, for it stands for itself alone. This is the facility location problem, whose value is
submodular: the greedy solution comes to at least 63 % of the best (Nemhauser, Wolsey and Fisher 1978,
doi:10.1007/BF01588971, section 4). Weighting by doubt is after Zhdanov (2019), "Diverse mini-batch active learning"
(arXiv:1901.05954).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer
from numpy import ndarray

ROWS = 256
"""Pieces that are compared at a time."""


@dataclass(frozen=True)
class Batch:
    """Candidates in the order in which to label them: the first so many are the best so many."""

    positions: Int64[ndarray, " k"]
    gains: Float64[ndarray, " k"]
    """Share of all the doubt that each covers beyond those before it; 0 once nothing is left to cover."""


def batch(
    features: Float[ndarray, "m d"], weights: Float[ndarray, " m"], owners: Integer[ndarray, " m"], count: int
) -> Batch:
    """Return `count` candidates to label, or all where there are fewer.

    `owners` are the candidates that the pieces belong to, 0 to n - 1, each with a piece at least. Features are
    standardised, so that their units have no say. Where two gain the same, the one with the larger weight comes first.
    The order of the candidates has no say, but between equal ones.

    Memory: 4 bytes for each pair of a piece and a candidate. Time: 12,000 pieces of 3,000 candidates and 200 features
    take some three seconds, and then a twentieth of a second for each that is taken.
    """
    if not len(features):
        return Batch(np.zeros(0, np.int64), np.zeros(0))
    order = _falling(features, weights, owners)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    pieces = np.argsort(place[owners], kind="stable")
    found = _greedy(_likeness(features[pieces], place[owners[pieces]]), weights[pieces], count)
    return Batch(order[found.positions].astype(np.int64), found.gains)


def _falling(
    features: Float[ndarray, "m d"], weights: Float[ndarray, " m"], owners: Integer[ndarray, " m"]
) -> Int64[ndarray, " n"]:
    """Return the candidates in falling order of their weight; of equal ones, in an order that their features decide."""
    sums = np.stack([np.bincount(owners, column) for column in features.T])
    order: Int64[ndarray, " n"] = np.lexsort((*sums, -np.bincount(owners, weights)))
    return order


def _likeness(features: Float[ndarray, "m d"], owners: Int64[ndarray, " m"]) -> Float32[ndarray, "m n"]:
    """Return how like each piece is to the piece of each candidate that is most like it; `owners` come in order.

    exp(-r^2), r the distance over its root mean square among all pieces: 1 for equal pieces, and little for strangers
    however strange they are.
    """
    scaled, varying = _standardised(features)
    squares = (scaled * scaled).sum(axis=1)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    found = np.empty((len(scaled), len(starts)), np.float32)
    for start in range(0, len(scaled), ROWS):
        rows = slice(start, start + ROWS)
        apart = squares[rows, None] + squares - 2 * scaled[rows] @ scaled.T
        nearest = np.minimum.reduceat(apart, starts, axis=1)
        # The mean of the squared distances is twice the number of features, for each has a variance of 1.
        found[rows] = np.exp(-np.maximum(nearest, 0) / (2 * max(varying, 1)))
    return found


def _standardised(features: Float[ndarray, "m d"]) -> tuple[Float64[ndarray, "m d"], int]:
    """Return the features less their mean, over their standard deviation; 0 where they never vary. And how many do."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    varies = deviation > 0
    scaled: Float64[ndarray, "m d"] = np.where(varies, centred / np.where(varies, deviation, 1), 0)
    return scaled, int(varies.sum())


def _greedy(likeness: Float32[ndarray, "m n"], weights: Float[ndarray, " m"], count: int) -> Batch:
    """Return the batch of candidates that come in falling order of weight."""
    covered = np.zeros(len(likeness), np.float32)
    doubt = float(weights.sum()) or 1.0
    positions: list[int] = []
    gains: list[float] = []
    for _ in range(min(count, likeness.shape[1])):
        gain = _gains(likeness, covered, weights)
        gain[positions] = -1
        best = int(gain.argmax())  # the first of equals, which has the largest weight
        positions.append(best)
        gains.append(float(gain[best]) / doubt)
        covered = np.maximum(covered, likeness[:, best])
    return Batch(np.array(positions, np.int64), np.array(gains, np.float64))


def _gains(
    likeness: Float32[ndarray, "m n"], covered: Float32[ndarray, " m"], weights: Float[ndarray, " m"]
) -> Float64[ndarray, " n"]:
    """Return how much more doubt is covered when each candidate is labelled."""
    gain = np.zeros(likeness.shape[1])
    for start in range(0, len(likeness), ROWS):
        rows = slice(start, start + ROWS)
        more = np.maximum(likeness[rows] - covered[rows, None], 0)
        gain += weights[rows] @ more
    return gain
