"""From candidates to suggestions: which to label, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from tilth.applicability import Applicability
from tilth.geo.grid import Window
from tilth.selection import batch
from tilth.verbs.suggest.looking import Candidate

LEAST_DOUBT = 1e-3
"""What a tile's doubt counts at least: a run may be wrong where it has none."""


@dataclass(frozen=True)
class Suggestion:
    """One tile to label."""

    rank: int
    """From 1 on: the order in which to label."""
    raster: int
    """Which of the rasters."""
    window: Window
    score: float
    """Share of all the doubt that it covers beyond the tiles before it."""
    doubt: float
    """Mean over its pixels, 0 to 1."""
    novelty: float | None
    """Distance to what the run was trained on, over the threshold of its area of applicability: outside above 1."""


def ranked(candidates: Sequence[Candidate], known: Applicability | None, count: int) -> tuple[Suggestion, ...]:
    """Return the `count` candidates that are best labelled together, the first so many of which are the best so many.

    See `tilth.selection`. The order of the candidates has no say.
    """
    features = np.stack([one.features for one in candidates])
    weights = np.array([one.share * max(one.doubt, LEAST_DOUBT) for one in candidates])
    if known is None:
        features, distances = _standardised(features), None
    else:
        distances = np.array([one.distance for one in candidates])
    found = batch(features, weights, distances, count)
    chosen = [candidates[position] for position in found.positions]
    return tuple(
        Suggestion(rank, one.raster, one.window, float(gain), one.doubt, _novelty(one, known))
        for rank, (one, gain) in enumerate(zip(chosen, found.gains, strict=True), start=1)
    )


def _standardised(features: Float[ndarray, "n d"]) -> Float64[ndarray, "n d"]:
    """Return the features less their mean, over their standard deviation; 0 where they never vary."""
    centred = features - features.mean(axis=0)
    deviation = centred.std(axis=0)
    scaled: Float64[ndarray, "n d"] = np.where(deviation > 0, centred / np.where(deviation > 0, deviation, 1), 0)
    return scaled


def _novelty(candidate: Candidate, known: Applicability | None) -> float | None:
    return None if known is None else candidate.distance / (known.mean_distance * known.threshold)
