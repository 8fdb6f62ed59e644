"""Stratified group splits: whole groups, target fractions, every class in every split if possible."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geograft.dataset.stratify import SplitBlock, assign_splits
from geograft.dataset.tileset import Split
from geograft.errors import SettingError
from geograft.geo.grid import Window

SHARES: Mapping[Split, float] = {"train": 0.7, "val": 0.15, "test": 0.15}


def part(name: str, group: str, pixels: Sequence[int] = ()) -> SplitBlock:
    return SplitBlock(name, Window(0, 0, 100, 100), group, tuple(pixels))


@given(st.integers(3, 40), st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_every_split_gets_a_block_and_groups_stay_whole(groups: int, mates: int, seed: int) -> None:
    parts = [part(f"s{i}", f"g{i % groups}") for i in range(groups + mates)]
    splits = assign_splits(parts, SHARES, seed)
    by_group = defaultdict(set)
    for one, split in zip(parts, splits, strict=True):
        by_group[one.group].add(split)
    assert all(len(found) == 1 for found in by_group.values())
    assert set(splits) == {"train", "val", "test"}


def test_splits_depend_on_the_seed_and_not_on_the_order_of_blocks() -> None:
    rng = np.random.default_rng(0)
    parts = [part(f"s{i}", f"g{i}", rng.integers(0, 100, 3).tolist()) for i in range(50)]
    first = dict(zip((p.scene for p in parts), assign_splits(parts, SHARES, 7), strict=True))
    backwards = dict(zip((p.scene for p in parts[::-1]), assign_splits(parts[::-1], SHARES, 7), strict=True))
    assert first == backwards
    assert tuple(first.values()) != assign_splits(parts, SHARES, 8)


def test_fractions_of_area_and_classes_are_close_to_the_target() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 1000, (200, 4))
    parts = [part(f"s{i}", f"s{i}", row) for i, row in enumerate(pixels.tolist())]
    splits = np.array(assign_splits(parts, SHARES, 0))
    for split, share in SHARES.items():
        mine = pixels[splits == split]
        assert mine.sum() / pixels.sum() == pytest.approx(share, rel=0.03)
        np.testing.assert_allclose(mine.sum(axis=0) / pixels.sum(axis=0), share, rtol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_class_in_three_blocks_only_is_in_every_split(seed: int) -> None:
    parts = [part(f"s{i}", f"s{i}", (1000, 5 if i in (3, 11, 29) else 0)) for i in range(40)]
    splits = assign_splits(parts, SHARES, seed)
    assert {splits[3], splits[11], splits[29]} == {"train", "val", "test"}


def test_a_split_never_gets_only_unlabelled_blocks() -> None:
    parts = [part(f"s{i}", f"s{i}", (100, 20) if i < 3 else (0, 0)) for i in range(30)]
    assert set(assign_splits(parts, SHARES, 0)[:3]) == {"train", "val", "test"}


def test_a_split_with_fraction_0_is_empty_and_a_single_split_gets_all() -> None:
    parts = [part(f"s{i}", f"s{i}") for i in range(5)]
    assert set(assign_splits(parts, {"train": 0.5, "val": 0.5, "test": 0}, 0)) == {"train", "val"}
    assert set(assign_splits(parts, {"test": 1.0}, 0)) == {"test"}


def test_too_few_groups_are_reported_with_a_remedy() -> None:
    with pytest.raises(SettingError, match=r"^2 .*scene.*train, val.*test.*--"):
        assign_splits([part("a", "a"), part("b", "b")], SHARES, 0, "scene")
    with pytest.raises(SettingError, match=r"^1 .*group"):
        assign_splits([part("a", "g"), part("b", "g")], {"train": 0.5, "val": 0.5}, 0)


def test_ten_thousand_blocks_are_split_within_a_percent() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 1000, (10_000, 2))
    parts = [part(f"s{i}", f"s{i}", row) for i, row in enumerate(pixels.tolist())]
    splits = np.array(assign_splits(parts, SHARES, 0))
    for split, share in SHARES.items():
        np.testing.assert_allclose(pixels[splits == split].sum(axis=0) / pixels.sum(axis=0), share, rtol=0.01)
