"""Losses and scores over the epochs."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from geograft.figures.colours import LIGHT, Look, line_colour
from geograft.figures.sheet import Form, blank_sheet, encoded, furnish


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
