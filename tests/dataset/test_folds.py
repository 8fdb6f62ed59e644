"""Spatial cross-validation: all pixels are tested once, none is trained on near its test, and variants are paired."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from geograft.commands.compare import compare
from geograft.config import PrepareConfig, parse_recipe
from geograft.dataset.folds import plan_folds, write_fold_sets
from geograft.dataset.splits import SplitScene
from geograft.dataset.tileset import TileSet
from geograft.errors import SettingError
from geograft.training.checkpoint import LAST

BLOCKS = PrepareConfig(tile_px=32, overlap=0.5, split="block", block_px=64, buffer_px=8, val=0.2, test=0.2)


def marked(windows: list, size: int, margin: int = 0) -> np.ndarray:
    ground = np.zeros((size, size), bool)
    for w in windows:
        ground[max(w.row - margin, 0) : w.stop_row + margin, max(w.col - margin, 0) : w.stop_col + margin] = True
    return ground


@hypothesis_settings(max_examples=5)
@given(folds=st.integers(2, 5), seed=st.integers(0, 99))
def test_every_pixel_is_tested_once_and_training_keeps_the_buffer(folds: int, seed: int) -> None:
    config = PrepareConfig(**{**BLOCKS.__dict__, "seed": seed})
    plans = plan_folds([SplitScene("a", 512, 512, "a")], config, folds)
    tested = sum(marked([w for _, w, split in plan if split == "test"], 512).astype(int) for plan in plans)
    assert (tested == 1).all()
    for plan in plans:
        held = marked([w for _, w, split in plan if split != "train"], 512, margin=8)
        train = marked([w for _, w, split in plan if split == "train"], 512)
        assert train.any()
        assert not (held & train).any()
        assert {split for _, _, split in plan} == {"train", "val", "test"}
    assert plan_folds([SplitScene("a", 512, 512, "a")], config, folds) == plans


def test_groups_of_scenes_stay_whole() -> None:
    places = [SplitScene(f"s{i}", 64, 64, f"g{i // 2}") for i in range(20)]
    plans = plan_folds(places, PrepareConfig(tile_px=32), 5)
    tests = [{name for name, _, split in plan if split == "test"} for plan in plans]
    assert Counter(name for test in tests for name in test) == Counter(place.name for place in places)
    for test in tests:
        assert len({place.group for place in places if place.name in test}) * 2 == len(test) == 4


@pytest.mark.parametrize(
    "folds, change, message",
    [
        (1, {}, r"--folds 1\b.*2"),
        (5, {"split": "article"}, "--split"),
        (5, {"val": 0}, "--val"),
        (99, {}, r"--folds 99.*64"),
    ],
)
def test_impossible_folds_are_refused(folds: int, change: dict, message: str) -> None:
    config = PrepareConfig(**{**BLOCKS.__dict__, **change})
    with pytest.raises(SettingError, match=message):
        plan_folds([SplitScene("a", 512, 512, "a")], config, folds)


def test_a_fold_is_a_tile_set_over_the_same_images(tiles: Path, tmp_path: Path) -> None:
    whole = TileSet.open(tiles)
    sets = [TileSet.open(folder) for folder in write_fold_sets(tiles, 3, tmp_path / "folds")]
    assert sum(len(each.split("test")) for each in sets) == 64
    assert len({each.meta.fingerprint for each in [whole, *sets]}) == 4
    for each in sets:
        image, label = each.samples("test")[0]
        assert image.shape == (3, 32, 32)
        assert set(np.unique(label)) <= {0, 1}
        assert not any(each.folder.rglob("*.tif"))
        # The mean is that of its own training tiles.
        samples = each.samples("train")
        pixels = np.concatenate([samples[i][0].reshape(3, -1) for i in range(len(samples))], axis=1)
        np.testing.assert_allclose(each.meta.mean, pixels.mean(axis=1), rtol=1e-3)
    before = (sets[0].folder / "tileset.json").stat().st_mtime_ns
    write_fold_sets(tiles, 3, tmp_path / "folds")
    assert (sets[0].folder / "tileset.json").stat().st_mtime_ns == before


def test_variants_are_compared_over_all_folds_and_nothing_trains_twice(tiles: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "model": {"architecture": "unet"},
            "train": {"epochs": 2, "batch_size": 8, "decoder_lr": 3e-3, "device": "cpu"},
            "variants": [{"name": "fast"}, {"name": "slow", "train": {"decoder_lr": 1e-6}}],
        }
    )
    found = compare(tiles, recipe, tmp_path / "out", folds=2)
    assert [(row.variant, row.fold) for row in found.rows] == [("fast", 1), ("fast", 2), ("slow", 1), ("slow", 2)]
    assert found.cross_validation is not None
    assert len(found.cross_validation.units) == 16
    for counts in found.cross_validation.by_unit.values():
        assert counts.sum() == 256 * 256
    assert found.cross_validation.differences["fast", "slow"]["iou"].value > 0
    content = json.loads((tmp_path / "out" / "folds.json").read_text())
    assert len(content["folds"]) == 4
    assert content["differences"][0]["overall_intervals"]["iou"][0] is not None
    assert any("over all folds" in line for line in found.lines())
    weights = tmp_path / "out" / "fast" / "fold1" / "seed0" / LAST
    before = weights.stat().st_mtime_ns
    again = compare(tiles, recipe, tmp_path / "out", folds=2)
    assert (again.rows, again.cross_validation.content()) == (found.rows, content)
    assert weights.stat().st_mtime_ns == before
