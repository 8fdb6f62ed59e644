"""Augmentation and scaling of whole batches on a device, with the draws of `geograft.training.augment`.

Tiles travel as they are stored, a quarter of float32's bytes for 8 bits, together with what was drawn for each. Flips,
rotations and labels have the same bits on every device and as tile by tile; colours and scales differ by rounding.
Nothing here waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from geograft.labels import Label
from geograft.legend import IGNORE
from geograft.losses.targets import LabelTensor
from geograft.networks.device import memory_format_for, stored_values, transfer_form
from geograft.training.augment import Augment, Draws

ELEMENT, SCALE, ROW, COL, CONTRAST, SATURATION, BRIGHTNESS = range(7)
"""Columns of `StoredBatch.draws`; the brightness of the first band, and of the others from there on."""


class StoredBatch(NamedTuple):
    """Tiles of a batch as they are stored, on the CPU, and what was drawn for each."""

    images: Shaped[Tensor, "n b h w"]
    label: LabelTensor
    draws: Float64[Tensor, "n d"]
    uint16: bool
    """Whether the images are uint16, in a tensor of int16."""


def collate_stored(tiles: Sequence[tuple[Shaped[ndarray, "b h w"], Label, Draws]]) -> StoredBatch:
    """Return tiles of one dtype as a batch."""
    images, uint16 = transfer_form(np.stack([image for image, _, _ in tiles]))
    drawn = [
        (each.element, each.scale, *each.offset, each.contrast, each.saturation, *each.brightness)
        for _, _, each in tiles
    ]
    label = torch.from_numpy(np.stack([label for _, label, _ in tiles]))
    return StoredBatch(torch.from_numpy(images), label, torch.tensor(drawn, dtype=torch.float64), uint16)


class BatchAugmenter:
    """Augments and scales the batches of a training on `device`."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        colours: int,
        augment: Augment,
        *,
        rescales: bool,
        device: torch.device,
    ) -> None:
        """Take the scaling of all bands, the number of bands that are colour-jittered, and what is drawn for tiles."""
        # On the device, because torch multiplies by the reciprocal of a number on CUDA.
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (mean, std)
        )
        self._colour_std = torch.tensor(std[:colours], dtype=torch.float64, device=device)[:, None, None]
        self._augment, self._rescales, self._device = augment, rescales, device

    def train(self, batch: StoredBatch) -> tuple[Float32[Tensor, "n b h w"], LabelTensor]:
        """Return images as the network takes them, and labels, on the device: rescaled, turned and colour-jittered."""
        images, label, draws, uint16 = self._upload(batch)
        valid = image_masks(images, label)
        if self._rescales:
            images, uint16 = stored_values(images, uint16).to(torch.float32), False
            images, label, valid = rescale_batch(images, label, valid, draws)
        if self._augment != "none":
            element = draws[:, ELEMENT].to(torch.uint8)
            images, label, valid = (dihedral_batch(each, element) for each in (images, label, valid))
        images = stored_values(images, uint16).to(torch.float32)
        if self._augment == "colour":
            colours = jitter_batch(images[:, : len(self._colour_std)], valid, self._colour_std, draws)
            images = torch.cat([colours, images[:, len(self._colour_std) :]], dim=1)
        return self._scale(images, valid), label

    def val(self, batch: StoredBatch) -> tuple[Float32[Tensor, "n b h w"], LabelTensor]:
        """Return scaled images and labels on the device, not augmented."""
        images, label, _, uint16 = self._upload(batch)
        return self._scale(stored_values(images, uint16).to(torch.float32), image_masks(images, label)), label

    def _upload(self, batch: StoredBatch) -> StoredBatch:
        images, label, draws = (
            each.to(self._device, non_blocking=True) for each in (batch.images, batch.label, batch.draws)
        )
        return StoredBatch(images, label, draws, batch.uint16)

    def _scale(self, images: Float32[Tensor, "n b h w"], valid: Bool[Tensor, "n h w"]) -> Float32[Tensor, "n b h w"]:
        scaled = ((images - self._mean) / self._std).masked_fill_(~valid[:, None], 0)
        return scaled.contiguous(memory_format=memory_format_for(self._device))


def image_masks(images: Shaped[Tensor, "n b h w"], label: LabelTensor) -> Bool[Tensor, "n h w"]:
    """Return the masks of pixels with image data, as `geograft.training.loader.image_mask`."""
    labelled = label != IGNORE if label.ndim == 3 else label.isfinite().any(dim=1)
    return labelled | (images != 0).any(dim=1)


def dihedral_batch(pixels: Shaped[Tensor, "n *c h w"], element: UInt8[Tensor, " n"]) -> Shaped[Tensor, "n *c h w"]:
    """Return each tile under its symmetry, as `geograft.training.augment.dihedral`; below 4 for rectangles."""

    def choose(bit: int, turned: Tensor, plain: Tensor) -> Tensor:
        return torch.where((element & bit).bool().reshape(-1, *[1] * (pixels.ndim - 1)), turned, plain)

    if pixels.shape[-1] == pixels.shape[-2]:
        pixels = choose(4, pixels.transpose(-1, -2), pixels)
    pixels = choose(2, pixels.flip(-2), pixels)
    return choose(1, pixels.flip(-1), pixels)


def jitter_batch(
    images: Float32[Tensor, "n c h w"],
    valid: Bool[Tensor, "n h w"],
    std: Float64[Tensor, "c 1 1"],
    draws: Float64[Tensor, "n d"],
) -> Float32[Tensor, "n c h w"]:
    """Return images with the colours of `draws`, as `geograft.training.augment.jitter_colours`."""
    mask = valid[:, None]
    contrast, saturation = (draws[:, column, None, None, None] for column in (CONTRAST, SATURATION))
    total = torch.where(mask, images, 0).sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
    centre = total / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    result = centre + (1 + contrast) * (images - centre) + draws[:, BRIGHTNESS:, None, None] * std
    if images.shape[1] == 3:
        grey = result.mean(dim=1, keepdim=True)
        result = grey + (1 + saturation) * (result - grey)
    return result.to(torch.float32)


def rescale_batch(
    images: Float32[Tensor, "n b h w"], label: LabelTensor, valid: Bool[Tensor, "n h w"], draws: Float64[Tensor, "n d"]
) -> tuple[Float32[Tensor, "n b h w"], LabelTensor, Bool[Tensor, "n h w"]]:
    """Return the tiles at the scales and offsets of `draws`, as `geograft.training.augment.rescale`."""
    scale = draws[:, SCALE, None]
    above, below, down, row = _sample_positions(valid.shape[1], scale, draws[:, ROW, None])
    left, beside, right, col = _sample_positions(valid.shape[2], scale, draws[:, COL, None])

    def interpolate(values: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
        weight = down[:, None, :, None]
        rows = _take(values, -2, above) * (1 - weight) + _take(values, -2, below) * weight
        weight = right[:, None, None, :]
        return _take(rows, -1, left) * (1 - weight) + _take(rows, -1, beside) * weight

    nearest = [_take(_take(each, -2, row), -1, col) for each in (label, valid)]
    mask = nearest[1][:, None]
    # A tile whose pixels are all valid is not divided by the sum of its weights, which may round to less than 1.
    whole = valid.flatten(1).all(dim=1)[:, None, None, None]
    weight = torch.where(mask & ~whole, interpolate(valid[:, None].to(torch.float32)), 1)
    return torch.where(mask, interpolate(images * valid[:, None]) / weight, 0), nearest[0], nearest[1]


def _take(values: Shaped[Tensor, "n *c h w"], dim: int, index: Int64[Tensor, "n k"]) -> Shaped[Tensor, "n *c i j"]:
    """Return the rows (`dim` -2) or columns (-1) of each tile that `index` names."""
    shape = [len(index), *[1] * (values.ndim - 1)]
    shape[dim] = index.shape[1]
    return values.gather(dim, index.reshape(shape).expand(values.shape))


def _sample_positions(
    length: int, scale: Float64[Tensor, "n 1"], offset: Float64[Tensor, "n 1"]
) -> tuple[Int64[Tensor, "n k"], Int64[Tensor, "n k"], Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Return for each output pixel the source pixels on both sides, the weight of the second, and the nearest one."""
    pixel = torch.arange(length, dtype=torch.float64, device=scale.device)
    centre = offset * (length - length / scale) + (pixel + 0.5) / scale
    first = (centre - 0.5).floor()
    before, after, nearest = (_mirror(values, length) for values in (first, first + 1, centre.floor()))
    return before, after, (centre - 0.5 - first).to(torch.float32), nearest


def _mirror(position: Float64[Tensor, "n k"], length: int) -> Int64[Tensor, "n k"]:
    """Return positions reflected at the edges of `length`."""
    wrapped = position.to(torch.int64) % (2 * length)
    return torch.where(wrapped < length, wrapped, 2 * length - 1 - wrapped)
