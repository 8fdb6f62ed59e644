"""Which tiles an epoch holds, and which give pixels of a rare class to others."""

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

Shares = Float[ndarray, "tiles k"]
"""Share of each class among all pixels of each tile."""


def class_rates(shares: Shares) -> Float64[ndarray, " tiles"]:
    """Return how often each tile is drawn so that every class is sought alike; the rates sum to 1.

    A draw chooses a class, each that is there as likely, and then a tile in proportion to its pixels of that class.
    Tiles of which nothing is known come as often as others do on the mean.
    """
    total = shares.sum(axis=0)
    there = total > 0
    rates = (shares[:, there] / total[there]).mean(axis=1) if there.any() else np.zeros(len(shares))
    bare = shares.sum(axis=1) == 0
    rates = np.where(bare, 1 / len(shares), rates)
    found: Float64[ndarray, " tiles"] = rates / rates.sum()
    return found


def drawn_order(rates: Float64[ndarray, " tiles"], rng: np.random.Generator) -> list[int]:
    """Return as many indices as there are `rates`, at random but each as often as its rate says, up or down to a whole.

    Systematic resampling: Carpenter, Clifford and Fearnhead (1999), "Improved particle filter for nonlinear problems".
    """
    count = len(rates)
    marks = (rng.random() + np.arange(count)) / count
    # The last sum may be a little less than one, and a mark beyond it would be of no tile.
    chosen = np.searchsorted(np.cumsum(rates)[:-1], marks, side="right")
    return [int(index) for index in rng.permutation(chosen)]


def donor(shares: Shares, rng: np.random.Generator) -> tuple[int, int]:
    """Return a tile and a class that it holds: rare classes more often, by the inverse of their share of all pixels.

    The tile is drawn in proportion to its pixels of the class. Costs a pass over the class's shares.
    """
    total = shares.sum(axis=0)
    (there,) = np.nonzero(total)
    wanted = 1 / total[there]
    index = int(there[_draw(wanted, rng)])
    return _draw(shares[:, index], rng), index


def _draw(weights: Float[ndarray, " n"], rng: np.random.Generator) -> int:
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums[:-1], rng.random() * sums[-1], side="right"))
