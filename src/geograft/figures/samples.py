"""Image, label and what each network makes of it, side by side."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy import ndarray

from geograft.counting import known_in
from geograft.figures.colours import LIGHT, UNKNOWN
from geograft.figures.pictures import Picture, class_picture, painted, tile_iou
from geograft.legend import Legend

CELL_INCH = 1.9
PIXELS_PER_INCH = 120


@dataclass(frozen=True)
class Sample:
    """One tile: its picture, its label and each network's map, all of one height and width."""

    picture: Picture
    label: UInt8[ndarray, "*k h w"]
    maps: Mapping[str, UInt8[ndarray, "*k h w"]]
    """By the network's name. Class indices, or of overlapping classes 0 and 1 of each."""


def label_picture(sample: Sample, legend: Legend) -> Picture:
    """Return the label in the classes' colours over the grey picture; unlabelled pixels are plain grey."""
    shown = class_picture(sample.picture, sample.label, legend.colours)
    return painted(shown, ~known_in(sample.label), UNKNOWN, 1.0)


def map_picture(sample: Sample, name: str, legend: Legend) -> Picture:
    """Return the map of network `name` in the classes' colours over the grey picture."""
    return class_picture(sample.picture, sample.maps[name], legend.colours)


def samples_figure(samples: Sequence[Sample], legend: Legend) -> bytes:
    """Return one row a sample as PNG: image, label, then each network's map with its IoU on that tile.

    Raises:
        ValueError: for no samples, or samples of different networks.
    """
    if not samples or any(sample.maps.keys() != samples[0].maps.keys() for sample in samples):
        raise ValueError("samples_figure needs at least one sample, and the same networks in each")
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
                (map_picture(sample, name, legend), "no such class" if math.isnan(score) else f"IoU {score:.2f}")
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
