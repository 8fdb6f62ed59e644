"""Which ground trains, validates and tests: whole groups, near the wanted shares, rare classes in every part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy import ndarray
from numpy.random import Generator

from geograft.dataset.tileset import SPLITS, Split
from geograft.errors import SettingError
from geograft.geo.grid import Window
from geograft.text import counted

Unit = Literal["scene", "group", "block"]
REMEDY: dict[Unit, str] = {
    "scene": "use --split block, give more images",
    "group": "use --split block, give images of more groups",
    "block": "use a smaller --tile-px, --block-px or --buffer-px, give larger or more images",
}

DRAWS = 300
ROUNDS = 300
NUMBERS_AT_ONCE = 200_000
NOT_THERE = 10.0
EMPTY = 1e6
WORTH_A_SWAP = 1e-5


@dataclass(frozen=True)
class Part:
    """A piece of ground that the split moves as a whole: a scene, or a block of one."""

    scene: str
    window: Window
    group: str
    """Parts of one group go the same way."""
    class_pixels: tuple[int, ...] = ()
    """Labelled, valid pixels by class index; empty where the classes shall not count, else of one length for all."""


def assign(parts: Sequence[Part], shares: Mapping[Split, float], seed: int, unit: Unit = "group") -> tuple[Split, ...]:
    """Return the split of every part, so that groups stay whole and every split looks alike.

    The best of 300 random assignments is bettered by moves and swaps of groups until none helps. Best means, in this
    order: every split with a share above 0 gets labelled ground; every class lies in every split; each split's share
    of the labelled pixels and of each class is near the wanted one (sum of squared relative deviations, the classes
    together weighing as much as the area). The same parts in any order and the same seed give the same splits.
    10,000 parts take about two seconds.

    Raises:
        SettingError: when there are fewer groups with labelled pixels than splits with a share.
    """
    used = tuple(split for split in SPLITS if shares.get(split, 0) > 0)
    names, group_of = np.unique([part.group for part in parts], return_inverse=True)
    content = _content(parts, group_of, len(names))
    _check_enough(int((content[:, 0] > 0).sum()), used, unit)
    target = np.array([shares[split] for split in used])
    chosen = _bettered(content, target / target.sum(), np.random.default_rng(seed))
    return tuple(used[index] for index in chosen[group_of].tolist())


def assign_folds(parts: Sequence[Part], folds: int, seed: int) -> tuple[int, ...]:
    """Return the fold of every part, 0 to `folds` - 1: groups whole, and the folds alike as `assign` makes splits.

    Raises:
        SettingError: when there are fewer groups with labelled pixels than folds.
    """
    names, group_of = np.unique([part.group for part in parts], return_inverse=True)
    content = _content(parts, group_of, len(names))
    labelled = int((content[:, 0] > 0).sum())
    if labelled < folds:
        raise SettingError(
            f"--folds {folds}: there are {labelled} pieces of labelled ground to share out. Ask for fewer."
        )
    chosen = _bettered(content, np.full(folds, 1 / folds), np.random.default_rng(seed))
    return tuple(chosen[group_of].tolist())


def _check_enough(labelled: int, used: Sequence[Split], unit: Unit) -> None:
    if labelled < len(used):
        names = f"{', '.join(used[:-1])} and {used[-1]}" if len(used) > 1 else used[0]
        raise SettingError(
            f"{counted(labelled, f'labelled {unit}')} cannot be split into {names} by {unit}: {REMEDY[unit]}, "
            "or set --val 0 or --test 0."
        )


def _content(parts: Sequence[Part], group_of: Int[ndarray, " p"], groups: int) -> Float64[ndarray, "g f"]:
    # Column 0 is the labelled area, the others are the classes that occur; each column sums to 1.
    classes = np.array([part.class_pixels for part in parts], dtype=np.float64)
    area = np.array([part.window.height * part.window.width for part in parts], dtype=np.float64)
    known = classes.shape[1] > 0 and classes.any()
    columns = np.column_stack([classes.sum(axis=1) if known else area, classes])
    content = np.zeros((groups, columns.shape[1]))
    np.add.at(content, group_of, columns)
    totals = content.sum(axis=0)
    shares: Float64[ndarray, "g f"] = content[:, totals > 0] / totals[totals > 0]
    return shares


def _bettered(content: Float64[ndarray, "g f"], target: Float64[ndarray, " s"], rng: Generator) -> Int[ndarray, " g"]:
    draws = [_drawn(content[:, 0], target, rng) for _ in range(max(min(DRAWS, 10_000_000 // content.size), 1))]
    chosen = min(draws, key=lambda draw: float(_misfit(_sums(content, draw, len(target)), target).sum()))
    # One empty group in every split turns a move into a swap, so that swaps are all there is to try.
    filled = np.vstack([content, np.zeros((len(target), content.shape[1]))])
    chosen = np.concatenate([chosen, np.arange(len(target))])
    for _ in range(ROUNDS):
        first, second = _pairs(len(filled), NUMBERS_AT_ONCE // content.shape[1], rng)
        gain = _gain(filled, chosen, target, first, second)
        best = int(gain.argmax())
        if gain[best] < WORTH_A_SWAP:
            break
        pair = [first[best], second[best]]
        chosen[pair] = chosen[pair[::-1]]
    return chosen[: len(content)]


def _drawn(area: Float64[ndarray, " g"], target: Float64[ndarray, " s"], rng: Generator) -> Int[ndarray, " g"]:
    # The groups in random order, laid end to end, are cut where the shares end.
    order = rng.permutation(len(area))
    middle = area[order].cumsum() - area[order] / 2
    drawn = np.empty(len(area), dtype=np.int64)
    drawn[order] = np.searchsorted(target.cumsum()[:-1], middle, side="right")
    return drawn


def _pairs(groups: int, most: int, rng: Generator) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"]]:
    if groups * (groups - 1) // 2 <= most:
        first, second = np.triu_indices(groups, 1)
        return first, second
    return rng.integers(0, groups, most), rng.integers(0, groups, most)


def _gain(
    content: Float64[ndarray, "g f"],
    chosen: Int[ndarray, " g"],
    target: Float64[ndarray, " s"],
    first: Int[ndarray, " n"],
    second: Int[ndarray, " n"],
) -> Float64[ndarray, " n"]:
    sums = _sums(content, chosen, len(target))
    now = _misfit(sums, target)
    moved = content[first] - content[second]
    here, there = chosen[first], chosen[second]
    after = _misfit(sums[here] - moved, target[here]) + _misfit(sums[there] + moved, target[there])
    return np.where(here == there, 0, now[here] + now[there] - after)


def _sums(content: Float64[ndarray, "g f"], chosen: Int[ndarray, " g"], splits: int) -> Float64[ndarray, "s f"]:
    sums = np.zeros((splits, content.shape[1]))
    np.add.at(sums, chosen, content)
    return sums


def _misfit(sums: Float64[ndarray, "n f"], target: Float64[ndarray, " n"]) -> Float64[ndarray, " n"]:
    classes = max(sums.shape[1] - 1, 1)
    weight = np.array([1.0] + [1 / classes] * (sums.shape[1] - 1))
    absent: Bool[ndarray, "n f"] = sums < 1e-12
    deviation = sums / target[:, None] - 1
    misfit: Float64[ndarray, " n"] = (weight * deviation**2 + NOT_THERE * absent).sum(axis=1) + EMPTY * absent[:, 0]
    return misfit
