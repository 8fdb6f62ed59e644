"""How good networks are with how many labels: a score over the number of training tiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy import ndarray

from geograft.figures.colours import LIGHT, Look, line_colour
from geograft.figures.sheet import Form, blank_sheet, encoded, furnish

MARKERS = "osD^vPX"
"""One a network beside its colour."""
LEAST_GAP = 0.055
"""Between two labels of the axis, as a share of its length."""


@dataclass(frozen=True)
class Values:
    """A score with the ends of its interval, one for each number of tiles; NaN where it does not exist."""

    mean: Float[ndarray, " n"]
    low: Float[ndarray, " n"]
    high: Float[ndarray, " n"]


@dataclass(frozen=True)
class Line:
    """One network."""

    name: str
    tiles: Int[ndarray, " n"]
    """Ascending."""
    values: Values
    seeds: Float[ndarray, "n s"]


def efficiency_figure(lines: Sequence[Line], score: str, look: Look = LIGHT, form: Form = "png") -> bytes:
    """Return the score of every network, up to 1, over the number of training tiles on a log axis.

    The line is the mean of the seeds, the band its interval; of several seeds each is a small dot. `score` names what
    is shown. The axis begins at 0, or at a fifth below all that is shown.
    """
    figure = blank_sheet((7.4, 4.7), look)
    axes = figure.add_subplot()
    furnish(axes, f"{score[0].upper()}{score[1:]}, by the number of training tiles", look)
    axes.set_xscale("log")
    for index, line in enumerate(lines):
        _draw_scores(axes, line, line_colour(look, index), MARKERS[index % len(MARKERS)])
    _label_tiles(axes, np.unique(np.concatenate([line.tiles for line in lines])))
    axes.set_ylim(_lowest(lines), 1)
    axes.set_xlabel(f"training tiles, log scale\n{_words(lines)}", color=look.faint, fontsize=9.5, linespacing=1.5)
    handles = [
        Line2D([], [], color=line_colour(look, i), lw=2.4, marker=MARKERS[i % len(MARKERS)], ms=6.5, label=line.name)
        for i, line in enumerate(lines)
    ]
    short = sum(len(line.name) + 6 for line in lines) < 80
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(lines) if short else 1, frameon=False, fontsize=10,
        labelcolor=look.ink, handlelength=2.4, columnspacing=1.8,
    )  # fmt: skip
    return encoded(figure, form)


def _lowest(lines: Sequence[Line]) -> float:
    shown = np.concatenate([np.append(line.seeds.ravel(), line.values.low) for line in lines])
    return max(math.floor(5 * float(np.nanmin(shown, initial=1.0)) - 0.25) / 5, 0.0)


def _words(lines: Sequence[Line]) -> str:
    seeds = max(line.seeds.shape[1] for line in lines)
    mean = f"line: mean of {seeds} seeds, each a dot; " if seeds > 1 else ""
    return f"{mean}band: 95 % interval over the ground that is scored"


def _draw_scores(axes: Axes, line: Line, colour: str, marker: str) -> None:
    values = line.values
    axes.fill_between(line.tiles, values.low, values.high, color=colour, alpha=0.15, linewidth=0)
    # The ends of bands that lie over each other.
    for end in (values.low, values.high):
        axes.plot(line.tiles, end, color=colour, linewidth=0.8, alpha=0.55)
    if line.seeds.shape[1] > 1:
        for seed in line.seeds.T:
            axes.plot(line.tiles, seed, ".", color=colour, markersize=4.5, alpha=0.8, markeredgewidth=0)
    axes.plot(
        line.tiles, values.mean, marker=marker, color=colour, linewidth=2.4, markersize=6.5,
        markeredgecolor=axes.get_facecolor(), zorder=3,
    )  # fmt: skip


def _label_tiles(axes: Axes, tiles: Int[ndarray, " n"]) -> None:
    """Name every number of tiles that was measured, but for those whose names would touch."""
    low, high = float(tiles[0]) / 1.15, float(tiles[-1]) * 1.15
    axes.set_xlim(low, high)
    place = np.log(tiles / low) / np.log(high / low)
    kept = [int(tiles[-1])]
    last = float(place[-1])
    for number, at in zip(tiles[-2::-1].tolist(), place[-2::-1].tolist(), strict=True):
        if last - at >= LEAST_GAP:
            kept.append(number)
            last = at
    axes.set_xticks(kept, [f"{number:,}" for number in kept])
    axes.xaxis.set_minor_locator(NullLocator())
