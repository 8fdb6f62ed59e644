"""The picture of a U-Net: encoder down the left, decoder up the right, skips across. Plain data in, SVG or PNG out."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

Kind = Literal["image", "encoder", "bottleneck", "decoder", "head"]
Point = tuple[float, float]

# Okabe & Ito (2008), "Color Universal Design".
COLOURS = {"image": "#9A9A9A", "encoder": "#0072B2", "bottleneck": "#CC79A7", "decoder": "#E69F00", "head": "#009E73"}
FROZEN_COLOUR = "#A6CBE3"
INK, SOFT_INK = "#222222", "#6B6B6B"

# In drawing units; the image's map is MAP_EDGE wide. Edges shrink slower than the maps do, so that the deepest is seen.
MAP_EDGE, EDGE_POWER = 1.5, 0.45
SHEET_STEP, MOST_SHEETS, DEEPEST = 0.045, 16, 0.75
ROW_GAP, TOP_HALF_SPAN, INDENT = 0.42, 4.4, 0.42
GAP, TEXT_GAP, LINE = 0.05, 0.22, 0.27
INCHES = 0.72

STYLE: Any = {"font.family": ["DejaVu Sans", "sans-serif"], "svg.fonttype": "none", "svg.hashsalt": "geograft"}


@dataclass(frozen=True)
class Node:
    """A map of features: the step that puts it out, its shape, and the step's parameters."""

    name: str
    kind: Kind
    channels: int
    height: int
    width: int
    parameters: int = 0
    frozen: bool = False
    skip: str = ""
    """The encoder's node whose map comes across to this step of the decoder."""


@dataclass(frozen=True)
class Placed:
    """A node as a stack of sheets: its middle and size in drawing units, y upwards."""

    node: Node
    x: float
    """Middle of the stack."""
    y: float
    """Middle of the front sheet."""
    edge: float
    """Edge of a sheet."""
    depth: float
    """How far the stack goes to the right and up behind the front sheet."""

    @property
    def left(self) -> float:
        """Left edge of the front sheet."""
        return self.x - (self.edge + self.depth) / 2

    @property
    def right(self) -> float:
        """Right edge of the hindmost sheet."""
        return self.x + (self.edge + self.depth) / 2

    @property
    def bottom(self) -> float:
        """Lower edge of the front sheet."""
        return self.y - self.edge / 2

    @property
    def top(self) -> float:
        """Upper edge of the hindmost sheet."""
        return self.y + self.edge / 2 + self.depth


def svg(title: str, subtitle: str, nodes: Sequence[Node]) -> str:
    """Return the picture as SVG text. The same input gives the same text.

    `nodes`: the image, the encoder's stages, the bottleneck, the decoder's steps, and the head, in that order.
    """
    return _saved(title, subtitle, nodes, "svg").decode()


def png(title: str, subtitle: str, nodes: Sequence[Node], dpi: int = 150) -> bytes:
    """Return the picture as the bytes of a PNG, of the nodes that `svg` takes."""
    return _saved(title, subtitle, nodes, "png", dpi)


def sheets(channels: int, edge: float) -> int:
    """Return how many sheets stand for `channels`: the square root, 1 to 16, no more than look well on their `edge`."""
    return max(1, min(MOST_SHEETS, int(DEEPEST * edge / SHEET_STEP), round(math.sqrt(channels))))


def placed(nodes: Sequence[Node]) -> list[Placed]:
    """Return where each node lies: a U whose middle is x = 0, a row for each skip."""
    places, top, bottom = {}, 0.0, _bottom(nodes)
    for row, pair in enumerate(rows(nodes)):
        edges = {i: MAP_EDGE * (nodes[i].height / nodes[0].height) ** EDGE_POWER for i in pair}
        depths = {i: SHEET_STEP * (sheets(nodes[i].channels, edges[i]) - 1) for i in pair}
        tall = max(3 * LINE, *edges.values())
        y = top - max(depths.values()) - tall / 2
        x = TOP_HALF_SPAN - INDENT * row
        for i in pair:
            middle = -x if i < bottom else x if i > bottom else 0.0
            places[i] = Placed(nodes[i], middle, y, edges[i], depths[i])
        top = y - tall / 2 - ROW_GAP
    return [places[i] for i in range(len(nodes))]


def rows(nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    """Return which nodes lie beside each other, from the top: image and head, then each skip and the step it joins.

    A node whose map joins none, or whose step has a row already, lies alone; the bottleneck is the last row.
    """
    bottom = _bottom(nodes)
    names = [node.name for node in nodes]
    down, up = list(range(1, bottom)), list(range(len(nodes) - 2, bottom, -1))
    found: list[tuple[int, ...]] = [(0, len(nodes) - 1)]
    while down or up:
        wanted = names.index(nodes[up[0]].skip) if up else -1
        if wanted not in down:
            found.append((up.pop(0),) if up else (down.pop(0),))
        else:
            found.append((down.pop(0), up.pop(0)) if wanted == down[0] else (down.pop(0),))
    return [*found, (bottom,)]


def _bottom(nodes: Sequence[Node]) -> int:
    return next(i for i, node in enumerate(nodes) if node.kind == "bottleneck")


def _saved(title: str, subtitle: str, nodes: Sequence[Node], suffix: str, dpi: int = 72) -> bytes:
    places = placed(nodes)
    with mpl.rc_context(STYLE):
        figure = _figure(title, subtitle, places)
        file = io.BytesIO()
        # A date in the file would make every one of them differ.
        figure.savefig(
            file, format=suffix, dpi=dpi, facecolor="white", metadata={"Date": None} if suffix == "svg" else None
        )
    return file.getvalue()


def _figure(title: str, subtitle: str, places: Sequence[Placed]) -> Figure:
    lowest = min(place.bottom for place in places)
    x_edge, y_top, y_bottom = TOP_HALF_SPAN + 3.1, 1.25, lowest - 4.2 * LINE
    figure = Figure(figsize=(2 * x_edge * INCHES, (y_top - y_bottom) * INCHES))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-x_edge, x_edge), ylim=(y_bottom, y_top))
    axes.axis("off")
    axes.text(0, y_top - 0.4, title, ha="center", va="center", size=15, weight="bold", color=INK)
    axes.text(0, y_top - 0.8, subtitle, ha="center", va="center", size=9.5, color=SOFT_INK)
    by_name = {place.node.name: place for place in places}
    for joined in reversed(places):
        if joined.node.skip:
            _draw_skip(axes, by_name[joined.node.skip], joined)
    for before, after in pairwise(places):
        _draw_flow(axes, before, after)
    for place in places:
        _draw_map(axes, place)
        _draw_text(axes, place)
    return figure


def _draw_map(axes: Axes, place: Placed) -> None:
    colour = FROZEN_COLOUR if place.node.frozen else COLOURS[place.node.kind]
    for sheet in reversed(range(sheets(place.node.channels, place.edge))):
        shift = SHEET_STEP * sheet
        corner = (place.left + shift, place.bottom + shift)
        axes.add_patch(Rectangle(corner, place.edge, place.edge, facecolor=colour, edgecolor="white", lw=0.7, zorder=3))


def _draw_text(axes: Axes, place: Placed) -> None:
    name, *rest = _words(place.node)
    y = place.y + LINE * len(rest) / 2
    x, side = (place.left - TEXT_GAP, "right") if place.x < 0 else (place.right + TEXT_GAP, "left")
    if place.x == 0:
        x, y, side = 0.0, place.bottom - LINE, "center"
    axes.text(x, y, name, ha=side, va="center", size=10, weight="bold", color=INK)
    for line, words in enumerate(rest, 1):
        axes.text(x, y - LINE * line, words, ha=side, va="center", size=8.5, color=SOFT_INK)


def _words(node: Node) -> Iterator[str]:
    yield f"{node.name}, frozen" if node.frozen else node.name
    yield f"{node.channels} × {node.height} × {node.width}"
    if node.parameters:
        yield f"{node.parameters:,} parameters"


def _draw_flow(axes: Axes, before: Placed, after: Placed) -> None:
    start, end, bend = _path(before, after)
    axes.add_patch(_arrow(start, end, INK, connectionstyle=bend))
    factor = before.node.height / after.node.height
    if round(factor, 3) != 1:
        words = f"÷{factor:.0f}" if factor > 1 else f"×{1 / factor:.0f}"
        # Beside the arrow, on the inner side of the U; of a bent arrow, beside its upright part.
        x = (before.x or after.x) if 0 in (before.x, after.x) else (start[0] + end[0]) / 2
        inwards = 0.25 if x < 0 else -0.25
        axes.text(x + inwards, (start[1] + end[1]) / 2, words, ha="center", va="center", size=8, color=INK)


def _path(before: Placed, after: Placed) -> tuple[Point, Point, str]:
    if after.x == 0:
        return (before.x, before.bottom - GAP), (after.left - GAP, after.y), "angle,angleA=-90,angleB=0,rad=9"
    if before.x == 0:
        return (before.right + GAP, before.y), (after.x, after.bottom - GAP), "angle,angleA=0,angleB=90,rad=9"
    if before.y > after.y:
        return (before.x, before.bottom - GAP), (after.x, after.top + GAP), "arc3"
    return (before.x, before.top + GAP), (after.x, after.bottom - GAP), "arc3"


def _draw_skip(axes: Axes, skip: Placed, joined: Placed) -> None:
    start, end = skip.right + 2 * GAP, joined.left - 2 * GAP
    axes.add_patch(_arrow((start, skip.y), (end, joined.y), SOFT_INK, linestyle=(0, (4, 3))))
    axes.text(
        (start + end) / 2, (skip.y + joined.y) / 2 + 0.14, "skip", ha="center", va="center", size=8, color=SOFT_INK
    )


def _arrow(start: Point, end: Point, colour: str, **style: Any) -> FancyArrowPatch:
    fixed: Any = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, "zorder": 2}
    return FancyArrowPatch(start, end, color=colour, **fixed, **style)
