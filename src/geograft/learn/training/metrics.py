"""Counts of right and wrong pixels. The scores that follow from them are in geograft.counting and geograft.scores."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geograft.learn.losses.truth import Label, class_index
from geograft.legend import IGNORE


def predicted(logits: Float[Tensor, "n o h w"]) -> Int64[Tensor, "n h w"]:
    """Return the most probable class of each pixel; with one output, class 1 from a probability of 0.5 on."""
    return (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def confusion(logits: Float[Tensor, "n o h w"], label: Label, k: int) -> Int64[Tensor, "{k} {k}"]:
    """Return how many pixels of each true class (row) were predicted as each class (column), of `k` classes.

    Where labels are shares, a pixel is of the class that has most of it. Pixels that are not known are not counted. Add
    the matrices of all batches before taking scores.
    """
    label = class_index(label)
    pair = label.long() * k + predicted(logits)
    # One bin more takes what is ignored; picking the valid pixels out costs ten times as much.
    bins = pair.masked_fill(label == IGNORE, k * k)
    return torch.bincount(bins.flatten(), minlength=k * k + 1)[: k * k].reshape(k, k)


def tables(logits: Float[Tensor, "n k h w"], share: Float[Tensor, "n k h w"]) -> Int64[Tensor, "k 2 2"]:
    """Return for each overlapping class how many pixels outside (row 0) and inside (1) were predicted so (columns).

    A pixel is inside from a share of one half on, and predicted so from a probability of one half on. Shares that are
    NaN are not counted.
    """
    k = logits.shape[1]
    place = torch.arange(k, device=logits.device).reshape(k, 1, 1) * 4 + (share >= 0.5).long() * 2 + (logits >= 0)
    bins = place.masked_fill(~share.isfinite(), 4 * k)
    return torch.bincount(bins.flatten(), minlength=4 * k + 1)[: 4 * k].reshape(k, 2, 2)
