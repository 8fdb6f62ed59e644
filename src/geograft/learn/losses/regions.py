"""Losses of whole regions: how little the predicted and the true region of each class have in common, 0 to 1."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

SMOOTH = 1.0


def dice_loss(inside: Float32[Tensor, "c p"], truth: Float32[Tensor, "c p"]) -> Float32[Tensor, " c"]:
    """Return 1 - Dice of each class over pixels; `inside` are probabilities. The article's, with its smoothing of 1.

    With shares for `truth` it is 0 where these are predicted, and nowhere else. Wang et al. (2023), "Dice semimetric
    losses", (6).
    """
    both = _shared(inside, truth)
    return 1 - (2 * both + SMOOTH) / (inside.sum(dim=1) + truth.sum(dim=1) + SMOOTH)


def tversky_loss(inside: Float32[Tensor, "c p"], truth: Float32[Tensor, "c p"], miss: float) -> Float32[Tensor, " c"]:
    """Return 1 - Tversky index of each class: missed pixels weigh `miss`, false ones 1 - `miss`. At 0.5 it is Dice.

    Salehi, Erdogmus and Gholipour (2017), "Tversky loss function for image segmentation", (3), with a smoothing that
    makes it `dice_loss` at 0.5.
    """
    both = _shared(inside, truth)
    missed, false = truth.sum(dim=1) - both, inside.sum(dim=1) - both
    return 1 - (both + SMOOTH / 2) / (both + miss * missed + (1 - miss) * false + SMOOTH / 2)


def lovasz_loss(inside: Float32[Tensor, "c p"], truth: Float32[Tensor, "c p"]) -> Float32[Tensor, " c"]:
    """Return the Lovász extension of 1 - IoU of each class, at the errors of the probabilities `inside`.

    Where these are 0 or 1 it is 1 - IoU itself. Berman, Triki and Blaschko (2018), "The Lovász-Softmax loss", (8, 9).
    A pixel belongs to the class where its share is over one half. Sorts all pixels of each class.
    """
    errors, order = (inside - truth).abs().sort(dim=1, descending=True, stable=True)
    belongs = (truth > 0.5).gather(1, order)
    return (errors * _steps(belongs)).sum(dim=1)


def _shared(inside: Float32[Tensor, "c p"], truth: Float32[Tensor, "c p"]) -> Float32[Tensor, " c"]:
    # The lesser of both. Of whole pixels it is the product, with the product's slope.
    return torch.where(inside <= truth, inside, truth).sum(dim=1)


def _steps(belongs: Bool[Tensor, "c p"]) -> Float32[Tensor, "c p"]:
    """Return by how much each pixel, taken in turn as an error, raises 1 - IoU.

    Their algorithm 1, but each step in closed form: differences of sums that nearly agree would leave few digits. Whole
    numbers are summed exactly, and the same way on every device.
    """
    size = belongs.sum(dim=1, keepdim=True)
    hits = belongs.cumsum(dim=1)
    rank = torch.arange(1, belongs.shape[1] + 1, device=belongs.device)
    union, left = (size + rank - hits).float(), (size - hits).float()
    # A missed pixel leaves the union as it is; a false one widens it by itself. The first of a class that is nowhere
    # makes an empty union a wrong one.
    widened = left / (union * (union - 1).clamp(min=1)) + ((size == 0) & (rank == 1))
    return torch.where(belongs, 1 / union, widened)
