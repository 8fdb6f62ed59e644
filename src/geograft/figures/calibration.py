"""Figures of calibration: the reliability diagram and the precision-recall curve."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy import ndarray

from geograft.figures.style import LIGHT, Theme, encode_figure, line_colour, new_figure, style_axes

MIN_DOT_AREA, MAX_DOT_AREA = 12.0, 130.0
"""Area of the dots of an empty and of the fullest bin, in square points."""


@dataclass(frozen=True)
class OperatingPoint:
    """The point of a precision-recall curve at the threshold of the map."""

    threshold: float
    precision: float
    recall: float


def reliability_figure(
    confidence: Float[ndarray, " b"],
    observed: Float[ndarray, " b"],
    pixels: Float[ndarray, " b"],
    axis_labels: tuple[str, str],
    theme: Theme = LIGHT,
) -> bytes:
    """Return the reliability diagram as SVG: observed frequency against mean confidence, both 0 to 1.

    Each bin is a dot whose size grows with its number of `pixels`; empty bins are left out. `axis_labels`: x, y.
    Niculescu-Mizil & Caruana (2005), ICML, section 4; bins as in Guo et al. (2017), ICML, figure 1.
    """
    figure, axes = _unit_square("Reliability diagram", axis_labels, theme)
    axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1.3, linestyle=(0, (4, 1.6)))
    axes.text(
        0.03, 0.09, "perfectly calibrated", color=theme.faint, fontsize=9.5, rotation=45, rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip
    filled = pixels > 0
    x, y, colour = confidence[filled], observed[filled], line_colour(theme, 0)
    axes.plot(x, y, color=colour, linewidth=2.2)
    sizes = MIN_DOT_AREA + (MAX_DOT_AREA - MIN_DOT_AREA) * np.sqrt(pixels[filled] / max(pixels.max(initial=0.0), 1.0))
    axes.scatter(x, y, sizes, color=colour, edgecolor=theme.paper, linewidth=1, zorder=3)
    axes.text(0.98, 0.03, "overconfident", color=theme.faint, fontsize=9.5, ha="right")
    axes.text(0.02, 0.94, "underconfident", color=theme.faint, fontsize=9.5)
    return encode_figure(figure, "svg")


def precision_recall_figure(
    precision: Float[ndarray, " t"],
    recall: Float[ndarray, " t"],
    point: OperatingPoint,
    axis_labels: tuple[str, str],
    theme: Theme = LIGHT,
) -> bytes:
    """Return the precision-recall curve as SVG, with the threshold of the map marked.

    `axis_labels`: x, y. The curve has gaps where precision or recall is NaN.
    """
    figure, axes = _unit_square("Precision-recall curve", axis_labels, theme)
    colour = line_colour(theme, 0)
    axes.plot(recall, precision, color=colour, linewidth=2.2)
    axes.plot([point.recall], [point.precision], "o", color=line_colour(theme, 1), markersize=9, mec=theme.paper)
    up = point.precision < 0.5
    axes.annotate(
        f"threshold {point.threshold:.2f}", (point.recall, point.precision), (0, 14 if up else -14),
        textcoords="offset points", ha="right" if point.recall > 0.5 else "left", va="bottom" if up else "top",
        color=theme.ink, fontsize=10,
    )  # fmt: skip
    return encode_figure(figure, "svg")


def _unit_square(title: str, axis_labels: tuple[str, str], theme: Theme) -> tuple[Figure, Axes]:
    """Return a figure with axes from 0 to 100 %."""
    figure = new_figure((4.9, 4.6), theme)
    axes = figure.add_subplot()
    style_axes(axes, title, theme, grid="both")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel(axis_labels[0], color=theme.faint, fontsize=9.5)
    axes.set_ylabel(axis_labels[1], color=theme.faint, fontsize=9.5)
    return figure, axes
