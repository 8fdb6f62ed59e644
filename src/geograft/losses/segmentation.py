"""What training makes small: cross-entropy by pixel and a loss of regions, over the labelled pixels of a batch.

Losses of whole regions: how little the predicted and the true region of each class have in common, 0 to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from geograft.config import TrainConfig
from geograft.errors import SettingError
from geograft.legend import Legend
from geograft.losses.targets import Label, Truth, nearness

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


Logits: TypeAlias = Float[Tensor, "n o h w"]
Deep: TypeAlias = tuple[Logits, Mapping[int, Float[Tensor, "n o _ _"]]]
"""What a network may return in training: its logits, and coarser ones of layers within it by their stride. A coarser
pixel is stride x stride pixels, the last of each row and column what is left of them."""

LEAST_DISTANCE = 1e-6
"""Of a prediction from the truth, in the focal loss: at 0, its root has no slope."""


@dataclass(frozen=True)
class LossMix:
    """Everything that decides the loss. As it stands it is the article's: 75 % cross-entropy, 25 % Dice."""

    region: Literal["dice", "tversky", "lovasz"] = "dice"
    region_weight: float = 0.25
    """Share of the region loss; the rest is cross-entropy."""
    gamma: float = 0.0
    """Exponent of the focal loss; 0: cross-entropy as it is."""
    miss: float = 0.7
    """Weight of missed pixels in the Tversky loss."""
    class_weights: tuple[float, ...] = ()
    """In cross-entropy, by class index; empty: all count alike. Of a class that overlaps others, the weight of its own
    pixels against 1 for those that are not of it."""
    boundary_weight: float = 0.0
    """Extra weight in cross-entropy of a pixel beside another class."""
    smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in cross-entropy."""
    auxiliary_weight: float = 0.0
    """Weight of the mean loss of the coarser logits."""
    overlapping: bool = False
    """Whether each output stands for itself, so that a pixel may be of several classes or of none."""


def loss_mix(
    config: TrainConfig,
    legend: Legend,
    shares: Float[ndarray, "tiles k"] | None = None,
    labelled: Float[ndarray, " tiles"] | None = None,
) -> LossMix:
    """Return the loss that `config` describes, for classes that have these `shares` of each training tile's pixels.

    `labelled` is the share of them that is labelled; without, all are.

    Raises:
        SettingError: for class weights that are not numbers, one a class, or that need shares which are not known.
    """
    return LossMix(
        region=config.region,
        region_weight=config.region_weight,
        gamma=config.focal_gamma if config.entropy == "focal" else 0.0,
        miss=config.tversky_miss,
        class_weights=_class_weights(config.class_weights, legend, shares, labelled),
        boundary_weight=config.boundary_weight,
        smoothing=config.label_smoothing,
        auxiliary_weight=config.auxiliary_weight,
        overlapping=legend.overlapping,
    )


def balanced_weights(shares: Float[ndarray, "tiles k"]) -> tuple[float, ...]:
    """Return the weight of each class by the inverse of its share of all pixels, so that their mean by pixel is 1.

    A class without a pixel weighs 1.
    """
    total = shares.sum(axis=0)
    there = total > 0
    weights = np.where(there, total.sum() / (there.sum() * np.where(there, total, 1)), 1.0)
    return tuple(weights.tolist())


def balanced_sides(
    shares: Float[ndarray, "tiles k"], labelled: Float[ndarray, " tiles"] | None = None
) -> tuple[float, ...]:
    """Return the weight of the pixels of each overlapping class with which they count as much as all others together.

    `labelled` is the share of each tile's pixels that is; without, all are. A class that no labelled pixel has, or
    every one, weighs 1.
    """
    known = len(shares) if labelled is None else labelled.sum()
    inside = shares.sum(axis=0) / max(known, 1e-12)
    several = (inside > 0) & (inside < 1)
    return tuple(np.where(several, (1 - inside) / np.where(several, inside, 1), 1.0).tolist())


def segmentation_loss(logits: Logits | Deep, label: Label, mix: LossMix) -> Float32[Tensor, ""]:
    """Return (1 - region_weight) x cross-entropy + region_weight x region loss over all labelled pixels.

    With one output and the plain mix, these are those of the article's CombinedLoss, with the sigmoid inside. With
    outputs that exclude each other, the region loss is the mean over the classes that the batch's labels hold. Of
    coarser logits, the same loss against the shares of the classes in their larger pixels is added, by
    `auxiliary_weight`. Computed in float32, under autocast too. Zero, with gradient zero, where no pixel is labelled.
    """
    return segmentation_losses(logits, label, mix)[0]


def segmentation_losses(
    logits: Logits | Deep, label: Label, mix: LossMix
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    """Return `segmentation_loss`, and what it would be without coarser logits: in training and elsewhere the same."""
    fine, coarser = finest(logits), logits[1] if isinstance(logits, tuple) else {}
    with torch.autocast(fine.device.type, enabled=False):
        truth = Truth.of(label, fine.shape[1], mix.overlapping)
        loss = _loss(fine, truth, mix)
        if not coarser or not mix.auxiliary_weight:
            return loss, loss
        others = [_loss(each, truth.coarser(stride), mix) for stride, each in coarser.items()]
        return loss + mix.auxiliary_weight * torch.stack(others).mean(), loss


def finest(logits: Logits | Deep) -> Logits:
    """Return the logits of the network's own resolution, of what it returned in training or elsewhere."""
    return logits[0] if isinstance(logits, tuple) else logits


def _loss(logits: Logits, truth: Truth, mix: LossMix) -> Float32[Tensor, ""]:
    # Filled before anything else, so that not even an infinite value reaches the loss from an ignored pixel.
    known = logits.float().masked_fill(~truth.valid, 0.0)
    entropy, region = _entropy(known, truth, mix), _region(known, truth, mix)
    return (1 - mix.region_weight) * entropy + mix.region_weight * region


def _entropy(logits: Float32[Tensor, "n o h w"], truth: Truth, mix: LossMix) -> Float32[Tensor, ""]:
    """Return the weighted mean of cross-entropy over known pixels, as torch weighs it: by the weights of the truth."""
    stress = truth.valid * (1 + mix.boundary_weight * nearness(truth)) if mix.boundary_weight else truth.valid
    values, weights = (_softmax_entropy if truth.exclusive else _sigmoid_entropy)(logits, truth, mix)
    if mix.gamma:
        values = values * _distance(logits, truth).clamp(min=LEAST_DISTANCE) ** mix.gamma
    total = (stress if weights is None else stress * weights).sum()
    return (values * stress).sum() / (total + (total == 0))


def _softmax_entropy(
    logits: Float32[Tensor, "n o h w"], truth: Truth, mix: LossMix
) -> tuple[Float32[Tensor, "n 1 h w"], Float32[Tensor, "n 1 h w"] | None]:
    weights = logits.new_tensor(mix.class_weights) if mix.class_weights else None
    target = truth.share if truth.index is None else truth.index
    values = functional.cross_entropy(logits, target, weights, reduction="none", label_smoothing=mix.smoothing)
    if weights is None:
        return values[:, None], None
    return values[:, None], (truth.share * weights[:, None, None]).sum(dim=1, keepdim=True)


def _sigmoid_entropy(
    logits: Float32[Tensor, "n o h w"], truth: Truth, mix: LossMix
) -> tuple[Float32[Tensor, "n o h w"], Float32[Tensor, "n o h w"] | None]:
    share = truth.share * (1 - mix.smoothing) + mix.smoothing / 2 if mix.smoothing else truth.share
    if not mix.class_weights:
        return functional.binary_cross_entropy_with_logits(logits, share, reduction="none"), None
    weights = logits.new_tensor(mix.class_weights)
    # One output stands for two classes; of outputs that overlap, each stands for one, present or not.
    absent, present = (weights[:1], weights[1:]) if logits.shape[1] == 1 else (torch.ones_like(weights), weights)
    absent, present = absent[:, None, None], present[:, None, None]
    ratio = present / absent
    values = functional.binary_cross_entropy_with_logits(logits, share, pos_weight=ratio, reduction="none")
    return values * absent, absent + (present - absent) * truth.share


def _distance(logits: Float32[Tensor, "n o h w"], truth: Truth) -> Float32[Tensor, "n v h w"]:
    """Return how far each prediction is from the truth, 0 to 1: for a whole pixel 1 - the probability of its class.

    For shares the total variation; with one output this is that of Li et al. (2020), "Generalized focal loss", (3),
    and for whole pixels that of Lin et al. (2017), "Focal loss for dense object detection", (4).
    """
    if truth.exclusive:
        return (torch.softmax(logits, dim=1) - truth.share).abs().sum(dim=1, keepdim=True) / 2
    return (torch.sigmoid(logits) - truth.share).abs()


def _region(logits: Float32[Tensor, "n o h w"], truth: Truth, mix: LossMix) -> Float32[Tensor, ""]:
    chances = torch.softmax(logits, dim=1) if truth.exclusive else torch.sigmoid(logits)
    inside, share = ((values * truth.valid).movedim(1, 0).flatten(1) for values in (chances, truth.share))
    losses = _region_losses(inside, share, mix)
    if not truth.exclusive:
        return losses.mean()
    # Lovász gives a pixel to the class it is most of.
    present = (share > (0.5 if mix.region == "lovasz" else 0.0)).any(dim=1)
    return (losses * present).sum() / present.sum().clamp(min=1)


def _region_losses(
    inside: Float32[Tensor, "c p"], share: Float32[Tensor, "c p"], mix: LossMix
) -> Float32[Tensor, " c"]:
    if mix.region == "dice":
        return dice_loss(inside, share)
    if mix.region == "tversky":
        return tversky_loss(inside, share, mix.miss)
    return lovasz_loss(inside, share)


def _class_weights(
    words: str,
    legend: Legend,
    shares: Float[ndarray, "tiles k"] | None,
    labelled: Float[ndarray, " tiles"] | None,
) -> tuple[float, ...]:
    if words == "none":
        return ()
    if words == "balanced":
        if shares is None:
            raise SettingError(
                "class_weights = 'balanced' needs the shares of the classes. Give the weights themselves."
            )
        return balanced_sides(shares, labelled) if legend.overlapping else balanced_weights(shares)
    try:
        weights = tuple(float(word) for word in words.split(","))
    except ValueError:
        weights = ()
    names = legend.names
    if len(weights) != len(names) or not all(0 < weight < float("inf") for weight in weights):
        raise SettingError(
            f"class_weights = {words!r}: give none, balanced, or {len(names)} numbers above 0 separated by commas, "
            f"for {', '.join(names)}."
        )
    return weights
