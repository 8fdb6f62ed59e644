"""`geograft evaluate`: every pixel counted once, in one confusion matrix."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix

from geograft.commands.evaluate import evaluate
from geograft.commands.report.sources import ScoreTable, read_json
from geograft.commands.train import train
from geograft.config import EvaluateConfig, PrepareConfig
from geograft.dataset.tileset import Tile, TileSet
from geograft.dataset.units import units_of
from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.grid import Window
from geograft.legend import IGNORE
from geograft.mapping.shapes import ShapeCounter, Wanted
from geograft.metrics.boundary import boundary_counts
from geograft.metrics.objects import object_counts
from geograft.metrics.scores import confusion_of
from tests.commands.test_train import SMALL
from tests.dataset.test_units import grid_of, tile_set


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL).run


def test_the_scores_are_those_of_the_confusion_matrix(run: Path, tiles: Path) -> None:
    result = evaluate(run, "test")
    content = json.loads((run / "scores-test.json").read_text())
    (tn, fp), (fn, tp) = content["confusion"]
    assert content["overall"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert content["per_class"][1]["precision"] == pytest.approx(tp / (tp + fp))
    samples = TileSet.open(tiles).samples("test", once=True)
    labels = [samples[i][1] for i in range(len(samples))]
    assert tn + fp + fn + tp == sum((label != IGNORE).sum() for label in labels)
    assert fn + tp == sum((label == 1).sum() for label in labels)
    assert any("fields" in line for line in result.lines())


def test_validation_scores_are_those_of_training(run: Path) -> None:
    from geograft.training.history import read_history

    found = evaluate(run, "val").content("val")["overall"]["iou"]
    assert found == pytest.approx(read_history(run).best.val_iou, abs=1e-3)


@given(
    label=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, IGNORE])),
    predicted=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2])),
)
def test_counts_are_those_of_scikit_learn(label: np.ndarray, predicted: np.ndarray) -> None:
    known = label != IGNORE
    found = confusion_of(label, predicted, 3)
    assert found.sum() == known.sum()
    if known.any():
        assert (found == confusion_matrix(label[known], predicted[known], labels=[0, 1, 2])).all()


def test_every_score_has_an_interval_around_it(run: Path) -> None:
    content = evaluate(run, "test", config=EvaluateConfig(boundary_m=0.2, objects="fields")).content("test")
    assert content["interval"]["words"] == "3 blocks of 1 scene"
    assert "too narrow" in content["interval"]["warning"]
    rows = [(content["overall"], content["overall_intervals"]), (content["objects"], content["objects"]["intervals"])]
    rows += [(row, row["intervals"]) for row in content["per_class"] + content["boundary"]["per_class"]]
    for values, intervals in rows:
        for name, ends in intervals.items():
            assert ends is None or ends[0] <= values[name] <= ends[1], name
    assert content["overall_intervals"]["iou"][0] < content["overall_intervals"]["iou"][1]


def test_the_parts_add_up_and_a_report_can_read_the_file(run: Path) -> None:
    result = evaluate(run, "test")
    content = json.loads((run / "scores-test.json").read_text())
    assert (sum(np.array(unit["confusion"]) for unit in content["per_unit"]) == content["confusion"]).all()
    pixels = np.sum(content["confusion"])
    assert sum(row["pixels"] for row in content["reliability"]) == pixels
    assert (result.counts.probability.sum(axis=(0, 2)) == np.sum(content["confusion"], axis=1)).all()
    # At the threshold of the map the curve is the map.
    curve = content["precision_recall"]
    at = curve["threshold"].index(0.5)
    assert curve["recall"][at] == pytest.approx(content["overall"]["recall"], abs=1e-9)
    assert read_json(run / "scores-test.json", ScoreTable).overall["ece"] == content["overall"]["ece"]


def test_a_run_against_itself_is_no_better_and_against_a_worse_one_it_is(
    run: Path, tiles: Path, tmp_path: Path
) -> None:
    same = evaluate(run, "test", against=run)
    assert {(f.value, f.low, f.high) for f in same.differences["overall"].values()} == {(0, 0, 0)}
    worse = train(tiles, tmp_path / "worse", SMALL.changed(train={"epochs": 1, "decoder_lr": 1e-6})).run
    found = evaluate(run, "test", against=worse)
    gain = found.differences["overall"]["iou"]
    assert gain.value > 0
    assert gain.value == pytest.approx(
        found.figures["overall"]["iou"].value - evaluate(worse, "test").figures["overall"]["iou"].value
    )
    against = json.loads((run / "scores-test.json").read_text())["against"]
    assert against["overall"]["iou"] == pytest.approx(gain.value)
    assert any("better than" in line for line in found.lines())


def painted(tiles: list[Tile], truth: np.ndarray, found: np.ndarray, wanted: Wanted, scenes: TileSet) -> ShapeCounter:
    """Return what counted the tiles of two maps of a whole scene, given in the order of their cells."""
    units = units_of(scenes, "test")
    counter = ShapeCounter(wanted, scenes, tiles, units)
    for i in np.argsort(units.cell_of, kind="stable").tolist():
        w = tiles[i].window
        counter.add(int(units.cell_of[i]), tiles[i], truth[w.slices], found[w.slices])
    return counter


@pytest.mark.parametrize("block_px", [64, 128])
def test_shapes_are_counted_on_whole_blocks_though_tiles_cut_them(block_px: int) -> None:
    rng = np.random.default_rng(0)
    truth, found = (rng.integers(0, 2, (16, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2))
    found = np.where(rng.random(found.shape) < 0.7, truth, found)
    truth[40:50, 40:50] = IGNORE
    tiles = grid_of("a")
    config = PrepareConfig(tile_px=32, split="block", block_px=block_px, buffer_px=0)
    counter = painted(tiles, truth, found, Wanted(2, 1.5, 1), tile_set({"a": "a"}, config, tiles))
    counts = counter.counts()
    assert counts is not None
    edges = range(0, 128, block_px)
    blocks = [Window(r, c, block_px, block_px).slices for r in edges for c in edges]
    expected = np.stack([boundary_counts(truth[b], found[b], 2, 1.5) for b in blocks])
    np.testing.assert_array_equal(counts.boundary, expected)
    np.testing.assert_array_equal(counts.objects, np.stack([object_counts(truth[b], found[b], 1) for b in blocks]))


def test_a_cell_larger_than_a_canvas_is_cut_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.shapes.CANVAS_PX", 48)
    truth = np.zeros((128, 128), np.uint8)
    truth[10:20, 10:20] = truth[60:80, 100:110] = 1
    tiles = grid_of("a")
    config = PrepareConfig(tile_px=32, split="block", block_px=128, buffer_px=0)
    counter = painted(tiles, truth, truth, Wanted(2, 0, 1), tile_set({"a": "a"}, config, tiles))
    counts = counter.counts()
    assert counts is not None
    assert counts.objects.tolist() == [[2, 2, 2]]
    assert counts.boundary is None


def test_boundaries_need_a_place_on_the_ground_and_objects_a_class(run: Path) -> None:
    tiles = grid_of("a")
    scenes = tile_set({"a": "a"}, PrepareConfig(tile_px=32), tiles, resolution_m=None)
    with pytest.raises(InputError, match="no place on the ground"):
        ShapeCounter(Wanted(2, 1.0), scenes, tiles, units_of(scenes, "test"))
    with pytest.raises(SettingError, match="there is no such class"):
        evaluate(run, "test", config=EvaluateConfig(objects="trees"))


def test_bad_input_is_told(run: Path, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a finished run"):
        evaluate(tmp_path)
    with pytest.raises(InputError, match="is not a tile set"):
        evaluate(run, tiles=tmp_path)
    (tmp_path / "scores.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        evaluate(run, out=tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text() == "mine"
