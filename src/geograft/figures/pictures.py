"""Tiles and scenes as RGB pictures, uint8 (H, W, 3): image, label, map, errors and splits."""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Patch
from numpy import ndarray

from geograft.figures.style import FN_COLOUR, FP_COLOUR, LIGHT, NO_DATA_COLOUR, TP_COLOUR, rgb
from geograft.legend import IGNORE, Legend
from geograft.metrics.confusion import ConfusionScheme, known_mask

Picture = UInt8[ndarray, "h w 3"]
Limits = Float32[ndarray, "shown 2"]

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = 1, 2, 3
"""Pixel values of `outcomes`; 0 is everything else."""

LUMA = np.array([0.299, 0.587, 0.114])
SPLIT_WEIGHT, CORRECT_WEIGHT, ERROR_WEIGHT = 0.3, 0.45, 0.85
"""Weight of the colour when it is blended into the picture: for splits, correct pixels and errors."""


def stretch_limits(images: Iterable[Shaped[ndarray, "_ _ _"]], valids: Iterable[Bool[ndarray, "_ _"]]) -> Limits:
    """Return the 2nd and 98th percentile of the first bands over all valid pixels, (1 or 3, 2).

    Three bands if there are at least three, else the first. Memory: the valid pixels of those bands in all images.
    """
    shown = [image[: _bands_shown(len(image))][:, valid] for image, valid in zip(images, valids, strict=True)]
    pixels = np.concatenate(shown, axis=1)
    if pixels.shape[1] == 0:
        return np.tile(np.array([0, 1], np.float32), (len(pixels), 1))
    limits: ndarray = np.percentile(pixels, (2, 98), axis=1).T
    return limits.astype(np.float32)


def stretch(image: Shaped[ndarray, "b h w"], valid: Bool[ndarray, "h w"], limits: Limits) -> Picture:
    """Scale the first one or three bands linearly so that `limits` become 0 and 255; grey where not valid."""
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    bands = image[: len(limits)].astype(np.float32)
    scaled = (bands - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    picture = np.clip(np.nan_to_num(scaled) * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.where(valid[..., None], picture, np.array(rgb(NO_DATA_COLOUR), np.uint8))


def grey(picture: Picture) -> Picture:
    """Return the picture's luma (ITU-R BT.601), brightened so that colours on top of it stay distinct."""
    luma = picture @ LUMA
    return np.repeat((48 + luma * 0.75).astype(np.uint8)[..., None], 3, axis=2)


def blend_colour(picture: Picture, where: Bool[ndarray, "h w"], colour: str, weight: float) -> Picture:
    """Blend `colour` into the picture with `weight` where the mask `where` is true."""
    mixed = np.rint((1 - weight) * picture + weight * np.array(rgb(colour))).astype(np.uint8)
    return np.where(where[..., None], mixed, picture)


def draw_outline(picture: Picture, where: Bool[ndarray, "h w"], colour: str, width: int = 1) -> Picture:
    """Draw the inner outline of the mask `where`, `width` pixels wide; the picture's border counts as an edge."""
    inner = np.pad(where, width)
    for _ in range(width):
        inner = np.pad(inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:], 1)
    edge = where & ~inner[width:-width, width:-width]
    return blend_colour(picture, edge, colour, 1.0)


def outcomes(
    label: UInt8[ndarray, "h w"], mapped: UInt8[ndarray, "h w"], class_index: int = 1
) -> UInt8[ndarray, "h w"]:
    """Return TRUE_POSITIVE, FALSE_POSITIVE or FALSE_NEGATIVE of a class per pixel; 0 elsewhere and where unlabelled."""
    labelled, here = label == class_index, mapped == class_index
    result = np.zeros(label.shape, np.uint8)
    result[labelled & here] = TRUE_POSITIVE
    result[~labelled & here & (label != IGNORE)] = FALSE_POSITIVE
    result[labelled & ~here] = FALSE_NEGATIVE
    return result


def outcome_picture(picture: Picture, outcome: UInt8[ndarray, "h w"]) -> Picture:
    """Return the grey picture with true positives in green, false positives in vermilion, false negatives in blue."""
    result = blend_colour(grey(picture), outcome == TRUE_POSITIVE, TP_COLOUR, CORRECT_WEIGHT)
    result = blend_colour(result, outcome == FALSE_POSITIVE, FP_COLOUR, ERROR_WEIGHT)
    return blend_colour(result, outcome == FALSE_NEGATIVE, FN_COLOUR, ERROR_WEIGHT)


def error_picture(picture: Picture, label: UInt8[ndarray, "*k h w"], mapped: UInt8[ndarray, "*k h w"]) -> Picture:
    """Return the grey picture with misclassified pixels in vermilion.

    With overlapping classes (k, h, w), pixels where at least one class is wrong.
    """
    wrong = (label != mapped) & (label != IGNORE)
    return blend_colour(grey(picture), wrong if wrong.ndim == 2 else wrong.any(axis=0), FP_COLOUR, ERROR_WEIGHT)


def class_picture(picture: Picture, classes: UInt8[ndarray, "*k h w"], colours: Sequence[str]) -> Picture:
    """Return the grey picture with its classes in colour; the negative class of two and unlabelled pixels stay grey.

    With overlapping classes (k, h, w), of 0 and 1, a pixel has the mean colour of its classes.
    """
    if classes.ndim == 3:
        return _blended(grey(picture), classes == 1, colours)
    result = grey(picture)
    first = 1 if len(colours) == 2 else 0
    for index in range(first, len(colours)):
        result = blend_colour(result, classes == index, colours[index], 0.6)
    return result


def _blended(picture: Picture, there: Bool[ndarray, "k h w"], colours: Sequence[str]) -> Picture:
    total = np.einsum("khw,kc->hwc", there.astype(np.float64), np.array([rgb(colour) for colour in colours], float))
    count = there.sum(axis=0)[..., None]
    mixed = np.rint(0.4 * picture + 0.6 * total / np.maximum(count, 1)).astype(np.uint8)
    return np.where(count > 0, mixed, picture)


def split_picture(
    picture: Picture, covered: Mapping[str, Bool[ndarray, "h w"]], colours: Mapping[str, str], line_px: int = 3
) -> Picture:
    """Return the picture with the area of each split outlined in its colour; the rest is grey.

    With several splits, their areas are tinted in their colours too.
    """
    there = {name: where for name, where in covered.items() if where.any()}
    held = np.any([np.zeros(picture.shape[:2], bool), *there.values()], axis=0)
    result = np.where(held[..., None], picture, grey(picture))
    for name, where in there.items():
        tinted = blend_colour(result, where, colours[name], SPLIT_WEIGHT) if len(there) > 1 else result
        result = draw_outline(tinted, where, colours[name], line_px)
    return result


def downsample(picture: Picture, longest_px: int) -> UInt8[ndarray, "small_h small_w 3"]:
    """Downsample the picture by an integer factor, as the mean of squares, so that no side exceeds `longest_px`.

    Incomplete squares at the lower and right edge are dropped.
    """
    factor = downsample_factor(picture.shape[0], picture.shape[1], longest_px)
    height, width = (max(side // factor, 1) for side in picture.shape[:2])
    if factor == 1:
        return picture
    squares = picture[: height * factor, : width * factor].reshape(height, -1, width, min(factor, picture.shape[1]), 3)
    mean: ndarray = np.rint(squares.mean(axis=(1, 3)))
    return mean.astype(np.uint8)


def downsample_factor(height: int, width: int, longest_px: int) -> int:
    """Return the smallest integer factor that brings both sides to at most `longest_px`.

    >>> downsample_factor(1000, 640, 480)
    3
    """
    return -(-max(height, width) // longest_px)


def tile_iou(label: UInt8[ndarray, "*k h w"], mapped: UInt8[ndarray, "*k h w"], classes: int) -> float:
    """Return a tile's IoU: of the positive class, or the mean over classes in label or map; NaN if there are none."""
    scheme = ConfusionScheme(classes, overlapping=label.ndim == 3)
    return scheme.headline(scheme.confusion(label, mapped))["iou"]


def jpeg(picture: Picture, quality: int = 84) -> bytes:
    """Return the picture as JPEG without chroma subsampling, so that coloured edges stay sharp."""
    options = {"quality": quality, "subsampling": 0, "optimize": True}
    return _encoded(picture, "jpg", options)


def png(picture: Picture) -> bytes:
    """Return the picture as PNG."""
    return _encoded(picture, "png", {"optimize": True})


def _encoded(picture: Picture, form: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(picture), format=form, pil_kwargs=options)
    return buffer.getvalue()


def _bands_shown(bands: int) -> int:
    return 3 if bands >= 3 else 1


CELL_INCH = 1.9
PIXELS_PER_INCH = 120


@dataclass(frozen=True)
class ExampleTile:
    """One tile: picture, label and the map of each network, all of the same height and width."""

    picture: Picture
    label: UInt8[ndarray, "*k h w"]
    maps: Mapping[str, UInt8[ndarray, "*k h w"]]
    """By network: class indices, or 0 and 1 for each overlapping class."""


def label_picture(sample: ExampleTile, legend: Legend) -> Picture:
    """Return the label in class colours over the grey picture; unlabelled pixels are plain grey."""
    shown = class_picture(sample.picture, sample.label, legend.colours)
    return blend_colour(shown, ~known_mask(sample.label), NO_DATA_COLOUR, 1.0)


def map_picture(sample: ExampleTile, name: str, legend: Legend) -> Picture:
    """Return the map of the network `name` in class colours over the grey picture."""
    return class_picture(sample.picture, sample.maps[name], legend.colours)


def examples_figure(samples: Sequence[ExampleTile], legend: Legend) -> bytes:
    """Return a PNG with one row per tile: image, label, and each network's map with its IoU.

    Raises:
        ValueError: without tiles, or if tiles have maps of different networks.
    """
    if not samples or any(sample.maps.keys() != samples[0].maps.keys() for sample in samples):
        raise ValueError(
            f"examples_figure needs at least one tile and the same networks in each; got {len(samples)} tiles"
        )
    names = list(samples[0].maps)
    figure = Figure(
        figsize=((2 + len(names)) * CELL_INCH, len(samples) * (CELL_INCH + 0.12) + 0.75),
        dpi=PIXELS_PER_INCH,
        facecolor=LIGHT.paper,
        layout="constrained",
    )
    grid = figure.subplots(len(samples), 2 + len(names), squeeze=False)
    for row, sample in zip(grid, samples, strict=True):
        cells = [(sample.picture, ""), (label_picture(sample, legend), "")]
        for name in names:
            score = tile_iou(sample.label, sample.maps[name], len(legend.names))
            cells.append(
                (map_picture(sample, name, legend), "class absent" if math.isnan(score) else f"IoU {score:.2f}")
            )
        for axes, (picture, note) in zip(row, cells, strict=True):
            axes.imshow(picture)
            axes.set_xlabel(note, color=LIGHT.faint, fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], ["image", "label", *names], strict=True):
        axes.set_title(textwrap.fill(title, 21), color=LIGHT.ink, fontsize=9, fontweight="bold")
    _class_legend(figure, legend)
    return _png(figure)


def _class_legend(figure: Figure, legend: Legend) -> None:
    first = 1 if legend.binary else 0
    pairs = list(zip(legend.names, legend.colours, strict=True))[first:]
    handles = [Patch(facecolor=colour, label=name) for name, colour in pairs]
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=6,
        frameon=False,
        fontsize=9,
        labelcolor=LIGHT.ink,
        borderpad=0.1,
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()
