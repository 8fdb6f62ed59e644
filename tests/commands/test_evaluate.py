"""`geograft evaluate`: every pixel is counted once, in one confusion matrix."""

import json
import re
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import sklearn.metrics
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geograft.commands.evaluate import evaluate, score_split
from geograft.commands.prepare import prepare
from geograft.commands.report.sources import ScoreTable, read_json
from geograft.commands.train import train
from geograft.commands.units import evaluate_units
from geograft.config import EvaluateConfig, PrepareConfig
from geograft.dataset.places import place_names, scenes_in_place
from geograft.dataset.sources import MaskSource, VectorSource
from geograft.dataset.tileset import Tile, TileSet
from geograft.dataset.units import units_of
from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.grid import Window
from geograft.legend import IGNORE, Legend
from geograft.mapping.models import RunModel
from geograft.mapping.shapes import ShapeConfig, ShapeCounter
from geograft.metrics.confusion import confusion_matrix
from geograft.metrics.objects import boundary_counts, object_counts
from geograft.training.history import read_history
from tests.commands.test_train import SMALL
from tests.dataset.test_units import grid_of, tile_set
from tests.support.rasters import TENTH_METRE, write_raster
from tests.support.runs import ContextPredictor, make_run
from tests.support.tilewise import SCORED

pytestmark = pytest.mark.usefixtures("only_torch")


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


def test_units_of_a_network_give_the_bytes_of_one_process(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.mapping.score_units.MIN_UNIT_TILES", 1)
    config = EvaluateConfig(boundary_m=0.2, objects="fields", device="cpu", backend="torch")
    evaluate(run, out=tmp_path / "scores.json", config=config)
    made = evaluate_units(run, tmp_path / "job", config=config)
    assert made.units == made.computed > 1
    assert (tmp_path / "job" / "scores.json").read_bytes() == (tmp_path / "scores.json").read_bytes()


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


@pytest.fixture(scope="module")
def three_places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile set of three places of two scenes each; hill is the test split, with a test scene of the valley."""
    folder = tmp_path_factory.mktemp("places")
    for number, name in enumerate(("coast1", "coast2", "valley1", "valley2", "hill1", "hill2")):
        values = np.random.default_rng(number).integers(1, 256, (3, 64, 64), dtype=np.uint8)
        corner = TENTH_METRE @ Affine.translation(3000 * number, 0)
        write_raster(folder / "images" / f"{name}.tif", values, corner)
        write_raster(folder / "masks" / f"{name}.tif", (values[:1] > 128).astype(np.uint8), corner)
    groups = "".join(f"{name}{i},{name}\n" for name in ("coast", "valley", "hill") for i in (1, 2))
    (folder / "groups.csv").write_text(f"scene,group\n{groups}")
    source = MaskSource(folder / "images", folder / "masks", {1: "tree", 0: "other"}, groups=folder / "groups.csv")
    config = PrepareConfig(tile_px=32, split="group", val_groups=("coast",), test_groups=("hill",))
    prepare(source, folder / "tiles", config)
    return folder


def with_split(tile_set: TileSet, **splits: str) -> TileSet:
    """Return the tile set with other splits of some scenes."""
    tiles = tuple(replace(tile, split=splits.get(tile.scene, tile.split)) for tile in tile_set.tiles)
    return replace(tile_set, tiles=tiles)


def test_a_place_is_a_group_or_a_tile_set(three_places: Path, tiles: Path) -> None:
    own = TileSet.open(three_places / "tiles")
    assert place_names(own) == {f"{name}{i}": name for name in ("coast", "valley", "hill") for i in (1, 2)}
    assert set(place_names(TileSet.open(tiles)).values()) == {"tiles"}
    assert scenes_in_place(own, "test", own) == set()
    assert scenes_in_place(own, "val", own) == set()
    assert scenes_in_place(own, "train", own) == {"valley1", "valley2"}
    mixed = with_split(own, valley2="test")
    assert scenes_in_place(mixed, "test", mixed) == {"valley2"}
    # Without groups, the scenes of a tile set are one place, but those that --test-groups names.
    alone = replace(own.meta, scenes=tuple(replace(scene, group=scene.name) for scene in own.meta.scenes))
    ungrouped = replace(
        mixed, meta=replace(alone, settings=replace(alone.settings, val_groups=(), test_groups=("hill1",)))
    )
    assert scenes_in_place(ungrouped, "test", ungrouped) == {"hill2", "valley2"}


def test_scenes_of_other_tile_sets_are_in_place_by_image_group_or_land(three_places: Path) -> None:
    own = TileSet.open(three_places / "tiles")
    other = replace(with_split(own, coast1="test", valley1="test"), meta=replace(own.meta, fingerprint="other"))

    def renamed(field: str) -> TileSet:
        scenes = tuple(replace(scene, **{field: f"new {scene.name}"}) for scene in other.meta.scenes)
        return replace(other, meta=replace(other.meta, scenes=scenes))

    for case in (other, renamed("digest"), renamed("group")):
        assert scenes_in_place(case, "test", own) == {"valley1"}
    moved = replace(renamed("digest"), meta=replace(renamed("digest").meta, scenes=renamed("group").meta.scenes))
    assert scenes_in_place(moved, "test", own) == {"valley1"}


def test_scores_in_place_and_elsewhere_add_up(
    three_places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    own = TileSet.open(three_places / "tiles")
    mixed = with_split(own, valley2="test")
    run = make_run(tmp_path / "run", Legend(("other", "tree"), (0, 1)), data_fingerprint=own.meta.fingerprint)
    model = RunModel.open(run, SCORED)
    result = score_split(model, mixed, "test", SCORED)
    assert result.places is not None
    parts = result.places.parts
    assert {where: part.tiles for where, part in parts.items()} == {"in place": 9, "elsewhere": 8}
    assert sum(part.tiles for part in parts.values()) == result.tiles_scored
    tp, errors = np.zeros(2), np.zeros(2)
    for scene, counts in result.by_scene.items():
        where = int(scene.startswith("hill"))
        tp[where] += counts[1, 1]
        errors[where] += counts[0, 1] + counts[1, 0]
    assert [part.overall["iou"].value for part in parts.values()] == pytest.approx((tp / (tp + errors)).tolist())
    assert [(name, where, part.tiles) for name, where, part in result.places.by_place] == [
        ("hill", "elsewhere", 8), ("valley", "in place", 9),
    ]  # fmt: skip
    assert len(result.places.lines()) == 5
    # Another tile set is elsewhere; what is not known is not said.
    assert set(score_split(model, own, "test", SCORED).places.parts) == {"elsewhere"}
    unknown = make_run(tmp_path / "moved", Legend(("other", "tree"), (0, 1)), data_fingerprint="moved")
    assert score_split(RunModel.open(unknown, SCORED), own, "test", SCORED).places is None


def test_the_score_in_place_stands_beside_that_of_another_tile_set(
    run: Path, tiles: Path, fields: Path, tmp_path: Path
) -> None:
    evaluate(run, "test", config=SCORED)
    with rasterio.open(fields / "scene.tif") as scene:
        pixels = scene.read()
    far = TENTH_METRE @ Affine.translation(9000, 0)
    write_raster(tmp_path / "far.tif", pixels[:, :96, :96], far)
    moved = geopandas.read_file(fields / "fields.gpkg").translate(900, 0)
    geopandas.GeoDataFrame({"kind": ["field"] * 16}, geometry=moved).to_file(tmp_path / "fields.gpkg")
    source = VectorSource(images=(tmp_path / "far.tif",), labels=tmp_path / "fields.gpkg")
    prepare(source, tmp_path / "other", PrepareConfig(tile_px=32, split="scene", val=0.0, test=1.0))
    result = evaluate(run, "test", tiles=tmp_path / "other", config=SCORED)
    own = json.loads((run / "scores-test.json").read_text())
    assert result.places is not None
    assert set(own["places"]) == {"in_place", "per_place"}
    assert set(result.places.parts) == {"elsewhere"}
    assert result.places.beside is not None
    assert result.places.beside.overall["iou"].value == own["overall"]["iou"]
    assert result.places.beside.tiles == own["tiles_scored"]
    # With other settings it would be that of another map.
    other = evaluate(run, "test", tiles=tmp_path / "other", config=replace(SCORED, tta=2), out=tmp_path / "tta.json")
    assert other.places is not None
    assert other.places.beside is None
