"""What in training helps a model in other places, at no cost where it was trained: one change at a time.

    python benchmarks/bench_generalisation.py --data ../shared/data/places [--folder build/generalisation] [--write]

Kinds: street trees in three cities, roads in two and landslides in two places, forest in the Amazon (in place only),
and the tree crowns of the two scenes in the package, cut into pieces. A variant trains in each place on two thirds of
its scenes, and is scored on the others ("in place") and on all scenes of the other places ("elsewhere"). All trainings
take about STEPS optimizer steps, whose last weights are scored; each scene is predicted as one window. From Nepal,
where 0.6 % of the pixels are landslides, nothing is trained, and it is reported by itself.

The screen trains every variant with one seed. The three that are best elsewhere are then trained with the fresh seeds,
and their differences from the default get p-values and confidence intervals by Holm's method. Scenes are resampled, the
same ones for both of a pair; the differences are means over all transfers. What augmented colours change on top of
longer training, if both were trained, is in a table of its own, over all seeds.

Results are cached by variant, place and seed, so that the same command resumes. --write puts the tables into
docs/places.md, those of each encoder into a section of its own.
"""

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from rasterio.errors import NotGeoreferencedWarning

import machine
import page
from geograft import load_recipe
from geograft.commands.demo import LITE0
from geograft.metrics.calibration import STEPS as BINS
from geograft.metrics.intervals import expanded_tail
from laboratory import (
    APART,
    LONGER,
    LONGER_COLOURED,
    PLACES,
    VARIANTS,
    Laboratory,
    Variant,
    is_possible,
    planned,
    runs_for,
    transfers,
)

DRAWS, CONFIRMED = 2000, 3
THRESHOLDS = np.arange(20, BINS, 20)
HALF = BINS // 2

Transfer = tuple[str, str, str]
"""Kind, the place to train in and the place to score in."""


@dataclass(frozen=True)
class Means:
    """IoU averaged over transfers: of all scenes, and in each bootstrap draw of the scenes."""

    value: float
    draws: ndarray
    units: int
    """Number of scenes in the place that has the fewest."""

    def __sub__(self, other: "Means") -> "Means":
        return Means(self.value - other.value, self.draws - other.draws, self.units)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval, widened for few scenes."""
        tail = expanded_tail(self.units, level)
        low, high = np.quantile(self.draws, (tail, 1 - tail))
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """Two-sided bootstrap p-value of a difference from zero."""
        below, above = (self.draws <= 0).mean(), (self.draws >= 0).mean()
        return float(min(1.0, 2 * max(min(below, above), 1 / len(self.draws))))


def ious(counts: ndarray, weights: ndarray, thresholds: ndarray) -> ndarray:
    """Return the IoU by draw and threshold from histograms (scenes, 2, 1001) and weights (draws, scenes)."""
    at_least = counts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., [0, *thresholds]].astype(np.float64)
    sums = np.tensordot(weights, at_least, axes=1)
    union = sums[:, 0, 1:] + sums[:, 1, :1]
    found: ndarray = sums[:, 1, 1:] / np.maximum(union, 1)
    return found


@cache
def scene_weights(target: str, units: int) -> ndarray:
    """Return how often each scene of a place occurs: once in the first row, then in each bootstrap draw."""
    rng = np.random.default_rng((*target.encode(), units))
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return np.concatenate([np.ones((1, units)), drawn])


def mean_iou(
    laboratory: Laboratory, variant: Variant, pairs: Sequence[Transfer], seeds: Sequence[int], best: bool = False
) -> Means:
    """Return the mean IoU over the places of `pairs`, each the mean over sources and seeds.

    The IoU is that at a threshold of 0.5, or at the `best` threshold of each transfer.
    """
    by_place: dict[tuple[str, str], list[ndarray]] = {}
    units = []
    for kind, source, target in pairs:
        found = [
            laboratory.counts(run, target) for seed in seeds for run in runs_for(variant, kind, source, target, seed)
        ]
        units.append(len(found[0]))
        thresholds = THRESHOLDS if best else np.array([HALF])
        each = [ious(counts, scene_weights(target, len(counts)), thresholds).max(axis=1) for counts in found]
        by_place.setdefault((kind, target), []).append(np.mean(each, axis=0))
    draws = np.mean([np.mean(each, axis=0) for each in by_place.values()], axis=0)
    return Means(float(draws[0]), draws[1:], min(units))


def pairs_of(variant: Variant, kinds: Sequence[str], elsewhere: bool) -> list[Transfer]:
    """Return the transfers in a variant's means: to other places, or to the held-out scenes of the same place."""
    return [
        (kind, source, target)
        for kind in kinds
        if is_possible(variant, kind)
        for source, target in transfers(kind)
        if (source != target) == elsewhere and target not in APART
    ]


@dataclass(frozen=True)
class Comparison:
    """A variant and the default on the same transfers and seeds."""

    laboratory: Laboratory
    variant: Variant
    kinds: tuple[str, ...]
    seeds: tuple[int, ...]

    def means(self, elsewhere: bool, best: bool = False, of_default: bool = False) -> Means:
        """Return the means of the variant, or of the default on the variant's transfers."""
        pairs = pairs_of(self.variant, self.kinds, elsewhere)
        return mean_iou(self.laboratory, VARIANTS[0] if of_default else self.variant, pairs, self.seeds, best)

    def difference(self, elsewhere: bool, best: bool = False) -> Means:
        """Return the difference of the variant from the default."""
        return self.means(elsewhere, best) - self.means(elsewhere, best, of_default=True)

    def nepal(self) -> str:
        """Return the IoU in Nepal at the best threshold of all, as text; empty if nothing was trained for it."""
        if "landslides" not in self.kinds or not is_possible(self.variant, "landslides"):
            return ""
        found = mean_iou(self.laboratory, self.variant, [("landslides", "sichuan", "nepal")], self.seeds, best=True)
        return f"{found.value:.3f}"

    def row(self, kinds: Sequence[str]) -> list[str]:
        """Return the row of the screen's table, with a column for each of `kinds`; empty for those without runs."""
        asked = [(False, False), (True, False), (True, True)]
        own = [replace(self, kinds=(kind,)) if kind in self.kinds else None for kind in kinds]
        if self.variant is VARIANTS[0]:
            cells = [f"{self.means(*each).value:.3f}" for each in asked]
            cells += [f"{each.means(elsewhere=True).value:.3f}" if each else "" for each in own]
        else:
            cells = [difference_text(self.difference(*each)) for each in asked]
            cells += [f"{each.difference(elsewhere=True).value:+.3f}" if each else "" for each in own]
        return [self.variant.name, *cells, self.nepal()]


def elsewhere_kinds(kinds: Sequence[str]) -> list[str]:
    """Return the kinds that have another place in the means."""
    return [kind for kind in kinds if pairs_of(VARIANTS[0], [kind], elsewhere=True)]


def difference_text(found: Means, level: float = 0.95) -> str:
    """Return a difference with its confidence interval as text."""
    low, high = found.interval(level)
    return f"{found.value:+.3f} ({low:+.3f} to {high:+.3f})"


def screen_table(comparisons: Sequence[Comparison]) -> str:
    """Return the table of all variants."""
    kinds = elsewhere_kinds(comparisons[0].kinds)
    head = ["variant", "in place", "elsewhere", "elsewhere, best thresholds", *kinds, "Nepal, best threshold"]
    rows = [each.row(kinds) for each in comparisons]
    rows[0][0] = f"**{rows[0][0]}**"
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page.table(head, rows)


def in_place_table(comparisons: Sequence[Comparison]) -> str:
    """Return the table of the scores where the variants were trained, by kind."""
    kinds, rows = comparisons[0].kinds, []
    for one in comparisons:
        cells = []
        for kind in kinds:
            own = replace(one, kinds=(kind,))
            if kind not in one.kinds:
                cells.append("")
            elif one.variant is VARIANTS[0]:
                cells.append(f"{own.means(elsewhere=False).value:.3f}")
            else:
                cells.append(difference_text(own.difference(elsewhere=False)))
        rows.append([f"**{one.variant.name}**" if one.variant is VARIANTS[0] else one.variant.name, *cells])
    return page.table(["in place", *kinds], rows)


def transfer_table(laboratory: Laboratory, kinds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the table of the default's IoU by transfer."""
    default, rows = VARIANTS[0], []
    for pair in ((kind, *each) for kind in kinds for each in transfers(kind)):
        cells = [f"{mean_iou(laboratory, default, [pair], seeds, best).value:.3f}" for best in (False, True)]
        rows.append([f"{pair[0]}: {pair[1]} to {pair[2]}", *cells])
    return page.table(["the default", "at 0.5", "at the best threshold"], rows)


def compared(
    laboratory: Laboratory, variants: Sequence[Variant], kinds: Sequence[str], seeds: Sequence[int]
) -> list[Comparison]:
    """Return the comparisons of the variants, each on the kinds that it and the default have all runs of."""
    found = []
    for variant in variants:
        needed = {kind: planned([VARIANTS[0], variant], [kind], seeds) for kind in kinds if is_possible(variant, kind)}
        finished = tuple(kind for kind, runs in needed.items() if all(laboratory.path(run).exists() for run in runs))
        if elsewhere_kinds(finished):
            found.append(Comparison(laboratory, variant, finished, tuple(seeds)))
    return found


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return p-values corrected by Holm's step-down method, and the level of each confidence interval.

    The smallest of m has 1 - 0.05 / m, the next 1 - 0.05 / (m - 1). Source: S. Holm, "A Simple Sequentially Rejective
    Multiple Test Procedure", Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.04, 0.01])[0]
    [0.04, 0.02]
    """
    order = np.argsort(p_values, kind="stable")
    corrected, levels, highest = [0.0] * len(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        left = len(p_values) - rank
        highest = max(highest, min(1.0, left * p_values[index]))
        corrected[index], levels[index] = highest, 1 - 0.05 / left
    return corrected, levels


def confirmation_table(comparisons: Sequence[Comparison]) -> str:
    """Return the table of the variants that were trained again with fresh seeds."""
    elsewhere, in_place = ([each.difference(where) for each in comparisons] for where in (True, False))
    corrected, levels = holm([each.p_value for each in elsewhere])
    rows = [
        [
            f"{one.variant.name}",
            difference_text(gain, level),
            f"{p:.3f}",
            difference_text(best),
            difference_text(own),
        ]
        for one, gain, level, p, best, own in zip(
            comparisons,
            elsewhere,
            levels,
            corrected,
            [each.difference(True, True) for each in comparisons],
            in_place,
            strict=True,
        )
    ]
    return page.table(["fresh seeds", "elsewhere", "p", "elsewhere, best thresholds", "in place"], rows)


def colours_table(laboratory: Laboratory, kinds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the table of what augmented colours change on top of longer training, by kind."""
    rows = []
    for elsewhere in (True, False):
        cells = []
        for some in (kinds, *([kind] for kind in kinds)):
            pairs = pairs_of(LONGER, some, elsewhere)
            own, plain = (
                mean_iou(laboratory, one, pairs, seeds) if pairs else None for one in (LONGER_COLOURED, LONGER)
            )
            cells.append(difference_text(own - plain) if own and plain else "")
        rows.append(["elsewhere" if elsewhere else "in place", *cells])
    return page.table(["augmented colours on top of longer training", "all", *kinds], rows)


def best_of(comparisons: Sequence[Comparison]) -> list[Variant]:
    """Return the variants, other than the default, that are best elsewhere at a threshold of 0.5."""
    others = sorted(comparisons[1:], key=lambda each: -each.difference(elsewhere=True).value)
    return [each.variant for each in others[:CONFIRMED]]


def main() -> None:
    """Train the missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with trees/, roads/ and landslides/")
    parser.add_argument("--folder", type=Path, default=Path("build/generalisation"), help="where results are cached")
    parser.add_argument("--kinds", nargs="+", default=list(PLACES), choices=list(PLACES), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the screen (default 0)")
    parser.add_argument("--fresh-seeds", type=int, nargs="*", default=[1, 2], help="of the best three (default 1 2)")
    parser.add_argument("--variants", nargs="+", default=[each.name for each in VARIANTS], help="default: all")
    parser.add_argument("--encoder", default=LITE0["encoder"], help=f"default {LITE0['encoder']}; another --folder too")
    parser.add_argument("--weights", default=LITE0["weights"], help=f"default {LITE0['weights']}")
    parser.add_argument("--finished", action="store_true", help="train nothing: tables of the finished runs")
    parser.add_argument("--section", default="", help="of docs/places.md; default by encoder")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/places.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    model = {"encoder": given.encoder, "weights": given.weights}
    laboratory = Laboratory(given.data, given.folder, load_recipe(Path("default")).with_settings(model=model))
    kinds, seeds, fresh = tuple(given.kinds), tuple(given.seeds), tuple(given.fresh_seeds)
    variants = [VARIANTS[0], *(each for each in VARIANTS[1:] if each.name in given.variants)]
    if not given.finished:
        laboratory.fill(planned(variants, kinds, seeds))
    screened = compared(laboratory, variants, kinds, seeds)
    tables = [screen_table(screened), in_place_table(screened), transfer_table(laboratory, screened[0].kinds, seeds)]
    print(tables[0], flush=True)
    chosen = best_of(screened)
    if fresh and not given.finished:
        laboratory.fill(planned([VARIANTS[0], *chosen], kinds, fresh))
    confirmed = compared(laboratory, chosen, kinds, fresh) if fresh else []
    if confirmed:
        tables.append(confirmation_table(confirmed))
    every = [*seeds, *fresh]
    both = compared(laboratory, [LONGER, LONGER_COLOURED], kinds, every)
    if LONGER_COLOURED in variants and len(both) == len([LONGER, LONGER_COLOURED]):
        common = [kind for kind in kinds if all(kind in each.kinds for each in both)]
        tables.append(colours_table(laboratory, common, every))
    about = (
        f"Encoder: {given.encoder}. Screen: seed {' '.join(map(str, seeds))}; fresh seeds: "
        f"{' '.join(map(str, fresh)) or 'none'}. {machine.describe(('torch', 'timm'))}"
    )
    content = "\n\n".join([*tables, about])
    print(content)
    if given.write:
        own = "generalisation" if given.encoder == LITE0["encoder"] else f"generalisation of {given.encoder}"
        page.write_section(given.section or own, content, page.PAGE.with_name("places.md"))


if __name__ == "__main__":
    main()
