"""Spatial cross-validation: all pixels are tested once, none is trained on near its test, and variants are paired."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from geograft.commands.compare import compare
from geograft.commands.prepare import prepare
from geograft.commands.report import report
from geograft.config import PrepareConfig, parse_recipe
from geograft.dataset.folds import PlaceFold, plan_folds, write_fold_sets, write_place_folds
from geograft.dataset.joined import TileSetPaths
from geograft.dataset.places import scenes_in_place
from geograft.dataset.sources import MaskSource
from geograft.dataset.splits import SplitScene
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import units_of
from geograft.errors import SettingError
from geograft.training.checkpoint import LAST
from tests.support.rasters import TENTH_METRE, write_raster

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


SPLIT = PrepareConfig(tile_px=32, overlap=0.5, split="block", block_px=0, buffer_px=0, val=0.25, test=0.25)


def place_set(folder: Path, groups: dict[str, str], config: PrepareConfig = SPLIT, east: int = 0) -> Path:
    """Write a tile set with a scene of 96 x 96 pixels for each name, 30 pixels brighter where they are trees."""
    for number, name in enumerate(groups):
        rng = np.random.default_rng([number, east])
        trees = rng.random((1, 96, 96)) < 0.4
        pixels = (rng.integers(1, 180, (3, 96, 96)) + 60 * trees).astype(np.uint8)
        corner = TENTH_METRE @ Affine.translation(3000 * number + east, 0)
        write_raster(folder / "images" / f"{name}.tif", pixels, corner)
        write_raster(folder / "masks" / f"{name}.tif", trees.astype(np.uint8), corner)
    classes = {1: "tree", 0: "other"}
    prepare(MaskSource(folder / "images", folder / "masks", classes, groups=groups), folder / "tiles", config)
    return folder / "tiles"


def check_places(folds: list[PlaceFold], place_of: dict[str, str]) -> None:
    """Assert that a place is tested as a whole and not trained in, and that scores in place are the same in folds."""
    here: dict[str, set] = {}
    for fold in folds:
        tile_set = TileSetPaths.of(fold.folders).open()
        by_split = {
            split: {(tile.scene, tile.window) for tile in tile_set.split(split)} for split in ("train", "val", "test")
        }
        own = {scene for scene, place in place_of.items() if place == fold.place}
        for scene in own:
            tested = [window for name, window in by_split["test"] if name == scene]
            assert marked(tested, 96).all()
            assert sum(window.height * window.width for window in tested) == 96 * 96
        for split in ("train", "val"):
            assert {place_of[scene] for scene, _ in by_split[split]} == set(place_of.values()) - {fold.place}
        assert scenes_in_place(tile_set, "test", tile_set) == {s for s, _ in by_split["test"]} - own
        for place in set(place_of.values()) - {fold.place}:
            mine = {(split, *one) for split, many in by_split.items() for one in many if place_of[one[0]] == place}
            assert here.setdefault(place, mine) == mine
            assert {split for split, *_ in mine} == {"train", "val", "test"}
        for scene in set(place_of) - own:
            held = marked([w for split in ("val", "test") for name, w in by_split[split] if name == scene], 96)
            assert not (held & marked([w for name, w in by_split["train"] if name == scene], 96)).any()


def test_each_group_of_scenes_is_left_out_once(tmp_path: Path) -> None:
    place_of = {"a1": "coast", "a2": "coast", "b1": "valley", "c1": "hill"}
    tiles = place_set(tmp_path, place_of)
    folds = write_place_folds([tiles], tmp_path / "folds")
    assert [fold.place for fold in folds] == ["coast", "valley", "hill"]
    check_places(folds, place_of)
    assert write_place_folds([tiles], tmp_path / "folds") == folds
    # The scenes of a place are its units, not the place: each shows another part of it.
    coast = TileSet.open(*folds[0].folders)
    assert {cell.unit.partition(":")[0] for cell in units_of(coast, "test").cells if cell.scene[0] == "a"} == {
        "a1",
        "a2",
    }


def test_each_tile_set_is_left_out_once(tmp_path: Path) -> None:
    sets = [place_set(tmp_path / name, {"x": "x", "y": "y"}, east=10_000 * i) for i, name in enumerate(("a", "b"))]
    moved = [each.rename(each.parent / each.parent.name) for each in sets]
    folds = write_place_folds(moved, tmp_path / "folds")
    assert [fold.place for fold in folds] == ["a", "b"]
    check_places(folds, {f"{name}.{scene}": name for name in "ab" for scene in "xy"})


def test_what_is_no_set_of_places_is_refused(tmp_path: Path) -> None:
    one = place_set(tmp_path / "one", {"x": "x", "y": "y"})
    with pytest.raises(SettingError, match="has one place"):
        write_place_folds([one], tmp_path / "folds")
    same = place_set(tmp_path / "two", {"x": "x", "y": "y"}, east=10)
    with pytest.raises(SettingError, match="share land"):
        write_place_folds([one, same], tmp_path / "folds")
    tested = place_set(tmp_path / "three", {"x": "x"}, replace(SPLIT, val=0.0, test=1.0), east=50_000)
    with pytest.raises(SettingError, match="--val above 0"):
        write_place_folds([one, tested], tmp_path / "folds")
    assert not (tmp_path / "folds").exists()


def test_a_comparison_leaves_out_one_place_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = place_set(tmp_path, {"a1": "coast", "a2": "coast", "b1": "valley"})
    recipe = parse_recipe(
        {
            "model": {"architecture": "unet"},
            "train": {"epochs": 1, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"},
            "variants": [{"name": "fast"}, {"name": "slow", "train": {"decoder_lr": 1e-4}}],
        }
    )
    found = compare(tiles, recipe, tmp_path / "out", leave_one_place_out=True)
    crossed = found.cross_validation
    assert crossed is not None
    content = json.loads((tmp_path / "out" / "folds.json").read_text())
    assert content["places"] == list(crossed.places) == ["coast", "valley"]
    # The files of the runs have the same scores: elsewhere by fold, and in place as their sum.
    parts: dict[str, list] = {"fast": [], "slow": []}
    for row in found.rows:
        scores = json.loads((tmp_path / "out" / row.run / "scores-test.json").read_text())
        place = crossed.places[row.fold - 1]
        (mine,) = (one for one in content["per_place"] if (one["variant"], one["place"]) == (row.variant, place))
        assert mine["overall"]["iou"] == pytest.approx(scores["places"]["elsewhere"]["overall"]["iou"])
        cells = [one for one in scores["per_unit"] if (one["scene"][0] == "a") != (place == "coast")]
        parts[row.variant] += [np.array(one["confusion"]) for one in cells]
    for one in content["in_place"]["variants"]:
        (_, fp), (fn, tp) = sum(parts[one["variant"]])
        assert one["overall"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    printed = "\n".join(found.lines())
    assert "IoU elsewhere" in printed
    assert "IoU in place" in printed
    assert "without valley, seed 0" in capsys.readouterr().err
    weights = tmp_path / "out" / found.rows[0].run / LAST
    before = weights.stat().st_mtime_ns
    assert compare(tiles, recipe, tmp_path / "out", leave_one_place_out=True).rows == found.rows
    assert weights.stat().st_mtime_ns == before
    page = report(tmp_path / "out").path.read_text()
    assert all(f"IoU {where}" in page for where in ("elsewhere", "in place"))
    for wrong in ({"folds": 2, "leave_one_place_out": True}, {"folds": 2, "tiles": [tiles, tiles.parent / "images"]}):
        with pytest.raises(SettingError, match="--leave-one-place-out"):
            compare(**{"tiles": tiles, "recipe": recipe, "out": tmp_path / "other", **wrong})
