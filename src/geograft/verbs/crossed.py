"""Scores over all folds of a cross-validation: every run on the fold that it did not train on, units side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.counting import Counting
from geograft.geo.splitting.units import ground_names
from geograft.geo.tilesets.tileset import TileSet
from geograft.intervals import LEVEL, caveat
from geograft.table import table
from geograft.verbs.evaluate import evaluate
from geograft.verbs.evaluate.counting import Confusion
from geograft.verbs.evaluate.figures import Figures, Measure, headline, plain, plain_ends

Tested = tuple[str, int, int, Path]
"""Variant, fold, seed and run."""


@dataclass(frozen=True)
class Crossed:
    """What cross-validation found. The units of all folds are those of the whole ground, each tested once a seed."""

    units: tuple[str, ...]
    counting: Counting
    by_unit: Mapping[str, Int64[ndarray, "u ..."]]
    """By variant the pixel counts of every unit, seeds added up."""
    by_fold: Mapping[tuple[str, int, int], Confusion]
    """Pixel counts by variant, fold and seed."""

    @cached_property
    def figures(self) -> dict[str, Figures]:
        """The figures of every variant over all folds."""
        return {name: Measure(counts, self.counting.overall).figures() for name, counts in self.by_unit.items()}

    @cached_property
    def differences(self) -> dict[tuple[str, str], Figures]:
        """The figures of one variant less those of another, on the same units, for every two variants."""
        measures = {name: Measure(counts, self.counting.overall) for name, counts in self.by_unit.items()}
        return {(one, other): measures[one].less(measures[other]) for one, other in combinations(measures, 2)}

    def content(self) -> dict[str, Any]:
        """Return what folds.json holds."""
        return {
            "interval": {"level": LEVEL, "units": len(self.units), "warning": caveat(len(self.units))},
            "variants": [{"variant": name, **_plain(figures)} for name, figures in self.figures.items()],
            "differences": [
                {"first": one, "second": other, **_plain(figures)} for (one, other), figures in self.differences.items()
            ],
            "folds": [
                {"variant": variant, "fold": fold, "seed": seed, **headline(counts, self.counting)}
                for (variant, fold, seed), counts in self.by_fold.items()
            ],
        }

    def lines(self) -> list[str]:
        """Return what the command line prints: each variant over all folds, then every two side by side."""
        rows = [("over all folds", "IoU", "", "F1", "", "folds' IoU")]
        for name, figures in self.figures.items():
            ious = [
                self.counting.headline(counts)["iou"] for (own, _, _), counts in self.by_fold.items() if own == name
            ]
            spread = f"{np.nanmin(ious):.3f} to {np.nanmax(ious):.3f}" if not np.isnan(ious).all() else "-"
            rows.append((name, *figures["iou"].words(".3f"), *figures["f1"].words(".3f"), spread))
        pairs: list[tuple[str, ...]] = [("difference", "IoU", "", "F1", "")]
        for (one, other), figures in self.differences.items():
            pairs.append((f"{one} - {other}", *figures["iou"].words("+.3f"), *figures["f1"].words("+.3f")))
        words = f"In brackets: 95 % interval over {len(self.units)} units, each the test once."
        return [*table(rows), *(table(pairs) if len(pairs) > 1 else []), f"{words} {caveat(len(self.units))}".strip()]


def cross(tested: Sequence[Tested]) -> Crossed:
    """Return the scores of runs on the test tiles of their folds, and write them into each run as `evaluate` does.

    Takes as long as predicting the whole ground once for every variant and seed.
    """
    by_fold: dict[tuple[str, int, int], Confusion] = {}
    total: dict[str, dict[str, Confusion]] = {}
    for variant, fold, seed, run in tested:
        result = evaluate(run, "test")
        by_fold[variant, fold, seed] = result.confusion
        counting = result.counting
        ground = ground_names(TileSet.open(result.tiles), result.counts.units)
        mine = total.setdefault(variant, {})
        for unit, own in zip(ground, result.counts.confusion, strict=True):
            mine[unit] = mine.get(unit, 0) + own
    names = tuple(dict.fromkeys(_all_names(total)))
    by_unit = {variant: np.stack([mine[name] for name in names]) for variant, mine in total.items()}
    return Crossed(names, counting, by_unit, by_fold)


def _all_names(total: Mapping[str, Mapping[str, Confusion]]) -> Iterator[str]:
    for mine in total.values():
        yield from mine


def _plain(figures: Figures) -> dict[str, Any]:
    return {
        "overall": plain(figures),
        "overall_intervals": plain_ends(figures),
    }
