"""Curves: training and learning curves, precision and recall, reliability diagrams, and variograms.

Training curves show loss and scores over the epochs, learning curves a score over the number of training tiles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from numpy import ndarray

from geograft.figures.style import LIGHT, ImageFormat, Theme, encode_figure, line_colour, new_figure, style_axes


@runtime_checkable
class EpochCurves(Protocol):
    """The training history of one run: epochs with the columns of history.csv as attributes."""

    @property
    def epochs(self) -> Sequence[Any]:
        """The epochs, in order."""


TITLES = {"loss": "loss", "iou": "IoU", "f1": "F1", "precision": "precision", "recall": "recall"}
SPLIT_NAMES = {"train": "training", "val": "validation"}
DASHES: dict[str, Any] = {"train": (0, (4, 1.6)), "val": "solid"}


def loss_figure(histories: Mapping[str, Sequence[EpochCurves]]) -> bytes:
    """Return training and validation loss of all networks over the epochs as PNG, like the article's figure.

    `histories`: by network, one history per seed. See `curves_figure`.
    """
    return curves_figure(histories, "loss")


def curves_figure(
    histories: Mapping[str, Sequence[EpochCurves]],
    measure: str,
    theme: Theme = LIGHT,
    narrow: bool = False,
    image_format: ImageFormat = "png",
) -> bytes:
    """Return `measure` (a key of TITLES) of all networks over the epochs, for training and validation.

    Training is dashed, validation solid, on a shared scale: in two panels for several networks, in one for a single
    network. Several seeds are thin lines below their mean; a dot marks the epoch with the lowest validation loss of
    each network. `narrow` stacks the panels for small screens.
    """
    panels = [("train",), ("val",)] if len(histories) > 1 else [("train", "val")]
    figure, axes = _sheet(len(panels), narrow and len(panels) > 1, theme)
    for panel, parts in zip(axes, panels, strict=True):
        title = f"{' and '.join(SPLIT_NAMES[part] for part in parts)} {TITLES[measure]}"
        style_axes(panel, title[0].upper() + title[1:], theme)
        # Shared axes hide the tick labels of all but the first panel.
        panel.tick_params(labelleft=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        for index, seeds in enumerate(histories.values()):
            for part in parts:
                _draw(panel, seeds, f"{part}_{measure}", line_colour(theme, index))
        if measure != "loss":
            panel.set_ylim(0, 1)
    axes[-1].set_xlabel("epoch", color=theme.faint, fontsize=9.5)
    _legend(figure, histories, theme, narrow)
    return encode_figure(figure, image_format)


def _sheet(panels: int, stacked: bool, theme: Theme) -> tuple[Figure, list[Axes]]:
    rows, columns = (panels, 1) if stacked else (1, panels)
    size = {(1, 1): (5.6, 3.9), (1, 2): (10.4, 4.1), (2, 1): (4.4, 6.8)}[rows, columns]
    figure = new_figure(size, theme)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    return figure, list(axes.flat)


def _draw(axes: Axes, seeds: Sequence[EpochCurves], column: str, colour: str) -> None:
    runs = [_column(history, column) for history in seeds if history.epochs]
    if not runs:
        return
    mean = mean_over_seeds(runs)
    epochs = np.arange(1, len(mean) + 1)
    dashes = DASHES[column.partition("_")[0]]
    marker = "." if len(mean) == 1 else ""
    if len(runs) > 1:
        for run in runs:
            axes.plot(epochs[: len(run)], run, color=colour, linewidth=0.8, alpha=0.5, linestyle=dashes)
    axes.plot(epochs, mean, color=colour, linewidth=2.2, linestyle=dashes, marker=marker)
    best = _best(mean_over_seeds([_column(history, "val_loss") for history in seeds if history.epochs]))
    if column.startswith("val_") and best is not None:
        axes.plot(epochs[best], mean[best], "o", color=colour, markersize=8, markeredgecolor=axes.get_facecolor())


def _column(history: EpochCurves, name: str) -> ndarray:
    return np.array([getattr(epoch, name) for epoch in history.epochs], float)


def _best(val_loss: ndarray) -> int | None:
    return int(np.nanargmin(val_loss)) if np.isfinite(val_loss).any() else None


def mean_over_seeds(runs: Sequence[ndarray]) -> ndarray:
    """Return the mean per epoch over the runs with a finite value, as long as the longest run; NaN if none has one."""
    table = np.full((len(runs), max(map(len, runs))), np.nan)
    for row, run in zip(table, runs, strict=True):
        row[: len(run)] = run
    known = np.isfinite(table)
    sums = np.where(known, table, 0).sum(0)
    return np.where(known.any(0), sums / np.maximum(known.sum(0), 1), np.nan)


def _legend(figure: Figure, histories: Mapping[str, Sequence[EpochCurves]], theme: Theme, narrow: bool) -> None:
    """Add the legend: networks by colour; for a single network, training and validation by line style."""
    if len(histories) == 1:
        colour = line_colour(theme, 0)
        handles = [
            Line2D([], [], color=colour, lw=2.2, ls=DASHES[part], label=SPLIT_NAMES[part]) for part in SPLIT_NAMES
        ]
    else:
        handles = [
            Line2D([], [], color=line_colour(theme, index), lw=2.6, marker="o", ms=6, label=name)
            for index, name in enumerate(histories)
        ]
    letters = sum(len(str(handle.get_label())) + 6 for handle in handles)
    columns = len(handles) if letters < (48 if narrow else 110) else 1
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        labelcolor=theme.ink,
        handlelength=2.4,
        columnspacing=1.8,
    )


MARKERS = "osD^vPX"
"""One marker per network, in addition to its colour."""
MIN_LABEL_GAP = 0.055
"""Minimum distance between two tick labels, as a fraction of the axis."""


@dataclass(frozen=True)
class ScoreSeries:
    """A score and the bounds of its confidence interval by number of tiles; NaN if undefined."""

    mean: Float[ndarray, " n"]
    low: Float[ndarray, " n"]
    high: Float[ndarray, " n"]


@dataclass(frozen=True)
class LearningCurve:
    """The learning curve of one network."""

    name: str
    tiles: Int[ndarray, " n"]
    """Ascending."""
    values: ScoreSeries
    seeds: Float[ndarray, "n s"]


def learning_curve_figure(
    curves: Sequence[LearningCurve],
    score: str,
    theme: Theme = LIGHT,
    image_format: ImageFormat = "png",
    differences: Sequence[LearningCurve] = (),
) -> bytes:
    """Return the score of every network over the number of training tiles, on a logarithmic axis.

    Lines are means over seeds, bands confidence intervals, small dots single seeds. `score` is the name of the score.
    The y axis ends at 1 and starts at a multiple of 0.2 below all values. `differences`, if there are any, are drawn
    in a second panel below: the first network's score minus that of each other one, in its order, and the line of no
    difference. Their intervals are paired, and so are narrower than those of the scores.
    """
    figure = new_figure((7.4, 7.0 if differences else 4.7), theme)
    panels = list(figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))) if differences else [figure.add_subplot()]
    axes = panels[0]
    style_axes(axes, f"{score[0].upper()}{score[1:]} by number of training tiles", theme)
    axes.set_xscale("log")
    if differences:
        _draw_differences(panels[1], curves[0].name, differences, theme)
    for index, line in enumerate(curves):
        _draw_scores(axes, line, line_colour(theme, index), MARKERS[index % len(MARKERS)])
    _label_tiles(axes, np.unique(np.concatenate([line.tiles for line in curves])))
    axes.set_ylim(_lowest(curves), 1)
    panels[-1].set_xlabel(
        f"training tiles, log scale\n{_line_note(curves)}", color=theme.faint, fontsize=9.5, linespacing=1.5
    )
    handles = [
        Line2D([], [], color=line_colour(theme, i), lw=2.4, marker=MARKERS[i % len(MARKERS)], ms=6.5, label=line.name)
        for i, line in enumerate(curves)
    ]
    short = sum(len(line.name) + 6 for line in curves) < 80
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(curves) if short else 1, frameon=False, fontsize=10,
        labelcolor=theme.ink, handlelength=2.4, columnspacing=1.8,
    )  # fmt: skip
    return encode_figure(figure, image_format)


def _draw_differences(axes: Axes, first: str, differences: Sequence[LearningCurve], theme: Theme) -> None:
    others = differences[0].name if len(differences) == 1 else "each other network"
    style_axes(axes, f"Paired difference: {first} minus {others}", theme)
    axes.axhline(0, color=theme.faint, linewidth=1.2)
    for index, line in enumerate(differences, start=1):
        _draw_scores(axes, line, line_colour(theme, index), MARKERS[index % len(MARKERS)])


def _lowest(lines: Sequence[LearningCurve]) -> float:
    shown = np.concatenate([np.append(line.seeds.ravel(), line.values.low) for line in lines])
    return max(math.floor(5 * float(np.nanmin(shown, initial=1.0)) - 0.25) / 5, 0.0)


def _line_note(lines: Sequence[LearningCurve]) -> str:
    seeds = max(line.seeds.shape[1] for line in lines)
    mean = f"line: mean of {seeds} seeds (dots); " if seeds > 1 else ""
    return f"{mean}band: 95 % confidence interval"


def _draw_scores(axes: Axes, line: LearningCurve, colour: str, marker: str) -> None:
    values = line.values
    axes.fill_between(line.tiles, values.low, values.high, color=colour, alpha=0.15, linewidth=0)
    # Outlines, so that overlapping bands stay visible.
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
    """Label the numbers of tiles on the x axis, except those whose labels would overlap."""
    low, high = float(tiles[0]) / 1.15, float(tiles[-1]) * 1.15
    axes.set_xlim(low, high)
    place = np.log(tiles / low) / np.log(high / low)
    kept = [int(tiles[-1])]
    last = float(place[-1])
    for number, at in zip(tiles[-2::-1].tolist(), place[-2::-1].tolist(), strict=True):
        if last - at >= MIN_LABEL_GAP:
            kept.append(number)
            last = at
    axes.set_xticks(kept, [f"{number:,}" for number in kept])
    axes.xaxis.set_minor_locator(NullLocator())


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
