"""Drawing on matplotlib Axes, for the `plot` methods of results: pictures with a legend, and scores with intervals.

Only here pyplot is used, and only if no Axes are given: notebooks show its figures.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy import ndarray

from geograft.figures.style import LIGHT, style_axes


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
