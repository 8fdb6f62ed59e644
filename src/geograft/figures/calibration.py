"""How far probabilities can be believed: the reliability diagram, and precision over recall."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy import ndarray

from geograft.figures.style import LIGHT, Look, blank_sheet, encoded, furnish, line_colour

LEAST_DOT, MOST_DOT = 12.0, 130.0
"""Areas of a dot, in square points: of no pixels, of the fullest bin."""


@dataclass(frozen=True)
class Chosen:
    """The point of a precision-recall curve at which the map was made."""

    threshold: float
    precision: float
    recall: float


def reliability_figure(
    confidence: Float[ndarray, " b"],
    right: Float[ndarray, " b"],
    pixels: Float[ndarray, " b"],
    words: tuple[str, str],
    look: Look = LIGHT,
) -> bytes:
    """Return the reliability diagram as SVG: the share that is right over what the map says, both 0 to 1.

    One dot a bin, the larger the more `pixels` it has; bins without pixels are left out. `words` names the two axes.
    Niculescu-Mizil & Caruana (2005), ICML, section 4; bins as Guo et al. (2017), ICML, figure 1.
    """
    figure, axes = _sheet("Is it right as often as it says?", words, look)
    axes.plot([0, 1], [0, 1], color=look.faint, linewidth=1.3, linestyle=(0, (4, 1.6)))
    axes.text(
        0.03, 0.09, "as sure as right", color=look.faint, fontsize=9.5, rotation=45, rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip
    there = pixels > 0
    colour = line_colour(look, 0)
    axes.plot(confidence[there], right[there], color=colour, linewidth=2.2)
    sizes = LEAST_DOT + (MOST_DOT - LEAST_DOT) * np.sqrt(pixels[there] / max(pixels.max(initial=0.0), 1.0))
    axes.scatter(confidence[there], right[there], sizes, color=colour, edgecolor=look.paper, linewidth=1, zorder=3)
    axes.text(0.98, 0.03, "too sure", color=look.faint, fontsize=9.5, ha="right")
    axes.text(0.02, 0.94, "not sure enough", color=look.faint, fontsize=9.5)
    return encoded(figure, "svg")


def precision_recall_figure(
    precision: Float[ndarray, " t"],
    recall: Float[ndarray, " t"],
    chosen: Chosen,
    words: tuple[str, str],
    look: Look = LIGHT,
) -> bytes:
    """Return precision over recall at every threshold as SVG, both 0 to 1, with the chosen threshold marked.

    `words` names the two axes. Where one of the two does not exist, the curve is broken.
    """
    figure, axes = _sheet("What other thresholds would give", words, look)
    colour = line_colour(look, 0)
    axes.plot(recall, precision, color=colour, linewidth=2.2)
    axes.plot([chosen.recall], [chosen.precision], "o", color=line_colour(look, 1), markersize=9, mec=look.paper)
    up = chosen.precision < 0.5
    axes.annotate(
        f"threshold {chosen.threshold:.2f}", (chosen.recall, chosen.precision), (0, 14 if up else -14),
        textcoords="offset points", ha="right" if chosen.recall > 0.5 else "left", va="bottom" if up else "top",
        color=look.ink, fontsize=10,
    )  # fmt: skip
    return encoded(figure, "svg")


def _sheet(title: str, words: tuple[str, str], look: Look) -> tuple[Figure, Axes]:
    figure = blank_sheet((4.9, 4.6), look)
    axes = figure.add_subplot()
    furnish(axes, title, look, rules="both")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel(words[0], color=look.faint, fontsize=9.5)
    axes.set_ylabel(words[1], color=look.faint, fontsize=9.5)
    return figure, axes
