"""Labels as training targets, and the loss: pixel-wise (cross-entropy or focal) plus region (Dice, Tversky or Lovász).

Targets are the fraction of each output's class in a pixel, and which pixels are labelled. Both losses are computed over
the labelled pixels of a batch. Region losses measure, from 0 to 1, how little the predicted and the reference region of
each class overlap.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from geograft.config import TrainConfig
from geograft.errors import SettingError
from geograft.legend import IGNORE, Legend

LabelTensor: TypeAlias = UInt8[Tensor, "n h w"] | Float32[Tensor, "n o h w"]
"""Class indices, 255 for unlabelled pixels; or the fraction of each output's class in a pixel, 0 to 1, NaN where
unlabelled."""

BOUNDARY_PX = 4
"""Width in pixels of the band along class boundaries: the proximity is 1, 1/2, 1/4, 1/8, then 0."""


@dataclass(frozen=True)
class Targets:
    """A batch of labels in the form that the losses need."""

    fraction: Float32[Tensor, "n o h w"]
    """Fraction of each output's class, 0 to 1; 0 where unlabelled."""
    valid: Bool[Tensor, "n v h w"]
    """Where pixels are labelled: one mask for mutually exclusive outputs, else one mask per output."""
    exclusive: bool
    """Whether the fractions of a pixel sum to one (softmax), or each output has its own sigmoid."""
    index: Int64[Tensor, "n h w"] | None = None
    """Class of each pixel where labels are class indices; 0 where unlabelled."""

    @classmethod
    def from_label(cls, label: LabelTensor, outputs: int, overlapping: bool = False) -> "Targets":
        """Return the targets of a network with `outputs` outputs.

        A single output stands for class 1. Several outputs are mutually exclusive unless `overlapping`.
        """
        exclusive = outputs > 1 and not overlapping
        if label.dtype == torch.uint8:
            labelled = label != IGNORE
            index = label.masked_fill(~labelled, 0).long()
            # Classes last in memory, as functional.one_hot has them, which waits for some devices.
            classes = torch.arange(outputs, device=label.device)
            fraction = index[:, None] if outputs == 1 else (index[..., None] == classes).movedim(-1, 1)
            valid = labelled[:, None] if exclusive else labelled[:, None].expand(fraction.shape)
            return cls(fraction.float() * valid, valid, exclusive, index)
        finite = label.isfinite()
        valid = finite.all(dim=1, keepdim=True) if exclusive else finite
        return cls(label.masked_fill(~valid, 0.0), valid, exclusive)

    def downsample(self, stride: int) -> "Targets":
        """Return the targets averaged over cells of stride x stride pixels, from the upper left corner.

        A cell counts as labelled if at least half of its pixels inside the image are; only these enter its mean.
        """
        labelled = _cell_means(self.valid.float(), stride)
        inside = _cell_means(torch.ones_like(self.valid[:1, :1], dtype=labelled.dtype), stride)
        valid = labelled >= 0.5 * inside
        # One pixel of a cell is the smallest labelled fraction above 0.
        fraction = _cell_means(self.fraction, stride) / labelled.clamp(min=1 / stride**2)
        return Targets(fraction.clamp(max=1) * valid, valid, self.exclusive)


def class_index(label: LabelTensor) -> UInt8[Tensor, "n h w"]:
    """Return the class of each pixel, 255 where unlabelled; of fractions the largest.

    With a single output the fraction is that of class 1, which a pixel gets from one half on.
    """
    if label.dtype == torch.uint8:
        return label
    index = label[:, 0] >= 0.5 if label.shape[1] == 1 else label.argmax(dim=1)
    return index.to(torch.uint8).masked_fill(~label.isfinite().all(dim=1), IGNORE)


def boundary_proximity(targets: Targets) -> Float32[Tensor, "n v h w"]:
    """Return how close each pixel is to another class: 1 next to it, half as much with each further pixel, then 0.

    Distances are the larger of rows and columns (chessboard metric). Unlabelled pixels form no boundary. Fractional
    pixels count as their largest class.
    """
    index = targets.fraction.argmax(dim=1, keepdim=True) if targets.exclusive else targets.fraction > 0.5
    # Unlabelled pixels get a value outside the classes: below all for the maximum, above all for the minimum.
    outside = targets.fraction.shape[1] + 1
    value = index.float()
    largest = _max_3x3(value.masked_fill(~targets.valid, -outside))
    smallest = -_max_3x3((-value).masked_fill(~targets.valid, -outside))
    proximity = (largest > smallest).float() * targets.valid
    for _ in range(BOUNDARY_PX - 1):
        proximity = torch.maximum(proximity, _max_3x3(proximity) / 2)
    return proximity


def _cell_means(values: Float32[Tensor, "n v h w"], stride: int) -> Float32[Tensor, "n v h2 w2"]:
    """Return the means of stride x stride cells, with zeros beyond the last row and column."""
    height, width = values.shape[2:]
    rows, cols = -(-height // stride), -(-width // stride)
    continued = functional.pad(values, (0, cols * stride - width, 0, rows * stride - height))
    return functional.adaptive_avg_pool2d(continued, (rows, cols))


def _max_3x3(values: Float32[Tensor, "n v h w"]) -> Float32[Tensor, "n v h w"]:
    return functional.max_pool2d(values, 3, stride=1, padding=1)


SMOOTH = 1.0


def lovasz_loss(probability: Float32[Tensor, "c p"], target: Float32[Tensor, "c p"]) -> Float32[Tensor, " c"]:
    """Return the Lovász extension of 1 - IoU of each class, at the errors of the probabilities.

    It equals 1 - IoU where the probabilities are 0 or 1. Berman, Triki and Blaschko (2018), "The Lovász-Softmax loss",
    (8, 9). A pixel belongs to a class if its fraction is over one half. Sorts all pixels of each class.
    """
    errors, order = (probability - target).abs().sort(dim=1, descending=True, stable=True)
    positive = (target > 0.5).gather(1, order)
    return (errors * _lovasz_gradient(positive)).sum(dim=1)


def region_sums(probability: Float32[Tensor, "c p"], target: Float32[Tensor, "c p"]) -> Float32[Tensor, "3 c"]:
    """Return the sums of each class that Dice and Tversky need: intersection, prediction and target.

    They add over the parts of a batch, whichever process holds a part.
    """
    # The minimum of both. For targets of 0 and 1 it is the product and has the product's gradient.
    intersection = torch.where(probability <= target, probability, target)
    return torch.stack([each.sum(dim=1) for each in (intersection, probability, target)])


def dice_loss(sums: Float32[Tensor, "3 c"]) -> Float32[Tensor, " c"]:
    """Return 1 - Dice of each class from the sums of `region_sums`, with the article's smoothing of 1.

    With fractional targets the minimum, 0, is reached only where the prediction equals them. Wang et al. (2023), "Dice
    semimetric losses", (6).
    """
    intersection, predicted, target = sums[0], sums[1], sums[2]
    return 1 - (2 * intersection + SMOOTH) / (predicted + target + SMOOTH)


def tversky_loss(sums: Float32[Tensor, "3 c"], beta: float) -> Float32[Tensor, " c"]:
    """Return 1 - Tversky index of each class: false negatives weigh `beta`, false positives 1 - `beta`.

    Salehi, Erdogmus and Gholipour (2017), "Tversky loss function for image segmentation", (3). The smoothing makes it
    equal to `dice_loss` at 0.5.
    """
    intersection, predicted, target = sums[0], sums[1], sums[2]
    missed, false = target - intersection, predicted - intersection
    return 1 - (intersection + SMOOTH / 2) / (intersection + beta * missed + (1 - beta) * false + SMOOTH / 2)


def _lovasz_gradient(positive: Bool[Tensor, "c p"]) -> Float32[Tensor, "c p"]:
    """Return how much each pixel raises 1 - IoU when the pixels become errors one by one.

    This is their algorithm 1 with each step in closed form: differences of nearly equal sums would lose digits. The
    sums are of whole numbers, so they are exact and the same on every device.
    """
    size = positive.sum(dim=1, keepdim=True)
    hits = positive.cumsum(dim=1)
    rank = torch.arange(1, positive.shape[1] + 1, device=positive.device)
    union, left = (size + rank - hits).float(), (size - hits).float()
    # A false negative leaves the union unchanged; a false positive adds one pixel to it. For a class without a pixel
    # the first false positive takes the IoU from 1 to 0.
    step = left / (union * (union - 1).clamp(min=1)) + ((size == 0) & (rank == 1))
    return torch.where(positive, 1 / union, step)


Logits: TypeAlias = Float[Tensor, "n o h w"]
MultiScaleLogits: TypeAlias = tuple[Logits, Mapping[int, Float[Tensor, "n o _ _"]]]
"""A network's output under deep supervision: its logits, and auxiliary logits of inner layers, by stride. One of their
pixels covers stride x stride pixels of the image, less in the last row and column where the stride does not divide."""

AllReduce: TypeAlias = Callable[[Float32[Tensor, "..."]], Float32[Tensor, "..."]]
"""Adds a tensor up over all training processes. Each process gets the gradient of its own summand."""

MIN_DISTANCE = 1e-6
"""Lower limit of the distance between prediction and target in the focal loss, whose power has no gradient at 0."""


@dataclass(frozen=True)
class LossConfig:
    """The settings of the loss. The defaults are the article's: 75 % cross-entropy, 25 % Dice."""

    region_loss: Literal["dice", "tversky", "lovasz"] = "dice"
    region_loss_weight: float = 0.25
    """Weight of the region loss; the pixel-wise loss has the rest of 1."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss; 0 for cross-entropy."""
    tversky_beta: float = 0.7
    """Weight of false negatives in the Tversky loss."""
    class_weights: tuple[float, ...] = ()
    """Weights in the pixel-wise loss, by class index; empty for equal weights. For overlapping classes, the weight of a
    class's positive pixels against 1 for its negative ones."""
    boundary_weight: float = 0.0
    """Extra weight in the pixel-wise loss of a pixel next to another class."""
    label_smoothing: float = 0.0
    """Fraction of each label that is spread evenly over all classes, in the pixel-wise loss."""
    auxiliary_weight: float = 0.0
    """Weight of the mean loss of the auxiliary outputs."""
    overlapping: bool = False
    """Whether classes overlap: each output has its own sigmoid, and a pixel may have several classes or none."""

    @property
    def needs_all_pixels(self) -> bool:
        """Whether the loss needs every pixel of the batch at once and not only sums over them."""
        return self.region_loss == "lovasz"


def build_loss_config(
    config: TrainConfig,
    legend: Legend,
    class_fractions: Float[ndarray, "tiles k"] | None = None,
    labelled_fraction: Float[ndarray, " tiles"] | None = None,
) -> LossConfig:
    """Return the loss that `config` describes.

    `class_fractions` are the fractions of each training tile's pixels that belong to each class, `labelled_fraction`
    the fraction that is labelled (1 by default). Balanced class weights are computed from them.

    Raises:
        SettingError: for class weights that are not one positive number per class, and for "balanced" without
            `class_fractions`.
    """
    return LossConfig(
        region_loss=config.region_loss,
        region_loss_weight=config.region_loss_weight,
        focal_gamma=config.focal_gamma if config.pixel_loss == "focal" else 0.0,
        tversky_beta=config.tversky_beta,
        class_weights=_class_weights(config.class_weights, legend, class_fractions, labelled_fraction),
        boundary_weight=config.boundary_weight,
        label_smoothing=config.label_smoothing,
        auxiliary_weight=config.auxiliary_weight,
        overlapping=legend.overlapping,
    )


def balanced_weights(class_fractions: Float[ndarray, "tiles k"]) -> tuple[float, ...]:
    """Return class weights inversely proportional to class frequency, with a mean of 1 per pixel.

    A class without a pixel gets 1.
    """
    total = class_fractions.sum(axis=0)
    present = total > 0
    weights = np.where(present, total.sum() / (present.sum() * np.where(present, total, 1)), 1.0)
    return tuple(weights.tolist())


def balanced_pos_weights(
    class_fractions: Float[ndarray, "tiles k"], labelled_fraction: Float[ndarray, " tiles"] | None = None
) -> tuple[float, ...]:
    """Return, for each overlapping class, negative over positive pixels: the weight that balances the two.

    `labelled_fraction` is the fraction of each tile's pixels that is labelled, 1 by default. A class that has none or
    all of the labelled pixels gets 1.
    """
    labelled = len(class_fractions) if labelled_fraction is None else labelled_fraction.sum()
    positive = class_fractions.sum(axis=0) / max(labelled, 1e-12)
    mixed = (positive > 0) & (positive < 1)
    return tuple(np.where(mixed, (1 - positive) / np.where(mixed, positive, 1), 1.0).tolist())


def _local(sums: Float32[Tensor, "..."]) -> Float32[Tensor, "..."]:
    return sums


def segmentation_loss(logits: Logits | MultiScaleLogits, label: LabelTensor, config: LossConfig) -> Float32[Tensor, ""]:
    """Return (1 - region_loss_weight) x pixel-wise loss + region_loss_weight x region loss over all labelled pixels.

    With one output and the default settings it is the article's CombinedLoss, applied to logits. With mutually
    exclusive outputs, the region loss is the mean over the classes present in the batch's labels. The mean loss of the
    auxiliary outputs, against labels averaged to their resolution, is added with weight `auxiliary_weight`.

    Computed in float32, also under autocast. Zero, with a zero gradient, if no pixel is labelled.
    """
    return segmentation_losses(logits, label, config)[0]


def segmentation_losses(
    logits: Logits | MultiScaleLogits, label: LabelTensor, config: LossConfig, all_reduce: AllReduce = _local
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    """Return `segmentation_loss`, and the same without auxiliary outputs, which compares to the validation loss.

    With `all_reduce`, `logits` and `label` are this process's part of a batch, and the losses are the whole batch's. A
    config that `needs_all_pixels` does not allow that.
    """
    fine, auxiliary = main_logits(logits), logits[1] if isinstance(logits, tuple) else {}
    with torch.autocast(fine.device.type, enabled=False):
        targets = Targets.from_label(label, fine.shape[1], config.overlapping)
        loss = _loss(fine, targets, config, all_reduce)
        if not auxiliary or not config.auxiliary_weight:
            return loss, loss
        others = [_loss(each, targets.downsample(stride), config, all_reduce) for stride, each in auxiliary.items()]
        return loss + config.auxiliary_weight * torch.stack(others).mean(), loss


def main_logits(logits: Logits | MultiScaleLogits) -> Logits:
    """Return the full-resolution logits, without auxiliary ones."""
    return logits[0] if isinstance(logits, tuple) else logits


def _loss(logits: Logits, targets: Targets, config: LossConfig, all_reduce: AllReduce) -> Float32[Tensor, ""]:
    # Masked first, so that not even an infinite logit of an unlabelled pixel reaches the loss.
    masked = logits.float().masked_fill(~targets.valid, 0.0)
    pixel = _pixel_loss(masked, targets, config, all_reduce)
    region = _region_loss(masked, targets, config, all_reduce)
    return (1 - config.region_loss_weight) * pixel + config.region_loss_weight * region


def _pixel_loss(
    logits: Float32[Tensor, "n o h w"], targets: Targets, config: LossConfig, all_reduce: AllReduce
) -> Float32[Tensor, ""]:
    """Return the weighted mean of cross-entropy over labelled pixels, divided by the targets' weights as torch does."""
    pixel_weight: Tensor = targets.valid
    if config.boundary_weight:
        pixel_weight = pixel_weight * (1 + config.boundary_weight * boundary_proximity(targets))
    values, weights = (_softmax_ce if targets.exclusive else _sigmoid_ce)(logits, targets, config)
    if config.focal_gamma:
        values = values * _distance(logits, targets).clamp(min=MIN_DISTANCE) ** config.focal_gamma
    total = (pixel_weight if weights is None else pixel_weight * weights).sum()
    sums = all_reduce(torch.stack([(values * pixel_weight).sum(), total.float()]))
    return sums[0] / (sums[1] + (sums[1] == 0))


def _softmax_ce(
    logits: Float32[Tensor, "n o h w"], targets: Targets, config: LossConfig
) -> tuple[Float32[Tensor, "n 1 h w"], Float32[Tensor, "n 1 h w"] | None]:
    weights = _weights_on(logits.device, config.class_weights) if config.class_weights else None
    target = targets.fraction if targets.index is None else targets.index
    values = functional.cross_entropy(logits, target, weights, reduction="none", label_smoothing=config.label_smoothing)
    if weights is None:
        return values[:, None], None
    return values[:, None], (targets.fraction * weights[:, None, None]).sum(dim=1, keepdim=True)


def _sigmoid_ce(
    logits: Float32[Tensor, "n o h w"], targets: Targets, config: LossConfig
) -> tuple[Float32[Tensor, "n o h w"], Float32[Tensor, "n o h w"] | None]:
    fraction, smoothing = targets.fraction, config.label_smoothing
    target = fraction * (1 - smoothing) + smoothing / 2 if smoothing else fraction
    if not config.class_weights:
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="none"), None
    weights = _weights_on(logits.device, config.class_weights)
    # A single output has weights for both classes; overlapping outputs have one for their positive pixels.
    negative, positive = (weights[:1], weights[1:]) if logits.shape[1] == 1 else (torch.ones_like(weights), weights)
    negative, positive = negative[:, None, None], positive[:, None, None]
    ratio = positive / negative
    values = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=ratio, reduction="none")
    return values * negative, negative + (positive - negative) * fraction


@lru_cache(maxsize=8)
def _weights_on(device: torch.device, weights: tuple[float, ...]) -> Float32[Tensor, " o"]:
    """Return class weights on a device. Copied once: a copy from unpinned memory waits for the device."""
    return torch.tensor(weights, dtype=torch.float32, device=device)


def _distance(logits: Float32[Tensor, "n o h w"], targets: Targets) -> Float32[Tensor, "n v h w"]:
    """Return the distance between prediction and target, 0 to 1: for a pixel of one class 1 - its probability.

    For fractional targets it is the total variation. With one output this is Li et al. (2020), "Generalized focal
    loss", (3), and for pixels of one class Lin et al. (2017), "Focal loss for dense object detection", (4).
    """
    if targets.exclusive:
        return (torch.softmax(logits, dim=1) - targets.fraction).abs().sum(dim=1, keepdim=True) / 2
    return (torch.sigmoid(logits) - targets.fraction).abs()


def _region_loss(
    logits: Float32[Tensor, "n o h w"], targets: Targets, config: LossConfig, all_reduce: AllReduce
) -> Float32[Tensor, ""]:
    probability = torch.softmax(logits, dim=1) if targets.exclusive else torch.sigmoid(logits)
    valid = targets.valid
    predicted, target = ((values * valid).movedim(1, 0).flatten(1) for values in (probability, targets.fraction))
    losses, present = _class_losses(predicted, target, config, all_reduce)
    if not targets.exclusive:
        return losses.mean()
    return (losses * present).sum() / present.sum().clamp(min=1)


def _class_losses(
    probability: Float32[Tensor, "c p"], target: Float32[Tensor, "c p"], config: LossConfig, all_reduce: AllReduce
) -> tuple[Float32[Tensor, " c"], Bool[Tensor, " c"]]:
    """Return the region loss of each class, and which classes are present in the targets."""
    if config.region_loss == "lovasz":
        # It assigns a pixel to a class if its fraction is over one half.
        return lovasz_loss(probability, target), (target > 0.5).any(dim=1)
    sums = all_reduce(region_sums(probability, target))
    if config.region_loss == "dice":
        return dice_loss(sums), sums[2] > 0
    return tversky_loss(sums, config.tversky_beta), sums[2] > 0


def _class_weights(
    words: str,
    legend: Legend,
    class_fractions: Float[ndarray, "tiles k"] | None,
    labelled_fraction: Float[ndarray, " tiles"] | None,
) -> tuple[float, ...]:
    if words == "none":
        return ()
    if words == "balanced":
        if class_fractions is None:
            raise SettingError(
                "class_weights = 'balanced' needs the class frequencies, which are unknown here. Give numbers instead."
            )
        if legend.overlapping:
            return balanced_pos_weights(class_fractions, labelled_fraction)
        return balanced_weights(class_fractions)
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
