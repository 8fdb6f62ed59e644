"""`geograft evaluate`: every pixel is counted once, in one confusion matrix."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geograft.commands.evaluate import evaluate
from geograft.commands.report.sources import ScoreTable, read_json
from geograft.commands.train import train
from geograft.config import EvaluateConfig, PrepareConfig
from geograft.dataset.tileset import Tile, TileSet
from geograft.dataset.units import units_of
from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.grid import Window
from geograft.legend import IGNORE
from geograft.mapping.shapes import ShapeConfig, ShapeCounter
from geograft.metrics.boundary import boundary_counts
from geograft.metrics.objects import object_counts
from geograft.metrics.scores import confusion_matrix
from geograft.training.history import read_history
from tests.commands.test_train import SMALL
from tests.dataset.test_units import grid_of, tile_set
from tests.support.runs import ContextPredictor, make_run
from tests.support.tilewise import SCORED


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL).run


def test_scores_match_the_confusion_matrix(run: Path, tiles: Path) -> None:
    result = evaluate(run, "test")
    content = json.loads((run / "scores-test.json").read_text())
    (tn, fp), (fn, tp) = content["confusion"]
    assert content["overall"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert content["per_class"][1]["precision"] == pytest.approx(tp / (tp + fp))
    samples = TileSet.open(tiles).samples("test", unique_pixels=True)
    labels = [samples[i][1] for i in range(len(samples))]
    assert tn + fp + fn + tp == sum((label != IGNORE).sum() for label in labels)
    assert fn + tp == sum((label == 1).sum() for label in labels)
    assert any("fields" in line for line in result.lines())


def test_validation_scores_match_training_at_its_windows(run: Path) -> None:
    found = evaluate(run, "val", config=SCORED).content("val")["overall"]["iou"]
    assert found == pytest.approx(read_history(run).best.val_iou, abs=1e-3)


@given(
    label=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, IGNORE])),
    predicted=arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2])),
)
def test_confusion_matrix_matches_scikit_learn(label: np.ndarray, predicted: np.ndarray) -> None:
    known = label != IGNORE
    found = confusion_matrix(label, predicted, 3)
    assert found.sum() == known.sum()
    if known.any():
        assert (found == sklearn.metrics.confusion_matrix(label[known], predicted[known], labels=[0, 1, 2])).all()


def test_every_score_is_inside_its_confidence_interval(run: Path) -> None:
    content = evaluate(run, "test", config=EvaluateConfig(boundary_m=0.2, objects="fields")).content("test")
    assert content["interval"]["description"] == "3 blocks of 1 scene"
    assert "too narrow" in content["interval"]["warning"]
    rows = [(content["overall"], content["overall_intervals"]), (content["objects"], content["objects"]["intervals"])]
    rows += [(row, row["intervals"]) for row in content["per_class"] + content["boundary"]["per_class"]]
    for values, intervals in rows:
        for name, ends in intervals.items():
            assert ends is None or ends[0] <= values[name] <= ends[1], name
    assert content["overall_intervals"]["iou"][0] < content["overall_intervals"]["iou"][1]


def test_counts_per_unit_sum_to_the_total_and_a_report_can_read_the_file(run: Path) -> None:
    result = evaluate(run, "test")
    content = json.loads((run / "scores-test.json").read_text())
    assert (sum(np.array(unit["confusion"]) for unit in content["per_unit"]) == content["confusion"]).all()
    pixels = np.sum(content["confusion"])
    assert sum(row["pixels"] for row in content["reliability"]) == pixels
    assert (result.counts.probability.sum(axis=(0, 2)) == np.sum(content["confusion"], axis=1)).all()
    # At the threshold of the map the curve has the scores of the map.
    curve = content["precision_recall"]
    at = curve["threshold"].index(0.5)
    assert curve["recall"][at] == pytest.approx(content["overall"]["recall"], abs=1e-9)
    assert read_json(run / "scores-test.json", ScoreTable).overall["ece"] == content["overall"]["ece"]


def test_difference_to_itself_is_zero_and_to_a_worse_run_positive(run: Path, tiles: Path, tmp_path: Path) -> None:
    same = evaluate(run, "test", against=run)
    assert {(f.value, f.low, f.high) for f in same.differences["overall"].values()} == {(0, 0, 0)}
    worse = train(tiles, tmp_path / "worse", SMALL.with_settings(train={"epochs": 1, "decoder_lr": 1e-6})).run
    found = evaluate(run, "test", against=worse)
    gain = found.differences["overall"]["iou"]
    assert gain.value > 0
    assert gain.value == pytest.approx(
        found.metrics["overall"]["iou"].value - evaluate(worse, "test").metrics["overall"]["iou"].value
    )
    against = json.loads((run / "scores-test.json").read_text())["against"]
    assert against["overall"]["iou"] == pytest.approx(gain.value)
    assert any(str(worse) in line for line in found.lines())


def counter_of(
    tiles: list[Tile], truth: np.ndarray, found: np.ndarray, config: ShapeConfig, scenes: TileSet
) -> ShapeCounter:
    """Return a ShapeCounter with the tiles of two maps of a scene, added cell by cell."""
    units = units_of(scenes, "test")
    counter = ShapeCounter(config, scenes, tiles, units)
    for i in np.argsort(units.cell_of, kind="stable").tolist():
        w = tiles[i].window
        counter.add(int(units.cell_of[i]), tiles[i], truth[w.slices], found[w.slices])
    return counter


@pytest.mark.parametrize("block_px", [64, 128])
def test_shapes_are_counted_on_whole_blocks_across_tile_edges(block_px: int) -> None:
    rng = np.random.default_rng(0)
    truth, found = (rng.integers(0, 2, (16, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2))
    found = np.where(rng.random(found.shape) < 0.7, truth, found)
    truth[40:50, 40:50] = IGNORE
    tiles = grid_of("a")
    config = PrepareConfig(tile_px=32, split="block", block_px=block_px, buffer_px=0)
    counter = counter_of(tiles, truth, found, ShapeConfig(2, 1.5, 1), tile_set({"a": "a"}, config, tiles))
    counts = counter.counts()
    assert counts is not None
    edges = range(0, 128, block_px)
    blocks = [Window(r, c, block_px, block_px).slices for r in edges for c in edges]
    expected = np.stack([boundary_counts(truth[b], found[b], 2, 1.5) for b in blocks])
    np.testing.assert_array_equal(counts.boundary, expected)
    np.testing.assert_array_equal(counts.objects, np.stack([object_counts(truth[b], found[b], 1) for b in blocks]))


def test_large_cells_are_split_into_several_canvases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.shapes.CANVAS_PX", 48)
    truth = np.zeros((128, 128), np.uint8)
    truth[10:20, 10:20] = truth[60:80, 100:110] = 1
    tiles = grid_of("a")
    config = PrepareConfig(tile_px=32, split="block", block_px=128, buffer_px=0)
    counter = counter_of(tiles, truth, truth, ShapeConfig(2, 0, 1), tile_set({"a": "a"}, config, tiles))
    counts = counter.counts()
    assert counts is not None
    assert counts.objects.tolist() == [[2, 2, 2]]
    assert counts.boundary is None


def test_boundaries_need_georeferencing_and_objects_an_existing_class(run: Path) -> None:
    tiles = grid_of("a")
    scenes = tile_set({"a": "a"}, PrepareConfig(tile_px=32), tiles, resolution_m=None)
    with pytest.raises(InputError, match=r"scene a .*--boundary-m"):
        ShapeCounter(ShapeConfig(2, 1.0), scenes, tiles, units_of(scenes, "test"))
    with pytest.raises(SettingError, match="--objects trees"):
        evaluate(run, "test", config=EvaluateConfig(objects="trees"))


def test_invalid_input_raises(run: Path, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        evaluate(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        evaluate(run, tiles=tmp_path)
    (tmp_path / "scores.json").write_text("mine")
    with pytest.raises(OutputError, match=r"scores\.json"):
        evaluate(run, out=tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text() == "mine"


def test_another_resolution_is_noted(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    legend = TileSet.open(tiles).meta.legend
    notes = {}
    for trained_m in (0.1, 0.1 * 1.4, 0.1 * 1.6, 0.1 / 1.6):
        run = make_run(tmp_path / str(trained_m), legend, resolution_m=trained_m)
        notes[trained_m] = evaluate(run, tiles=tiles, config=SCORED).notes
        assert json.loads((run / f"scores-{tiles.name}-test.json").read_text())["notes"] == list(notes[trained_m])
    fine, near, coarse, finer = notes.values()
    assert not any("0.1 m" in note for note in (*fine, *near))
    for found, pixel in ((coarse, "0.16"), (finer, "0.0625")):
        (note,) = (note for note in found if pixel in note)
        assert str(tiles) in note
        assert "0.1 m" in note
