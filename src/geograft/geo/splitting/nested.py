"""Subsets of tiles that lie inside each other: the smaller ones begin the order that the larger ones go on with."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray


def spread_order(unit_of: Sequence[Hashable], seed: int) -> list[int]:
    """Return the positions of tiles in a random order, any beginning of which is spread over the units in proportion.

    `unit_of` names the piece of ground (scene, block) of every tile. Where a beginning ends, one share fits all units:
    each has that share of its tiles, rounded up or down, any of them alike. This is systematic sampling with a start of
    its own in each unit (Cochran 1977, Sampling Techniques, section 8.1). The same arguments give the same order.
    """
    rng = np.random.default_rng(seed % 2**64)
    place: Float64[ndarray, " tiles"] = np.empty(len(unit_of))
    by_unit: dict[Hashable, list[int]] = defaultdict(list)
    for position, unit in enumerate(unit_of):
        by_unit[unit].append(position)
    for mine in by_unit.values():
        place[rng.permutation(mine)] = (np.arange(len(mine)) + rng.random()) / len(mine)
    return [int(position) for position in np.argsort(place, kind="stable")]
