"""How far ground resembles itself, over how far held-out tiles lie from training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy import ndarray

from geograft.figures.style import LIGHT, Look, blank_sheet, encoded, furnish, line_colour

BARS = 24
HELD_LINE = 4
"""Which colours of a look the splits have: after those of the curves, and never the same."""


@dataclass(frozen=True)
class Curve:
    """One variogram: points, and the model through them where there is one."""

    name: str
    lag: Float[ndarray, " l"]
    """Distances, ascending."""
    gamma: Float[ndarray, " l"]
    model: Float[ndarray, "2 m"] | None = None
    """Distances and the model there."""
    sill: float | None = None
    range: float | None = None
    """Where the model reaches its sill; None where it does not within the distances."""


def variogram_figure(
    curves: Sequence[Curve], distances: Mapping[str, Float[ndarray, " _"]], unit: str, look: Look = LIGHT
) -> bytes:
    """Return the variograms, each as a share of its sill, over the distances of held-out tiles to training, as PNG.

    `distances` holds, by the name of a split, one distance a tile in `unit`; those beyond the longest lag share the
    last bar, infinite ones too.
    """
    figure = blank_sheet((8.2, 5.4), look, gap=0.06)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
    longest = max((float(curve.lag[-1]) for curve in curves if len(curve.lag)), default=1.0)
    furnish(upper, "How unlike two pixels are, by their distance", look)
    furnish(lower, "Val and test tiles, by the distance to the nearest training tile", look)
    for index, curve in enumerate(curves):
        _draw_curve(upper, curve, line_colour(look, index), unit, top=1.4 - 0.1 * index)
    upper.set_ylim(0, 1.46)
    upper.set_yticks([0, 0.5, 1], ["the same", "half", "as any two"])
    _draw_distances(lower, distances, longest, look)
    lower.set_xlim(0, longest * (1 + 1 / BARS))
    lower.set_xlabel(f"distance in {'metres' if unit == 'm' else 'pixels'}", color=look.faint, fontsize=9.5)
    if curves:
        upper.legend(loc="lower right", frameon=False, fontsize=10, labelcolor=look.ink)
    if distances:
        lower.legend(loc="upper center", frameon=False, fontsize=9.5, labelcolor=look.ink, ncols=len(distances))
    return encoded(figure, "png")


def _draw_curve(axes: Axes, curve: Curve, colour: str, unit: str, top: float) -> None:
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


def _draw_distances(axes: Axes, distances: Mapping[str, ndarray], longest: float, look: Look) -> None:
    edges = np.linspace(0, longest, BARS + 1)
    width = edges[1] / (len(distances) + 0.4)
    for index, (split, values) in enumerate(distances.items()):
        counts = np.histogram(values[values <= longest], edges)[0]
        heights = np.append(counts, (~(values <= longest)).sum())
        axes.bar(
            np.append(edges[:-1], longest) + width * (index + 0.2), heights, width, align="edge",
            color=line_colour(look, HELD_LINE - index * 2), label=split,
        )  # fmt: skip
    axes.set_ylabel("tiles", color=look.faint, fontsize=9.5)
    if any((~(values <= longest)).any() for values in distances.values()):
        axes.text(
            1, -0.16, "farther", transform=axes.transAxes, color=look.faint, fontsize=9.5, ha="right", va="top",
        )  # fmt: skip
