"""Colours, light and dark themes, axes with pictures or scores, and encoding of figures.

The colours are distinguishable with the common forms of colour blindness. Source: Okabe & Ito (2008), "Color Universal
Design".
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy import ndarray

RGB = tuple[int, int, int]

TP_COLOUR = "#009E73"
"""True positive: bluish green."""
FP_COLOUR = "#D55E00"
"""False positive: vermilion."""
FN_COLOUR = "#0072B2"
"""False negative: blue."""
NO_DATA_COLOUR = "#BDBAB2"
"""No label or no image: grey."""


@dataclass(frozen=True)
class Theme:
    """The colours of a figure on a light or dark background."""

    paper: str
    ink: str
    faint: str
    """Axes, ticks and secondary text."""
    rule: str
    """Grid lines."""
    lines: tuple[str, ...]
    """One colour per network."""


LIGHT = Theme(
    paper="#FFFFFF",
    ink="#23221E",
    faint="#6B675E",
    rule="#E6E2D8",
    lines=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B27700", "#56B4E9", "#000000"),
)
DARK = Theme(
    paper="#211F1B",
    ink="#EDEAE2",
    faint="#A9A498",
    rule="#3A3731",
    lines=("#4A9EDB", "#F28A3C", "#3ED6A8", "#E29CC3", "#E6B73B", "#A9DBF7", "#FFFFFF"),
)


def rgb(colour: str) -> RGB:
    """Convert #RRGGBB to three integers from 0 to 255.

    >>> rgb("#D55E00")
    (213, 94, 0)
    """
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def line_colour(theme: Theme, index: int) -> str:
    """Return the colour of network `index` of a comparison; colours repeat after the last."""
    return theme.lines[index % len(theme.lines)]


ImageFormat = Literal["png", "svg"]

PIXELS_PER_INCH = 100
METADATA: dict[ImageFormat, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


def new_figure(inches: tuple[float, float], theme: Theme, gap: float = 0.04) -> Figure:
    """Return an empty figure of (width, height) in inches; `gap` between panels is a fraction of their size."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08, wspace=gap, hspace=gap)
    return Figure(figsize=inches, dpi=PIXELS_PER_INCH, facecolor=theme.paper, layout=layout)


def style_axes(axes: Axes, title: str, theme: Theme, grid: Literal["y", "both"] = "y") -> None:
    """Set the title, colours and grid lines of axes; `grid` "y" draws horizontal lines only."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=11, fontweight="bold", pad=9)
    axes.grid(axis=grid, color=theme.rule, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.faint)
    axes.tick_params(colors=theme.faint, labelsize=9.5, length=0, pad=5)


def new_axes(ax: Axes | None = None) -> Axes:
    """Return the given Axes, or those of a new pyplot figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot  # noqa: PLC0415  (chooses a backend for the process)

    axes: Axes = pyplot.subplots(layout="constrained")[1]
    return axes


def draw_picture(
    picture: UInt8[ndarray, "h w 3"], title: str, colours: Mapping[str, str], ax: Axes | None = None
) -> Axes:
    """Draw a picture without ticks, with a legend of named colours below it."""
    axes = new_axes(ax)
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=11, fontweight="bold")
    axes.spines[:].set_visible(False)
    draw_legend(axes, colours)
    return axes


def draw_legend(axes: Axes, colours: Mapping[str, str]) -> None:
    """Draw a legend of named colours below the Axes."""
    handles = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=4, frameon=False, fontsize=9)


def draw_scores(
    title: str,
    scores: Mapping[str, tuple[float, Sequence[float] | None]],
    colours: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Draw scores from 0 to 1 as bars, with their values and confidence intervals; undefined scores have no bar.

    `scores` are (value, interval) by name.
    """
    axes = new_axes(ax)
    style_axes(axes, title, LIGHT, "both")
    places = [float(place) for place in range(len(scores))]
    values = np.array([value for value, _ in scores.values()], float)
    axes.barh(places, np.nan_to_num(values), color=list(colours), height=0.6)
    for place, (value, interval) in zip(places, scores.values(), strict=True):
        ends = interval or (value, value)
        if interval:
            axes.plot(interval, [place, place], color=LIGHT.ink, linewidth=1.5, marker="|", markersize=9)
        if np.isfinite(value):
            axes.text(max(value, ends[1]) + 0.02, place, f"{value:.2f}", va="center", color=LIGHT.ink, fontsize=9)
    axes.set(xlim=(0, 1.1), yticks=places, yticklabels=list(scores))
    axes.invert_yaxis()
    return axes


def encode_figure(figure: Figure, image_format: ImageFormat) -> bytes:
    """Return the figure as SVG, or as PNG at twice its size for high-density screens; the output is deterministic."""
    buffer = io.BytesIO()
    # A fixed salt makes the ids in an SVG deterministic.
    with rc_context({"svg.hashsalt": "geograft"}):
        figure.savefig(
            buffer,
            format=image_format,
            dpi=2 * PIXELS_PER_INCH,
            facecolor=figure.get_facecolor(),
            metadata=METADATA[image_format],
        )
    return buffer.getvalue()
