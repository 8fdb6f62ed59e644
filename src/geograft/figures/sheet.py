"""The paper that graphs are drawn on: one size of dot, one look of axes, one way to bytes."""

import io
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from geograft.figures.colours import Look

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
