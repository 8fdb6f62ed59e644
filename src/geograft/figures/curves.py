"""Losses and scores over the epochs.

How good networks are with how many labels: a score over the number of training tiles.
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
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy import ndarray

from geograft.figures.style import LIGHT, Form, Look, blank_sheet, encoded, furnish, line_colour


@runtime_checkable
class History(Protocol):
    """The epochs of one run: objects with the columns of history.csv as attributes."""

    @property
    def epochs(self) -> Sequence[Any]:
        """The epochs in order."""


TITLES = {"loss": "loss", "iou": "IoU", "f1": "F1", "precision": "precision", "recall": "recall"}
PARTS = {"train": "training", "val": "validation"}
DASHES: dict[str, Any] = {"train": (0, (4, 1.6)), "val": "solid"}


def loss_figure(histories: Mapping[str, Sequence[History]]) -> bytes:
    """Return the article's figure: training and validation loss of all networks over the epochs, as PNG.

    `histories` holds, by the network's name, one history a seed. See `curves_figure`.
    """
    return curves_figure(histories, "loss")


def curves_figure(
    histories: Mapping[str, Sequence[History]],
    measure: str,
    look: Look = LIGHT,
    narrow: bool = False,
    form: Form = "png",
) -> bytes:
    """Return the columns train_`measure` and val_`measure` of all networks over the epochs.

    `measure` is a key of TITLES. Training is dashed, validation solid, on a shared scale: in two panels for several
    networks, in one for a single network. Several seeds are thin lines with their mean over them; a dot marks each
    network's epoch of least validation loss. `narrow` stacks the panels, for small screens.
    """
    panels = [("train",), ("val",)] if len(histories) > 1 else [("train", "val")]
    figure, axes = _sheet(len(panels), narrow and len(panels) > 1, look)
    for panel, parts in zip(axes, panels, strict=True):
        title = f"{' and '.join(PARTS[part] for part in parts)} {TITLES[measure]}"
        furnish(panel, title[0].upper() + title[1:], look)
        # Panels share their scale, and each shows it.
        panel.tick_params(labelleft=True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        for index, seeds in enumerate(histories.values()):
            for part in parts:
                _draw(panel, seeds, f"{part}_{measure}", line_colour(look, index))
        if measure != "loss":
            panel.set_ylim(0, 1)
    axes[-1].set_xlabel("epoch", color=look.faint, fontsize=9.5)
    _legend(figure, histories, look, narrow)
    return encoded(figure, form)


def _sheet(panels: int, stacked: bool, look: Look) -> tuple[Figure, list[Axes]]:
    rows, columns = (panels, 1) if stacked else (1, panels)
    size = {(1, 1): (5.6, 3.9), (1, 2): (10.4, 4.1), (2, 1): (4.4, 6.8)}[rows, columns]
    figure = blank_sheet(size, look)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    return figure, list(axes.flat)


def _draw(axes: Axes, seeds: Sequence[History], column: str, colour: str) -> None:
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


def _column(history: History, name: str) -> ndarray:
    return np.array([getattr(epoch, name) for epoch in history.epochs], float)


def _best(val_loss: ndarray) -> int | None:
    return int(np.nanargmin(val_loss)) if np.isfinite(val_loss).any() else None


def mean_over_seeds(runs: Sequence[ndarray]) -> ndarray:
    """Return the mean an epoch over the runs that have a number there, as long as the longest; NaN where none has."""
    table = np.full((len(runs), max(map(len, runs))), np.nan)
    for row, run in zip(table, runs, strict=True):
        row[: len(run)] = run
    known = np.isfinite(table)
    sums = np.where(known, table, 0).sum(0)
    return np.where(known.any(0), sums / np.maximum(known.sum(0), 1), np.nan)


def _legend(figure: Figure, histories: Mapping[str, Sequence[History]], look: Look, narrow: bool) -> None:
    """Name the networks by colour above the panels; for a single network, training and validation by dash."""
    if len(histories) == 1:
        colour = line_colour(look, 0)
        handles = [Line2D([], [], color=colour, lw=2.2, ls=DASHES[part], label=PARTS[part]) for part in PARTS]
    else:
        handles = [
            Line2D([], [], color=line_colour(look, index), lw=2.6, marker="o", ms=6, label=name)
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
        labelcolor=look.ink,
        handlelength=2.4,
        columnspacing=1.8,
    )


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
