"""Variograms of image and labels, above the distances of held-out tiles from the nearest training tile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy import ndarray

from geograft.figures.style import LIGHT, Theme, encode_figure, line_colour, new_figure, style_axes

BINS = 24
FIRST_SPLIT_COLOUR = 4
"""Index of the first split's line colour, after those of the curves."""


@dataclass(frozen=True)
class VariogramCurve:
    """An empirical variogram, with the fitted model if there is one."""

    name: str
    lag: Float[ndarray, " l"]
    """Distances, ascending."""
    gamma: Float[ndarray, " l"]
    model: Float[ndarray, "2 m"] | None = None
    """Distances and model values."""
    sill: float | None = None
    range: float | None = None
    """Distance at which the model reaches its sill; None if beyond the longest lag."""


def variogram_figure(
    curves: Sequence[VariogramCurve], distances: Mapping[str, Float[ndarray, " _"]], unit: str, theme: Theme = LIGHT
) -> bytes:
    """Return the variograms, divided by their sills, above a histogram of distances to training tiles, as PNG.

    `distances`: by split, one distance per tile in `unit`; those beyond the longest lag, also infinite ones, are
    counted in the last bar.
    """
    figure = new_figure((8.2, 5.4), theme, gap=0.06)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
    longest = max((float(curve.lag[-1]) for curve in curves if len(curve.lag)), default=1.0)
    style_axes(upper, "Variogram: semivariance of two pixels by their distance", theme)
    style_axes(lower, "Distance from val and test tiles to the nearest training tile", theme)
    for index, curve in enumerate(curves):
        _draw_curve(upper, curve, line_colour(theme, index), unit, top=1.4 - 0.1 * index)
    upper.set_ylim(0, 1.46)
    upper.set_yticks([0, 0.5, 1], ["0", "half the sill", "sill"])
    _draw_distances(lower, distances, longest, theme)
    lower.set_xlim(0, longest * (1 + 1 / BINS))
    lower.set_xlabel(f"distance in {'metres' if unit == 'm' else 'pixels'}", color=theme.faint, fontsize=9.5)
    if curves:
        upper.legend(loc="lower right", frameon=False, fontsize=10, labelcolor=theme.ink)
    if distances:
        lower.legend(loc="upper center", frameon=False, fontsize=9.5, labelcolor=theme.ink, ncols=len(distances))
    return encode_figure(figure, "png")


def _draw_curve(axes: Axes, curve: VariogramCurve, colour: str, unit: str, top: float) -> None:
    sill = curve.sill or float(curve.gamma.max(initial=0.0)) or 1.0
    axes.plot(curve.lag, curve.gamma / sill, "o", color=colour, markersize=3.5, alpha=0.75, markeredgewidth=0)
    model = curve.model if curve.model is not None else np.zeros((2, 0))
    axes.plot(model[0], model[1] / sill, color=colour, linewidth=2.2, label=curve.name)
    if curve.range is not None:
        axes.plot([curve.range, curve.range], [0, top], color=colour, linewidth=1.2, linestyle=(0, (4, 1.6)))
        digits = 1 if curve.range < 100 and unit == "m" else 0
        text = f" {curve.name}: {curve.range:,.{digits}f} {unit}"
        right = curve.range > 0.7 * float(curve.lag[-1])
        axes.text(
            curve.range, top, text.strip() + " " if right else text,
            color=colour, fontsize=9.5, va="center", ha="right" if right else "left", zorder=5,
            bbox={"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def _draw_distances(axes: Axes, distances: Mapping[str, ndarray], longest: float, theme: Theme) -> None:
    edges = np.linspace(0, longest, BINS + 1)
    width = edges[1] / (len(distances) + 0.4)
    for index, (split, values) in enumerate(distances.items()):
        counts = np.histogram(values[values <= longest], edges)[0]
        heights = np.append(counts, (~(values <= longest)).sum())
        axes.bar(
            np.append(edges[:-1], longest) + width * (index + 0.2), heights, width, align="edge",
            color=line_colour(theme, FIRST_SPLIT_COLOUR - index * 2), label=split,
        )  # fmt: skip
    axes.set_ylabel("tiles", color=theme.faint, fontsize=9.5)
    if any((~(values <= longest)).any() for values in distances.values()):
        axes.text(
            1, -0.16, "beyond", transform=axes.transAxes, color=theme.faint, fontsize=9.5, ha="right", va="top",
        )  # fmt: skip
