"""The eight ways to lay a square on itself: quarter turns, and each of them flipped.

They are the dihedral group D4. Test-time augmentation shows the network a tile in several of them and averages what it
says, turned back. The sets form a chain in which each prefers neither rows nor columns and neither left nor right:
as it is; and by a half turn; and by all quarter turns; and all of it flipped.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class Turn(NamedTuple):
    """A square flipped left to right, if at all, and then turned against the clock."""

    quarters: int
    flipped: bool


CHAIN = tuple(Turn(quarters, flipped) for flipped in (False, True) for quarters in (0, 2, 1, 3))
"""All eight; the first 1, 2, 4 or 8 of them are a group, and a normal one of the next larger."""


def turns(count: Literal[1, 2, 4, 8]) -> tuple[Turn, ...]:
    """Return the first `count` of the chain: the identity; the half turn; the quarter turns; the flips.

    With a group, the mean over all turns of a tile is the same map, turned, whichever of them the tile came in.
    """
    return CHAIN[:count]


def turned(images: Shaped[Tensor, "n c t t"], turn: Turn) -> Shaped[Tensor, "n c t t"]:
    """Return every image laid as `turn` says."""
    flipped = images.flip(3) if turn.flipped else images
    return torch.rot90(flipped, turn.quarters, (2, 3)) if turn.quarters else flipped


def turned_back(maps: Shaped[Tensor, "n c t t"], turn: Turn) -> Shaped[Tensor, "n c t t"]:
    """Return what `turned` was given."""
    upright = torch.rot90(maps, -turn.quarters, (2, 3)) if turn.quarters else maps
    return upright.flip(3) if turn.flipped else upright
