"""From a network's logits to probabilities, and means of them that do not depend on how the work was cut."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Float32
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
