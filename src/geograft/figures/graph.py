"""Architecture graph of a U-Net as SVG or PNG: encoder on the left, decoder on the right, skip connections across."""

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

NodeKind = Literal["image", "encoder", "bottleneck", "decoder", "head"]
Point = tuple[float, float]

# Okabe & Ito (2008), "Color Universal Design".
COLOURS = {"image": "#9A9A9A", "encoder": "#0072B2", "bottleneck": "#CC79A7", "decoder": "#E69F00", "head": "#009E73"}
FROZEN_COLOUR = "#A6CBE3"
INK, SOFT_INK = "#222222", "#6B6B6B"

# In drawing units. The image is MAP_EDGE wide; edges shrink more slowly than maps, so that the deepest stay visible.
MAP_EDGE, EDGE_POWER = 1.5, 0.45
SHEET_STEP, MAX_SHEETS, MAX_STACK_DEPTH = 0.045, 16, 0.75
ROW_GAP, TOP_HALF_SPAN, INDENT = 0.42, 4.4, 0.42
GAP, TEXT_GAP, LINE = 0.05, 0.22, 0.27
INCHES = 0.72

STYLE: Any = {"font.family": ["DejaVu Sans", "sans-serif"], "svg.fonttype": "none", "svg.hashsalt": "geograft"}


@dataclass(frozen=True)
class Node:
    """The feature map of one step: name and parameters of the step, shape of the output."""

    name: str
    kind: NodeKind
    channels: int
    height: int
    width: int
    parameters: int = 0
    frozen: bool = False
    skip: str = ""
    """Name of the encoder node whose output is the skip connection of this decoder step."""


@dataclass(frozen=True)
class PlacedNode:
    """A node drawn as a stack of sheets: its centre and size in drawing units, y upwards."""

    node: Node
    x: float
    """Centre of the stack."""
    y: float
    """Centre of the front sheet."""
    edge: float
    """Edge length of a sheet."""
    depth: float
    """Offset of the rear sheet from the front sheet, to the right and upwards."""

    @property
    def left(self) -> float:
        """Left edge of the front sheet."""
        return self.x - (self.edge + self.depth) / 2

    @property
    def right(self) -> float:
        """Right edge of the rear sheet."""
        return self.x + (self.edge + self.depth) / 2

    @property
    def bottom(self) -> float:
        """Lower edge of the front sheet."""
        return self.y - self.edge / 2

    @property
    def top(self) -> float:
        """Upper edge of the rear sheet."""
        return self.y + self.edge / 2 + self.depth


def svg(title: str, subtitle: str, nodes: Sequence[Node]) -> str:
    """Return the graph as deterministic SVG text.

    `nodes`: image, encoder stages, bottleneck, decoder steps and head, in that order.
    """
    return _saved(title, subtitle, nodes, "svg").decode()


def graph_png(title: str, subtitle: str, nodes: Sequence[Node], dpi: int = 150) -> bytes:
    """Return the graph as PNG; parameters as for `svg`."""
    return _saved(title, subtitle, nodes, "png", dpi)


def sheet_count(channels: int, edge: float) -> int:
    """Return the number of sheets for `channels`: their square root, from 1 to 16, limited by the `edge` of a sheet."""
    return max(1, min(MAX_SHEETS, int(MAX_STACK_DEPTH * edge / SHEET_STEP), round(math.sqrt(channels))))


def layout_nodes(nodes: Sequence[Node]) -> list[PlacedNode]:
    """Place the nodes in a U around x = 0, with one row per skip connection."""
    places, top, bottom = {}, 0.0, _bottom(nodes)
    for row, pair in enumerate(layout_rows(nodes)):
        edges = {i: MAP_EDGE * (nodes[i].height / nodes[0].height) ** EDGE_POWER for i in pair}
        depths = {i: SHEET_STEP * (sheet_count(nodes[i].channels, edges[i]) - 1) for i in pair}
        tall = max(3 * LINE, *edges.values())
        y = top - max(depths.values()) - tall / 2
        x = TOP_HALF_SPAN - INDENT * row
        for i in pair:
            middle = -x if i < bottom else x if i > bottom else 0.0
            places[i] = PlacedNode(nodes[i], middle, y, edges[i], depths[i])
        top = y - tall / 2 - ROW_GAP
    return [places[i] for i in range(len(nodes))]


def layout_rows(nodes: Sequence[Node]) -> list[tuple[int, ...]]:
    """Return the rows of node indices from the top: image and head, then encoder and decoder node of each skip.

    A node without skip connection, or whose partner is in another row, has its own row; the bottleneck is the last.
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
    places = layout_nodes(nodes)
    with mpl.rc_context(STYLE):
        figure = _figure(title, subtitle, places)
        file = io.BytesIO()
        # Without a date the output is deterministic.
        figure.savefig(
            file, format=suffix, dpi=dpi, facecolor="white", metadata={"Date": None} if suffix == "svg" else None
        )
    return file.getvalue()


def _figure(title: str, subtitle: str, places: Sequence[PlacedNode]) -> Figure:
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


def _draw_map(axes: Axes, place: PlacedNode) -> None:
    colour = FROZEN_COLOUR if place.node.frozen else COLOURS[place.node.kind]
    for sheet in reversed(range(sheet_count(place.node.channels, place.edge))):
        shift = SHEET_STEP * sheet
        corner = (place.left + shift, place.bottom + shift)
        axes.add_patch(Rectangle(corner, place.edge, place.edge, facecolor=colour, edgecolor="white", lw=0.7, zorder=3))


def _draw_text(axes: Axes, place: PlacedNode) -> None:
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


def _draw_flow(axes: Axes, before: PlacedNode, after: PlacedNode) -> None:
    start, end, bend = _path(before, after)
    axes.add_patch(_arrow(start, end, INK, connectionstyle=bend))
    factor = before.node.height / after.node.height
    if round(factor, 3) != 1:
        words = f"÷{factor:.0f}" if factor > 1 else f"×{1 / factor:.0f}"
        # Next to the arrow, on the inner side of the U; next to the vertical part of a bent arrow.
        x = (before.x or after.x) if 0 in (before.x, after.x) else (start[0] + end[0]) / 2
        inwards = 0.25 if x < 0 else -0.25
        axes.text(x + inwards, (start[1] + end[1]) / 2, words, ha="center", va="center", size=8, color=INK)


def _path(before: PlacedNode, after: PlacedNode) -> tuple[Point, Point, str]:
    if after.x == 0:
        return (before.x, before.bottom - GAP), (after.left - GAP, after.y), "angle,angleA=-90,angleB=0,rad=9"
    if before.x == 0:
        return (before.right + GAP, before.y), (after.x, after.bottom - GAP), "angle,angleA=0,angleB=90,rad=9"
    if before.y > after.y:
        return (before.x, before.bottom - GAP), (after.x, after.top + GAP), "arc3"
    return (before.x, before.top + GAP), (after.x, after.bottom - GAP), "arc3"


def _draw_skip(axes: Axes, skip: PlacedNode, joined: PlacedNode) -> None:
    start, end = skip.right + 2 * GAP, joined.left - 2 * GAP
    axes.add_patch(_arrow((start, skip.y), (end, joined.y), SOFT_INK, linestyle=(0, (4, 3))))
    axes.text(
        (start + end) / 2, (skip.y + joined.y) / 2 + 0.14, "skip", ha="center", va="center", size=8, color=SOFT_INK
    )


def _arrow(start: Point, end: Point, colour: str, **style: Any) -> FancyArrowPatch:
    fixed: Any = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, "zorder": 2}
    return FancyArrowPatch(start, end, color=colour, **fixed, **style)
