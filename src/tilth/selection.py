"""Which places to label next: those that stand for the most of what a model is unsure of.

Every candidate has a weight, how much doubt there is, and features, what it looks like. A candidate that is labelled
teaches a model about itself and about what looks like it. So the candidates are taken one by one, each time the one
that brings the doubtful ground nearest to labelled ground: the largest fall of

    sum over candidates of weight * distance of its features to the nearest labelled ones.

Alike candidates are not taken twice, for the first one covers the second; an odd one that nothing resembles is not
taken before a common kind, for it stands for itself alone. It is the greedy solution of the k-median problem, which for
a submodular gain like this one comes to at least 63 % of the best (Nemhauser, Wolsey and Fisher 1978,
doi:10.1007/BF01588971, section 4); weighting by doubt after Zhdanov (2019), "Diverse mini-batch active learning"
(arXiv:1901.05954).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from numpy import ndarray
from scipy.spatial.distance import cdist

ROWS = 256
"""Candidates whose gains are computed at a time."""


@dataclass(frozen=True)
class Batch:
    """Candidates in the order in which to label them: the first so many are the best so many."""

    positions: Int64[ndarray, " k"]
    gains: Float64[ndarray, " k"]
    """Share of all the doubt that each covers beyond those before it; 0 once nothing is left to cover."""


def batch(
    features: Float[ndarray, "n d"],
    weights: Float[ndarray, " n"],
    distances: Float[ndarray, " n"] | None,
    count: int,
) -> Batch:
    """Return `count` candidates to label, or all where there are fewer.

    `distances` are those of the candidates to what is labelled already, in the units of `features`; without any, all
    count as equally far, twice the mean distance between candidates. Where two gain the same, the one with the larger
    weight comes first. The order of the candidates has no say, but between equal ones.

    Memory: 4 bytes for each pair of candidates. Time: 3,000 candidates of 200 features take a few seconds.
    """
    if not len(features):
        return Batch(np.zeros(0, np.int64), np.zeros(0))
    order = np.lexsort((*features.T, -weights))
    found = _greedy(features[order], weights[order], None if distances is None else distances[order], count)
    return Batch(order[found.positions].astype(np.int64), found.gains)


def _greedy(
    features: Float[ndarray, "n d"],
    weights: Float[ndarray, " n"],
    distances: Float[ndarray, " n"] | None,
    count: int,
) -> Batch:
    """Return the batch of candidates that come in falling order of weight."""
    between = _between(features)
    away = np.full(len(features), 2 * float(between.mean()) or 1.0) if distances is None else distances
    away, weights = away.astype(np.float32), weights.astype(np.float32)
    doubt = float(weights @ away) or 1.0
    positions: list[int] = []
    gains: list[float] = []
    for _ in range(min(count, len(features))):
        gain = _gains(between, away, weights)
        gain[positions] = -1
        best = int(gain.argmax())  # the first of equals, which has the largest weight
        positions.append(best)
        gains.append(float(gain[best]) / doubt)
        away = np.minimum(away, between[best])
    return Batch(np.array(positions, np.int64), np.array(gains, np.float64))


def _between(features: Float[ndarray, "n d"]) -> Float32[ndarray, "n n"]:
    """Return the distances between all candidates; those of equal ones are exactly 0."""
    found = np.zeros((len(features), len(features)), np.float32)
    for start in range(0, len(features), ROWS):
        found[start : start + ROWS] = cdist(features[start : start + ROWS], features)
    return found


def _gains(
    between: Float32[ndarray, "n n"], away: Float32[ndarray, " n"], weights: Float32[ndarray, " n"]
) -> Float64[ndarray, " n"]:
    """Return how much less doubt times distance is left when each candidate is labelled."""
    gain = np.zeros(len(between))
    for start in range(0, len(between), ROWS):
        nearer = np.maximum(away - between[start : start + ROWS], 0)
        gain[start : start + ROWS] = (nearer * weights).sum(axis=1, dtype=np.float64)
    return gain
