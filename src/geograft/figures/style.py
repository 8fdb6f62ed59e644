"""What every colour stands for. All are told apart with the common forms of colour blindness.

Source: Okabe & Ito (2008), "Color Universal Design".

The paper that graphs are drawn on: one size of dot, one look of axes, one way to bytes.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

RGB = tuple[int, int, int]

FOUND = "#009E73"
"""Bluish green: the label and the map agree on the class (true positive)."""
INVENTED = "#D55E00"
"""Vermilion: mapped as the class, but not labelled so (false positive)."""
MISSED = "#0072B2"
"""Blue: labelled as the class, but not mapped so (false negative)."""
UNKNOWN = "#BDBAB2"
"""Grey: no label, or no image."""

SPLIT_COLOURS = {"train": "#56B4E9", "val": "#F0E442", "test": "#D55E00"}
"""Sky blue, yellow and vermilion: light enough to shine through on an aerial image."""


@dataclass(frozen=True)
class Look:
    """The colours of a figure on one kind of paper."""

    paper: str
    ink: str
    faint: str
    """Axes, ticks and what stands back."""
    rule: str
    """Grid lines."""
    lines: tuple[str, ...]
    """One colour a network."""


LIGHT = Look(
    paper="#FFFFFF",
    ink="#23221E",
    faint="#6B675E",
    rule="#E6E2D8",
    lines=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B27700", "#56B4E9", "#000000"),
)
DARK = Look(
    paper="#211F1B",
    ink="#EDEAE2",
    faint="#A9A498",
    rule="#3A3731",
    lines=("#4A9EDB", "#F28A3C", "#3ED6A8", "#E29CC3", "#E6B73B", "#A9DBF7", "#FFFFFF"),
)


def rgb(colour: str) -> RGB:
    """Return #RRGGBB as three numbers from 0 to 255.

    >>> rgb("#D55E00")
    (213, 94, 0)
    """
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def line_colour(look: Look, index: int) -> str:
    """Return the colour of network `index` of a comparison; after the last colour it starts again."""
    return look.lines[index % len(look.lines)]


Form = Literal["png", "svg"]

PIXELS_PER_INCH = 100
METADATA: dict[Form, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


def blank_sheet(inches: tuple[float, float], look: Look, gap: float = 0.04) -> Figure:
    """Return an empty figure of a width and height; `gap` is left between panels, as a share of their size."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08, wspace=gap, hspace=gap)
    return Figure(figsize=inches, dpi=PIXELS_PER_INCH, facecolor=look.paper, layout=layout)


def furnish(axes: Axes, title: str, look: Look, rules: Literal["y", "both"] = "y") -> None:
    """Give axes their title, their colours and grid lines; `rules` are those across, or those upwards too."""
    axes.set_facecolor(look.paper)
    axes.set_title(title, loc="left", color=look.ink, fontsize=11, fontweight="bold", pad=9)
    axes.grid(axis=rules, color=look.rule, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(look.faint)
    axes.tick_params(colors=look.faint, labelsize=9.5, length=0, pad=5)


def encoded(figure: Figure, form: Form) -> bytes:
    """Return the figure as PNG, at twice its size for sharp screens, or as SVG; the same bytes each time."""
    buffer = io.BytesIO()
    # With a salt of their own the names inside an SVG are the same each time.
    with rc_context({"svg.hashsalt": "geograft"}):
        figure.savefig(
            buffer, format=form, dpi=2 * PIXELS_PER_INCH, facecolor=figure.get_facecolor(), metadata=METADATA[form]
        )
    return buffer.getvalue()
