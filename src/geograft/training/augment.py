"""Data augmentation: flips and rotations, scale, colour jitter and copy-paste.

Single tiles are augmented in NumPy, whole batches in torch on a device, with the same draws. Flips, rotations and
labels have the same bits either way and on every device; colours and scales differ by rounding. Functions that draw
random numbers take the generator as an argument: equal generators give equal tiles.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from geograft.labels import Label
from geograft.legend import IGNORE
from geograft.losses.segmentation import LabelTensor
from geograft.networks.device import memory_format_for, stored_values, transfer_form

Augment = Literal["none", "dihedral", "colour"]

TrainingTile: TypeAlias = tuple[Shaped[ndarray, "b h w"], Label]
"""Image in its own units, and label."""

JITTER = 0.3
"""Largest change: of the brightness, in standard deviations of a band, once for all bands and once for each band; of
contrast and saturation, as a fraction."""


class Draws(NamedTuple):
    """What was drawn at random for a tile. The defaults leave it as it is."""

    element: int = 0
    """Symmetry of the square, see `dihedral`."""
    scale: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    """See `rescale`."""
    contrast: float = 0.0
    saturation: float = 0.0
    brightness: tuple[float, ...] = ()
    """By band, see `jitter_colours`; empty: no colour jitter."""


def draw_colours_and_symmetry(shape: tuple[int, ...], bands: int, augment: Augment, rng: np.random.Generator) -> Draws:
    """Return the random symmetry of a tile of `shape` (height, width), and its colours if `augment` is "colour".

    `bands` is the number of bands that are jittered. Tiles that are not square are not transposed.
    """
    if augment == "none":
        return Draws()
    colours: tuple[float, float, tuple[float, ...]] = (0.0, 0.0, ())
    if augment == "colour":
        common, contrast, saturation, *by_band = rng.uniform(-JITTER, JITTER, 3 + bands)
        colours = contrast, saturation, tuple(common + np.array(by_band))
    return Draws(int(rng.integers(8 if shape[0] == shape[1] else 4)), 1.0, (0.0, 0.0), *colours)


def draw_scale(jitter: float, rng: np.random.Generator) -> tuple[float, tuple[float, float]]:
    """Return a random scale, log-uniform from 1 / (1 + jitter) to 1 + jitter, and a random offset."""
    power, row, col = rng.random(3)
    return float((1 + jitter) ** (2 * power - 1)), (float(row), float(col))


def dihedral(pixels: Shaped[ndarray, "*n h w"], element: int) -> Shaped[ndarray, "*n i j"]:
    """Return (..., H, W) `pixels` under one of the eight symmetries of the square (dihedral group D4), 0 to 7.

    0 is the identity. Bit 2 of `element` transposes rows and columns, then bit 1 reverses the rows, then bit 0 the
    columns. Returns a view: nothing is copied or resampled.
    """
    transposed = pixels.swapaxes(-1, -2) if element & 4 else pixels
    return transposed[..., :: -1 if element & 2 else 1, :: -1 if element & 1 else 1]


def inverse(element: int) -> int:
    """Return the inverse of the symmetry `element`.

    >>> inverse(5)
    6
    """
    return element if element < 4 else (4, 6, 5, 7)[element - 4]


def jitter_colours(
    image: Float32[ndarray, "b h w"],
    valid: Bool[ndarray, "h w"],
    std: Float[ndarray, " b"],
    brightness: Float[ndarray, " b"],
    contrast: float,
    saturation: float,
) -> Float32[ndarray, "b h w"]:
    """Return `image`, in its own units, with changed brightness, contrast and saturation; 0 leaves each unchanged.

    `brightness` adds that many standard deviations `std` to each band: values that differ between bands imitate another
    light, haze or sensor. `contrast` scales the distance to the tile's mean over `valid` pixels by 1 + contrast;
    `saturation` scales the distance to the mean of the bands by 1 + saturation, for three bands only. Works for any
    number of bands and any unit; does not clip.
    """
    centre = image.mean(axis=(1, 2), keepdims=True, where=valid) if valid.any() else 0.0
    result: ndarray = centre + (1 + contrast) * (image - centre) + (brightness * std)[:, None, None]
    if len(image) == 3:
        grey = result.mean(axis=0, keepdims=True)
        result = grey + (1 + saturation) * (result - grey)
    return result.astype(np.float32)


def augment_tile(
    image: Float32[ndarray, "b h w"],
    label: Label,
    valid: Bool[ndarray, "h w"],
    std: Float[ndarray, " c"],
    augment: Augment,
    rng: np.random.Generator,
) -> tuple[Float32[ndarray, "b i j"], UInt8[ndarray, "i j"] | Float32[ndarray, "o i j"], Bool[ndarray, "i j"]]:
    """Return image, label and valid pixels under a random symmetry, with colour jitter if `augment` is "colour".

    `std` has the standard deviations of the first C of the B bands. Only these are jittered: spectral indices, which
    hardly depend on the light, follow them. Tiles that are not square are flipped but not transposed, and keep their
    shape.
    """
    drawn = draw_colours_and_symmetry(valid.shape, len(std), augment, rng)
    if drawn.brightness:
        colours = np.array(drawn.brightness), drawn.contrast, drawn.saturation
        image = np.concatenate([jitter_colours(image[: len(std)], valid, std, *colours), image[len(std) :]])
    return dihedral(image, drawn.element), dihedral(label, drawn.element), dihedral(valid, drawn.element)


def rescale(
    image: Float32[ndarray, "b h w"],
    label: Label,
    valid: Bool[ndarray, "h w"],
    scale: float,
    offset: tuple[float, float],
) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
    """Return the tile at another scale and of the same size: a crop of it enlarged, or all of it shrunk and padded.

    `offset`, 0 to 1 for rows and columns, is the position of the crop, or of the shrunk tile, which is padded by
    reflection. The image is interpolated (bilinear) between valid pixels, for any number and unit of bands; the label
    takes the nearest pixel.
    """
    height, width = valid.shape
    above, below, down, row = _sample_positions(height, scale, offset[0])
    left, beside, right, col = _sample_positions(width, scale, offset[1])

    def interpolate(values: Float32[ndarray, "*n h w"]) -> Float32[ndarray, "*n h w"]:
        rows = values[..., above, :] * (1 - down)[:, None] + values[..., below, :] * down[:, None]
        interpolated: Float32[ndarray, "*n h w"] = rows[..., left] * (1 - right) + rows[..., beside] * right
        return interpolated

    resampled_valid = valid[row[:, None], col]
    if valid.all():
        return interpolate(image), label[..., row[:, None], col], resampled_valid
    # The nearest pixel has at least a quarter of the weight, so that none of these is zero.
    weight = np.where(resampled_valid, interpolate(valid.astype(np.float32)), np.float32(1))
    return (
        np.where(resampled_valid, interpolate(image * valid) / weight, np.float32(0)),
        label[..., row[:, None], col],
        resampled_valid,
    )


def jitter_scale(
    image: Float32[ndarray, "b h w"],
    label: Label,
    valid: Bool[ndarray, "h w"],
    jitter: float,
    rng: np.random.Generator,
) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
    """Return the tile at a random scale; see `draw_scale` and `rescale`."""
    return rescale(image, label, valid, *draw_scale(jitter, rng))


def paste_class(tile: TrainingTile, other: TrainingTile, index: int) -> TrainingTile:
    """Return `tile` with the pixels of class `index` pasted from `other`, image and label.

    A pixel with a fractional label belongs to the class that has more than half of it. Source: Ghiasi et al. (2021),
    "Simple copy-paste is a strong data augmentation method for instance segmentation".
    """
    (image, label), (from_image, from_label) = tile, other
    mask = _class_mask(from_label, index)
    return np.where(mask, from_image, image), np.where(mask, from_label, label)


def _class_mask(label: Label, index: int) -> Bool[ndarray, "h w"]:
    """Return the mask of class `index`. A fractional label with one band is that of class 1; class 0 has the rest."""
    if label.ndim == 2:
        return np.asarray(label == index)
    fraction = label[index] if len(label) > 1 else (1 - label[0], label[0])[index]
    return np.asarray(fraction > 0.5)


def _sample_positions(
    length: int, scale: float, offset: float
) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"], Float32[ndarray, " n"], Int64[ndarray, " n"]]:
    """Return for each output pixel the source pixels on both sides, the weight of the second, and the nearest one."""
    centre = offset * (length - length / scale) + (np.arange(length) + 0.5) / scale
    first = np.floor(centre - 0.5)
    weight = (centre - 0.5 - first).astype(np.float32)
    before, after, nearest = (_mirror(values, length) for values in (first, first + 1, np.floor(centre)))
    return before, after, weight, nearest


def _mirror(position: Float[ndarray, " n"], length: int) -> Int64[ndarray, " n"]:
    """Return positions reflected at the edges of `length`."""
    wrapped = position.astype(np.int64) % (2 * length)
    return np.where(wrapped < length, wrapped, 2 * length - 1 - wrapped)


ELEMENT, SCALE, ROW, COL, CONTRAST, SATURATION, BRIGHTNESS = range(7)
"""Columns of `StoredBatch.draws`; the brightness of the first band, and of the others from there on."""


class StoredBatch(NamedTuple):
    """Tiles of a batch as they are stored, on the CPU, and what was drawn for each.

    Stored pixels of 8 bits are a quarter of the bytes of float32 to copy to the device.
    """

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
    """Augments and scales the batches of a training on `device`. Nothing here waits for the device."""

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
    """Return the masks of pixels with image data, as `geograft.labels.image_mask`."""
    labelled = label != IGNORE if label.ndim == 3 else label.isfinite().any(dim=1)
    return labelled | (images != 0).any(dim=1)


def dihedral_batch(pixels: Shaped[Tensor, "n *c h w"], element: UInt8[Tensor, " n"]) -> Shaped[Tensor, "n *c h w"]:
    """Return each tile under its symmetry, as `dihedral`; below 4 for rectangles."""

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
    """Return images with the colours of `draws`, as `jitter_colours`."""
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
    """Return the tiles at the scales and offsets of `draws`, as `rescale`."""
    scale = draws[:, SCALE, None]
    above, below, down, row = _batch_positions(valid.shape[1], scale, draws[:, ROW, None])
    left, beside, right, col = _batch_positions(valid.shape[2], scale, draws[:, COL, None])

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


def _batch_positions(
    length: int, scale: Float64[Tensor, "n 1"], offset: Float64[Tensor, "n 1"]
) -> tuple[Int64[Tensor, "n k"], Int64[Tensor, "n k"], Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Return for each output pixel the source pixels on both sides, the weight of the second, and the nearest one."""
    pixel = torch.arange(length, dtype=torch.float64, device=scale.device)
    centre = offset * (length - length / scale) + (pixel + 0.5) / scale
    first = (centre - 0.5).floor()
    before, after, nearest = (_mirror_batch(values, length) for values in (first, first + 1, centre.floor()))
    return before, after, (centre - 0.5 - first).to(torch.float32), nearest


def _mirror_batch(position: Float64[Tensor, "n k"], length: int) -> Int64[Tensor, "n k"]:
    """Return positions reflected at the edges of `length`."""
    wrapped = position.to(torch.int64) % (2 * length)
    return torch.where(wrapped < length, wrapped, 2 * length - 1 - wrapped)
