"""From a network's logits to probabilities, and means of them that do not depend on how the work was cut.

The eight ways to lay a square on itself: quarter turns, and each of them flipped.

They are the dihedral group D4. Test-time augmentation shows the network a tile in several of them and averages what it
says, turned back. The sets form a chain in which each prefers neither rows nor columns and neither left nor right:
as it is; and by a half turn; and by all quarter turns; and all of it flipped.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

Item = TypeVar("Item")


def probabilities(logits: Float32[Tensor, "n o h w"], overlapping: bool = False) -> Float32[Tensor, "n k h w"]:
    """Return the probability of each class: softmax, or (1 - p, p) from the sigmoid p of a single output.

    Of overlapping classes it is the sigmoid of each class's own output.
    """
    if overlapping:
        return torch.sigmoid(logits)
    if logits.shape[1] > 1:
        return torch.softmax(logits, dim=1)
    first = torch.sigmoid(logits)
    return torch.cat([1 - first, first], dim=1)


def layers_of(logits: Float32[Tensor, "n o h w"], overlapping: bool = False) -> Float32[Tensor, "n o h w"]:
    """Return the layers of a map: the probability of class 1 from a single output, else that of each class."""
    return torch.sigmoid(logits) if logits.shape[1] == 1 or overlapping else torch.softmax(logits, dim=1)


def mean_over(items: Sequence[Item], term: Callable[[Item], Float[Tensor, "*size"]]) -> Float[Tensor, "*size"]:
    """Return the mean of `term` over `items`, summed in pairs, pairs of pairs and so on, in their order.

    So 2, 4 or 8 equal terms have exactly their common value as the mean. Holds one term for each level of pairs.
    """
    return _sum_over(items, term) / len(items)


def _sum_over(items: Sequence[Item], term: Callable[[Item], Float[Tensor, "*size"]]) -> Float[Tensor, "*size"]:
    if len(items) == 1:
        return term(items[0])
    half = len(items) // 2
    return _sum_over(items[:half], term) + _sum_over(items[half:], term)


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
