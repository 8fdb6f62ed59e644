"""Adapting a run to another place: never worse by its folds, never scored on its own tiles, the run as it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from shapely import box

from geograft.api.run import load
from geograft.card import FEATURES_FILE, WEIGHTS, read_card
from geograft.cli import app
from geograft.commands import adapt as command
from geograft.commands import rehearsal
from geograft.commands.adapt import AdaptedRun, adapt
from geograft.commands.calibrate import calibrate_place
from geograft.commands.evaluate import evaluate
from geograft.commands.export import export
from geograft.commands.prepare import prepare
from geograft.commands.train import train
from geograft.config import AdaptConfig, EvaluateConfig, InferenceConfig, PrepareConfig, Recipe
from geograft.dataset.folds import plan_tile_folds, write_derived_set
from geograft.dataset.joined import open_run_tiles
from geograft.dataset.sources import MaskSource, VectorSource
from geograft.dataset.tileset import META, TileSet
from geograft.errors import InputError, OutputError, ResumeError, SettingError
from geograft.files import file_digest, write_json
from geograft.locks import lock_output
from geograft.mapping.adaptation import ADAPTED, FITTED, RUN, PlaceScores, confusion_at, count_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.places import ADAPTATION, read_adaptation, read_place, used_tiles
from geograft.metrics.intervals import certainty_of_gain
from geograft.training.checkpoint import LAST
from tests.support.overlapping import overlapping_set
from tests.support.rasters import TENTH_METRE, UTM12, write_raster

pytestmark = pytest.mark.usefixtures("only_torch")

SMALL = Recipe().with_settings(
    model={"architecture": "light", "encoder": "test_efficientnet", "weights": "none"},
    train={"epochs": 2, "batch_size": 4, "decoder_lr": 0.01, "encoder_lr": 0.01, "device": "cpu", "workers": 0},
)
CONFIG = AdaptConfig(rehearsal=0.5, folds=2, steps=16, device="cpu")
INFERENCE = InferenceConfig(backend="torch", device="cpu")
DARK = -60
"""Brightness of the objects of the other place, above their surroundings; that of the run's own place is 150."""


def write_place(folder: Path, brightness: int) -> Path:
    """Write a tile set of one scene, 16 squares that differ from their surroundings by `brightness`."""
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(70, 100, (3, 256, 256), dtype=np.int64)
    corners = [(16 + 64 * row, 16 + 64 * col) for row in range(4) for col in range(4)]
    for row, col in corners:
        pixels[:, row : row + 32, col : col + 32] += brightness
    # Elsewhere on the ground, so that the places do not overlap.
    away = TENTH_METRE @ TENTH_METRE.translation(9000, 0)
    write_raster(folder / "scene.tif", pixels.clip(1, 255).astype(np.uint8), away)
    squares = [box(*(away @ (col, row + 32)), *(away @ (col + 32, row))) for row, col in corners]
    geopandas.GeoDataFrame({"kind": ["field"] * 16}, geometry=squares, crs=UTM12).to_file(folder / "fields.gpkg")
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)
    prepare(VectorSource(images=(folder / "scene.tif",), labels=folder / "fields.gpkg"), folder / "tiles", config)
    return folder / "tiles"


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "run", SMALL).run


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile set of another place, where the objects are darker than their surroundings, not brighter."""
    return write_place(tmp_path_factory.mktemp("dark") / "place", DARK)


def few(tiles: Path, folder: Path, count: int = 6) -> Path:
    """Write a tile set of some tiles of different blocks and splits."""
    whole = TileSet.open(tiles)
    return write_derived_set(whole, whole.tiles[:: len(whole.tiles) // count][:count], folder)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): file_digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "exported" not in file.parts
    }


@pytest.fixture(scope="module")
def hill(dark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few(dark, tmp_path_factory.mktemp("few") / "hill")


@pytest.fixture(scope="module")
def adapted(run: Path, hill: Path) -> AdaptedRun:
    before = digests(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "EPOCHS", 4)
        found = adapt(run, hill, run.parent / "adapted", CONFIG)
    assert digests(run) == before
    return found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each training take one step, and every adapted run be better."""
    monkeypatch.setattr(rehearsal, "EPOCHS", 1)
    monkeypatch.setattr(PlaceScores, "is_better", True)


SHORT = replace(CONFIG, steps=1)


def test_an_adapted_run_is_better_there_and_an_ordinary_run(adapted: AdaptedRun, run: Path, hill: Path) -> None:
    assert adapted.run and adapted.card and adapted.source
    figures = adapted.target.figures
    assert figures[ADAPTED]["iou"].value > figures[adapted.target.best_before]["iou"].value + 0.1
    assert adapted.target.certainty >= 0.8
    card = read_card(adapted.run)
    assert card == adapted.card and card.finished and card.name == "adapted"
    assert f"run run, sha256 {file_digest(run / WEIGHTS)[:12]}" in card.weights_from
    assert 0.1 <= card.threshold <= 0.9
    assert {path.name for path in adapted.run.parent.iterdir()} == {"run", "adapted"}
    # Its own tile set has the held-out tiles of the source, and its scores there are those that were printed.
    # Rehearsal, the average of the weights and a threshold of its own keep what the run knew.
    own = adapted.source.figures
    assert own[ADAPTED]["iou"].value > own[RUN]["iou"].value - 0.02
    assert adapted.own_place
    there = EvaluateConfig(backend="torch", device="cpu", place=adapted.own_place.name)
    scores = evaluate(adapted.run, "test", config=there)
    assert scores.headline["iou"] == adapted.source.figures[ADAPTED]["iou"]
    source = open_run_tiles(run)
    assert read_place(adapted.run, adapted.own_place.name, card) == adapted.own_place
    assert adapted.own_place.used == used_tiles(source, source.split("val"))
    # The adapted run is the average of the run and a training that started from it.
    assert card.model.start_fraction == CONFIG.start_fraction == 0.25
    record = read_adaptation(adapted.run)
    assert record and record.weights == file_digest(run / WEIGHTS) and len(record.used) == 6
    text = "\n".join(adapted.lines())
    assert str(adapted.run) in text and "100 %" in text


def test_the_tiles_of_the_place_are_not_scored_again(
    adapted: AdaptedRun, hill: Path, dark: Path, tmp_path: Path
) -> None:
    assert adapted.run
    config = EvaluateConfig(backend="torch", device="cpu")
    with pytest.raises(SettingError, match=ADAPTATION):
        evaluate(adapted.run, "train", hill, tmp_path / "a.json", config=config)
    with pytest.raises(SettingError, match=ADAPTATION):
        evaluate(adapted.run, "train", dark, tmp_path / "b.json", config=config)
    with pytest.raises(SettingError, match=ADAPTATION):
        calibrate_place(adapted.run, hill, config=INFERENCE)
    bundle = tmp_path / "run.graft"
    export(adapted.run, bundle, "bundle")
    assert read_adaptation(bundle) == read_adaptation(adapted.run)
    with pytest.raises(SettingError, match=ADAPTATION):
        adapt(bundle, hill, tmp_path / "again", SHORT)


def test_no_run_is_written_where_it_is_not_better(
    run: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step at a place that looks like the run's own, which the run maps almost without an error."""
    monkeypatch.setattr(rehearsal, "EPOCHS", 1)
    bright = few(write_place(tmp_path / "bright", 150), tmp_path / "few")
    before = digests(run)
    found = adapt(run, bright, tmp_path / "out", replace(SHORT, start_fraction=0.0))
    assert found.target.figures[found.target.best_before]["iou"].value > 0.8
    assert (found.run, found.card, found.source) == (None, None, None)
    assert "No run was written" in found.lines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"bright", "few"}
    assert digests(run) == before


def test_tiles_are_scored_by_models_that_did_not_see_them(
    run: Path, hill: Path, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TileSet] = []
    scored: list[list[int]] = []
    real_train, real_count = command.train_tile_set, command.count_tiles

    def spy_train(paths: object, tile_set: TileSet, *rest: object) -> object:
        seen.append(tile_set)
        return real_train(paths, tile_set, *rest)  # type: ignore[arg-type]

    def spy_count(model: RunModel, tile_set: TileSet, positions: list[int]) -> object:
        scored.append(list(positions))
        return real_count(model, tile_set, positions)

    monkeypatch.setattr(command, "train_tile_set", spy_train)
    monkeypatch.setattr(command, "count_tiles", spy_count)
    adapt(run, hill, tmp_path / "out", replace(SHORT, folds=3))
    whole = TileSet.open(hill)
    before, *folds = scored
    assert before == sorted(tile for fold in folds for tile in fold) == list(range(6))
    assert len(folds) == 3 and len(seen) == 4
    for tile_set, positions in zip(seen, [*folds, []], strict=True):
        assert {tile.split for tile in tile_set.tiles} == {"train"}
        trained = [tile.window for tile in tile_set.tiles if tile.scene.startswith("target.")]
        assert len(trained) == 6 - len(positions)
        assert not any(whole.tiles[i].window.intersection(window) for i in positions for window in trained)
    used, source = (TileSet.open(each) for each in (tmp_path / "out" / "tiles" / "source1", tiles_of(run)))
    assert set(used.split("train")) <= set(source.split("train"))
    assert used.split("test") == source.split("test")


def tiles_of(run: Path) -> Path:
    return Path(json.loads((run / "tiles.json").read_bytes())["tiles"])


def test_an_interrupted_adaptation_is_resumed_to_the_bit(
    run: Path, hill: Path, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def stop_after(name: str, calls: int) -> None:
        real, left = getattr(command, name), [calls]

        def stopping(*args: object, **options: object) -> object:
            found = real(*args, **options)
            left[0] -= 1
            if not left[0]:
                raise Killed
            return found

        patch.setattr(command, name, stopping)

    whole, out = tmp_path / "whole", tmp_path / "out"
    adapt(run, hill, whole, SHORT)
    # The last training is the only one left at the second "train_tile_set".
    moments = (("_write_sets", 1), ("train_tile_set", 2), ("save_arrays", 1), ("train_tile_set", 1))
    for name, calls in (("create_ledger", 1), *moments, ("write_text", 1), ("_write_run", 1)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            stop_after(name, calls)
            adapt(run, hill, out, SHORT)
        if name == "_write_run":
            break
        assert not out.exists()
        with pytest.raises(ResumeError, match="settings"):
            adapt(run, hill, out, replace(SHORT, seed=5))
    with pytest.raises(OutputError, match="exists"):
        adapt(run, hill, out, SHORT)
    for file in (WEIGHTS, LAST, FEATURES_FILE, ADAPTATION):
        assert file_digest(out / file) == file_digest(whole / file)
    assert replace(read_card(out), name="whole") == read_card(whole)


def test_an_adaptation_that_another_process_writes_is_refused(run: Path, hill: Path, tmp_path: Path) -> None:
    with lock_output(tmp_path / "out"), pytest.raises(OutputError, match="being written"):
        adapt(run, hill, tmp_path / "out", SHORT)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_adapted_is_refused_before_anything_is_written(
    run: Path, hill: Path, dark: Path, tiles: Path, tmp_path: Path
) -> None:
    whole = TileSet.open(dark)
    empty = [replace(tile, class_fractions=(1.0, 0.0)) for tile in whole.tiles[:4]]
    two = write_derived_set(whole, whole.tiles[:2], tmp_path / "two")
    none = write_derived_set(whole, empty, tmp_path / "none")
    other = Path(shutil.copytree(hill, tmp_path / "other"))
    names = json.loads((hill / META).read_bytes())["legend"] | {"names": ["background", "roads"]}
    write_json(other / META, json.loads((hill / META).read_bytes()) | {"legend": names})
    lost = Path(shutil.copytree(run, tmp_path / "lost"))
    write_json(lost / "tiles.json", {"tiles": str(tmp_path / "nowhere")})
    before = digests(tmp_path)
    cases = (
        (run, two, "3 or more"),
        (run, none, "fields"),
        (run, other, "classes"),
        (run, tiles, "share pixels"),
        (lost, hill, "--source"),
        (tmp_path, hill, "not a run"),
        (run, tmp_path, "not a tile set"),
    )
    for one, place, words in cases:
        with pytest.raises(InputError, match=words):
            adapt(one, place, tmp_path / "out", SHORT)
    assert digests(tmp_path) == before


def test_without_the_source_there_is_no_rehearsal(run: Path, hill: Path, tmp_path: Path, short: None) -> None:
    lost = Path(shutil.copytree(run, tmp_path / "lost"))
    (lost / "tiles.json").unlink()
    found = adapt(lost, hill, tmp_path / "out", replace(SHORT, rehearsal=0))
    assert found.run and found.source is None
    assert [path.name for path in (found.run / "tiles").iterdir()] == ["target"]
    whole = TileSet.open(tiles_of(run))
    half = write_derived_set(whole, whole.tiles[::2], tmp_path / "half")
    kept = adapt(lost, hill, tmp_path / "kept", SHORT, half)
    assert kept.source and kept.source.figures[RUN]["iou"].value > 0.8
    assert str(half) in kept.notes[0]


def test_damaged_records_are_refused(adapted: AdaptedRun, tmp_path: Path, dark: Path) -> None:
    assert adapted.run
    copy = Path(shutil.copytree(adapted.run, tmp_path / "copy"))
    content = json.loads((copy / ADAPTATION).read_bytes())
    for damage in ({"used": []}, {"weights": "x"}, {"more": 1}, {"settings": {"folds": 1}}):
        write_json(copy / ADAPTATION, content | damage)
        with pytest.raises(InputError, match=ADAPTATION):
            evaluate(copy, "test", dark, tmp_path / "a.json", config=EvaluateConfig(backend="torch", device="cpu"))


def test_counts_of_tiles_are_those_of_evaluate(run: Path, tiles: Path, tmp_path: Path) -> None:
    whole = TileSet.open(tiles)
    positions = [i for i, tile in enumerate(whole.tiles) if tile.split == "test"]
    counts = count_tiles(RunModel.open(run, INFERENCE), whole, positions)
    scores = evaluate(run, "test", out=tmp_path / "a.json", config=EvaluateConfig(backend="torch", device="cpu"))
    assert np.array_equal(counts.confusion.sum(axis=0), scores.confusion)
    at_half = [confusion_at(each[0], 0.5) for each in counts.probability]
    assert np.array_equal(at_half, counts.confusion)


@given(seed=st.integers(0, 2**32 - 1), folds=st.integers(2, 6), buffer_px=st.sampled_from([0, 8, 40]))
@settings(max_examples=8)
def test_folds_keep_their_distance(dark: Path, seed: int, folds: int, buffer_px: int) -> None:
    whole = TileSet.open(dark)
    place = replace(whole, meta=replace(whole.meta, settings=replace(whole.meta.settings, buffer_px=buffer_px)))
    try:
        found = plan_tile_folds(place, folds, seed)
    except InputError:
        assert buffer_px == 40
        return
    assert sorted(tile for fold in found for tile in fold.test) == list(range(len(whole.tiles)))
    for fold in found:
        near = [place.tiles[i].window.pad(buffer_px) for i in fold.test]
        assert not any(place.tiles[i].window.intersection(window) for i in fold.train for window in near)


def test_the_certainty_of_a_gain() -> None:
    """Of two units, one better and one worse by the same amount, each is drawn twice in a quarter of the samples."""
    one, other = np.array([[3, 4], [1, 4]]), np.array([[1, 4], [3, 4]])

    def ratio(sums: ndarray) -> ndarray:
        return np.asarray((sums[:, 0] / sums[:, 1])[:, None])

    assert certainty_of_gain(one, other, ratio)[0] == pytest.approx(0.25, abs=0.02)
    assert certainty_of_gain(one, one, ratio)[0] == 0
    assert certainty_of_gain(one, one - [[1, 0]], ratio)[0] == 1


def write_masks(folder: Path, classes: int, seed: int) -> Path:
    """Write a tile set of six scenes with blocks of each class, whose bands are as bright as the class."""
    rng = np.random.default_rng(seed)
    for number in range(6):
        label = rng.integers(0, classes, (4, 4)).repeat(16, 0).repeat(16, 1)
        image = rng.normal(60 + 40 * label, 8, (3, 64, 64)).clip(1, 255)
        for name, pixels in (("images", image), ("masks", label[None])):
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_raster(folder / name / f"{number}.tif", pixels.astype(np.uint8), crs=None)
    source = MaskSource(folder / "images", folder / "masks", classes={i: f"class {i}" for i in range(classes)})
    config = PrepareConfig(tile_px=32, overlap=0.0, split="scene", val=0.2, test=0.2)
    prepare(source, folder / "tiles", config)
    return folder / "tiles"


def test_several_classes_and_several_tile_sets(tmp_path: Path, short: None) -> None:
    sets = [write_masks(tmp_path / name, 3, seed) for seed, name in enumerate(("a", "b", "c"))]
    recipe = SMALL.with_settings(train={"epochs": 1})
    run = train(sets[:2], tmp_path / "run", recipe).run
    found = adapt(run, sets[2], tmp_path / "out", SHORT)
    assert found.run and found.card and found.card.threshold == read_card(run).threshold
    assert list(found.target.counts) == [RUN, ADAPTED]
    assert {path.name for path in (found.run / "tiles").iterdir()} == {"target", "source1", "source2"}
    names = {tile.scene.partition(".")[0] for tile in open_run_tiles(found.run).split("train")}
    assert names == {"target", "source1", "source2"}
    assert evaluate(found.run, "test", config=EvaluateConfig(backend="torch", device="cpu")).tiles_scored


def test_overlapping_classes(tmp_path: Path, short: None) -> None:
    whole = TileSet.open(overlapping_set(tmp_path / "whole", 2))
    own, other = (
        write_derived_set(whole, [tile for tile in whole.tiles if tile.scene == scene], tmp_path / scene)
        for scene in ("scene0", "scene1")
    )
    run = train(own, tmp_path / "run", SMALL.with_settings(train={"epochs": 1})).run
    found = adapt(run, few(other, tmp_path / "few"), tmp_path / "out", SHORT)
    assert list(found.target.counts) == [RUN, FITTED, ADAPTED]
    assert found.card and len(found.card.thresholds) == 2
    assert found.target.counts[ADAPTED].shape[1:] == (2, 2, 2)


def test_the_command(run: Path, hill: Path, tmp_path: Path, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["adapt", run, "--tiles", hill, "--out", out, "--steps", 1, "--folds", 2, "--device", "cpu"]
    app([str(word) for word in words], result_action="return_value")
    assert str(out) in capsys.readouterr().out
    again = load(run).adapt(hill, tmp_path / "again", steps=1, folds=2, device="cpu")
    assert again.run and file_digest(again.run / WEIGHTS) == file_digest(out / WEIGHTS)
