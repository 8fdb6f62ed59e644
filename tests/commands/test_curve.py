"""`geograft curve`: nested subsets, equal numbers of steps, scores on the same tiles; resumable."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from geograft.card import STATE
from geograft.cli.learning import curve as command
from geograft.cli.learning import parse_numbers
from geograft.commands import trials
from geograft.commands.curve import Curve, _notes, curve
from geograft.commands.evaluate import evaluate
from geograft.commands.train import train, training_data
from geograft.commands.trials import (
    MIN_STEPS,
    PERCENTS,
    POINT,
    SubsetSize,
    optimizer_steps,
    repeats,
    subset,
    subset_sizes,
    variants_of,
)
from geograft.config import Recipe, TrainConfig, Variant, parse_recipe
from geograft.dataset.splits import stratified_order
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, SettingError
from geograft.figures.curves import LearningCurve, ScoreSeries, learning_curve_figure
from geograft.figures.style import DARK, LIGHT
from geograft.metrics.confusion import scores
from geograft.metrics.intervals import confidence_intervals
from geograft.training.checkpoint import LAST
from geograft.training.loader import Scaling

pytestmark = pytest.mark.usefixtures("only_torch")

RECIPE = parse_recipe(
    {
        "title": "Two rates",
        "seeds": [0, 1],
        "model": {"architecture": "unet"},
        "train": {"epochs": 1, "batch_size": 8, "decoder_lr": 5e-3, "device": "cpu"},
        "variants": [{"name": "fast"}, {"name": "slow", "train": {"decoder_lr": 1e-6}}],
    }
)
PERCENTAGES = (10.0, 100.0)
FILES = ("curve.csv", "curve.json", "curve.png", "curve.svg", "curve-dark.svg")


@pytest.fixture(scope="module")
def found(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    return curve(tiles, tmp_path_factory.mktemp("curve") / "rates", RECIPE, PERCENTAGES)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(-5, 2**70))
def test_any_prefix_of_the_order_is_stratified_by_unit(units: list[str], seed: int) -> None:
    order = stratified_order(units, seed)
    assert sorted(order) == list(range(len(units)))
    assert stratified_order(units, seed) == order
    total = Counter(units)
    for count in range(1, len(units) + 1):
        taken = Counter(units[position] for position in order[:count])
        # Some fraction fits all units: each has its number of tiles at that fraction, rounded up or down.
        assert max((taken[u] - 1) / total[u] for u in total) < min((taken[u] + 1) / total[u] for u in total)


def test_tiles_of_units_of_equal_size_are_equally_likely_to_come_first() -> None:
    first = Counter(stratified_order(["a"] * 4 + ["b"] * 4, seed)[0] for seed in range(2000))
    # Six standard deviations of 2,000 draws with probability 1/8 are 89.
    assert all(abs(first[position] - 250) < 89 for position in range(8))


@pytest.fixture(scope="module")
def whole(tiles: Path) -> TileSet:
    return TileSet.open(tiles)


@hypothesis_settings(max_examples=20)
@given(st.integers(0, 9), st.lists(st.integers(1, 20), min_size=2, max_size=4, unique=True).map(sorted))
def test_subsets_of_a_seed_are_nested_with_the_same_held_out_tiles(
    whole: TileSet, seed: int, counts: list[int]
) -> None:
    held = [tile for tile in whole.tiles if tile.split != "train"]
    before: set = set()
    for count in counts:
        chosen = subset(whole, seed, count)
        train_tiles = {tile for tile in chosen if tile.split == "train"}
        assert len(train_tiles) == min(count, len(whole.split("train")))
        assert before <= train_tiles
        assert [tile for tile in chosen if tile.split != "train"] == held
        before = train_tiles


def test_seeds_draw_different_tiles(whole: TileSet) -> None:
    assert len({tuple(subset(whole, seed, 3)) for seed in range(5)}) > 1


def test_percentages_give_numbers_of_tiles() -> None:
    assert subset_sizes((100.0, 1.0, 10.0), 92) == [SubsetSize(1.0, 1), SubsetSize(10.0, 9), SubsetSize(100.0, 92)]


@pytest.mark.parametrize(
    ("percents", "total", "message"),
    [
        ((1.0, 10.0), 23, "--percent 1,10: of 23 training tiles 1 % give no tile. Give --percent 10."),
        ((4.0, 5.0, 50.0), 23, "--percent 4,5,50: of 23 training tiles .* --percent 5,50."),
        ((0.1,), 23, "--percent 0.1: of 23 training tiles 0.1 %"),
        ((0.0, 10.0), 23, "--percent 0,10: .*100"),
        ((101.0,), 23, "--percent 101: .*100"),
        ((), 23, "--percent : .*100"),
    ],
)
def test_invalid_percentages_are_refused(percents: tuple, total: int, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        subset_sizes(percents, total)
    assert "\n" not in str(refused.value)


@given(
    st.integers(1, 500), st.integers(1, 500), st.integers(1, 30), st.integers(1, 16), st.integers(0, 2000),
    st.integers(1, 3),
)  # fmt: skip
def test_few_tiles_are_repeated_to_take_about_as_many_steps(
    one: int, other: int, epochs: int, batch_size: int, min_steps: int, repeat: int
) -> None:
    few, total = sorted((one, other))
    config = TrainConfig(epochs=epochs, batch_size=batch_size, repeat=repeat)
    often = repeats(few, total, config, min_steps)
    aim = min(total * repeat, min_steps * batch_size / epochs)
    assert often >= repeat
    assert repeats(total, total, config, min_steps) == repeat
    # The nearest number of repetitions, at least one.
    assert often == repeat or abs(few * often - aim) <= few / 2


def test_steps_are_optimizer_steps() -> None:
    config = TrainConfig(epochs=3, batch_size=8, accumulate=2, repeat=10)
    # 50 tiles are seven batches, the last of two tiles; a step takes two batches.
    assert optimizer_steps(5, config) == 3 * 4
    assert repeats(1, 92, TrainConfig(epochs=10, batch_size=8), 1000) == 92
    assert repeats(100, 10_000, TrainConfig(epochs=10, batch_size=8), 1000) == 8


def test_repeat_repeats_the_training_tiles(whole: TileSet) -> None:
    scaling = Scaling((0.0,) * 3, (1.0,) * 3)
    once, thrice = (
        training_data(whole, Recipe().with_settings(train={"repeat": often}), scaling).train for often in (1, 3)
    )
    assert len(thrice) == 3 * len(once) == 3 * len(whole.split("train"))
    for index in (0, len(once) - 1):
        for turn in range(3):
            np.testing.assert_array_equal(once[index][0], thrice[index + turn * len(once)][0])


def test_without_variants_the_network_is_compared_with_one_from_scratch() -> None:
    pretrained, scratch = variants_of(Recipe())
    assert (pretrained.model, scratch.model) == ({}, {"weights": "none", "start": ""})
    assert [v.name for v in variants_of(Recipe().with_settings(model={"weights": "none"}))] == ["from scratch"]
    assert variants_of(RECIPE) == (Variant("fast"), Variant("slow", train={"decoder_lr": 1e-6}))


def test_every_run_trains_on_its_subset_and_is_scored_on_the_same_tiles(found: Curve, whole: TileSet) -> None:
    total = len(whole.split("train"))
    few = round(total / 10)
    assert [(s.variant, s.size.tiles) for s in found.points] == [
        ("fast", few), ("fast", total), ("slow", few), ("slow", total),
    ]  # fmt: skip
    for point in found.runs:
        run = found.folder / point.job.run
        own = TileSet.open(Path(json.loads((run / "tiles.json").read_text())["tiles"]))
        chosen = subset(whole, point.job.seed, point.job.size.tiles)
        assert set(own.split("train")) == {tile for tile in chosen if tile.split == "train"}
        assert (own.split("val"), own.split("test")) == (whole.split("val"), whole.split("test"))
        assert not any(own.folder.rglob("masks")) or own.folder == whole.folder
        assert not (run / STATE).exists()
        assert point.area_fraction == pytest.approx(point.job.size.tiles / total)
        assert point.steps == -(-total // 8) or point.job.size.tiles < total
    # `geograft evaluate` gives the same counts, from the tile set of the run.
    assert evaluate(run, "test").confusion.tolist() == point.confusion.sum(axis=0).tolist()


def test_the_run_with_all_tiles_equals_that_of_train(found: Curve, tiles: Path, tmp_path: Path) -> None:
    alone = train(tiles, tmp_path / "alone", RECIPE.variant(RECIPE.variants[0], 1)).run
    assert (alone / LAST).read_bytes() == (found.folder / "fast" / "percent100" / "seed1" / LAST).read_bytes()


def test_means_over_seeds_have_confidence_intervals_over_units(found: Curve) -> None:
    each = found.points[1]
    by_hand = np.mean([scores(point.confusion.sum(axis=0)).headline()["iou"] for point in each.runs])
    figure = each.figures["iou"]
    assert figure.value == pytest.approx(by_hand)
    # A seed given twice has the interval of that seed alone.
    point = each.runs[0]
    twice = replace(each, runs=(point, point)).figures["iou"]
    flat = point.confusion.reshape(len(point.units), -1)
    ends = confidence_intervals(flat, lambda sums: (sums[:, 3] / (sums[:, 1] + sums[:, 2] + sums[:, 3]))[:, None])
    np.testing.assert_allclose([twice.low, twice.high], ends[0], rtol=1e-9)


def test_tables_and_figures_are_written(found: Curve) -> None:
    rows = list(csv.DictReader((found.folder / "curve.csv").read_text().splitlines()))
    content = json.loads((found.folder / "curve.json").read_text())
    assert [float(row["iou"]) for row in rows] == [each.figures["iou"].value for each in found.points]
    assert [point["iou"] for point in content["points"]] == [each.figures["iou"].value for each in found.points]
    assert len(content["points"][0]["seeds"]) == 2
    fast, slow = found.by_variant.values()
    assert content["differences"][1]["iou"] == pytest.approx(
        fast[1].figures["iou"].value - slow[1].figures["iou"].value
    )
    text = "\n".join(found.lines())
    assert "IoU of fields on the test split, mean of 2 seeds" in text
    assert "fast - slow" in text
    assert (found.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (found.folder / "curve.svg").read_bytes()


def test_a_killed_curve_resumes_to_the_same_bytes_without_repeating_runs(
    found: Curve, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A curve with two runs left, killed after the first of them is trained and before it is scored.
    out = tmp_path / "killed"
    shutil.copytree(found.folder, out)
    for name in FILES:
        (out / name).unlink()
    last, kept = [f"{variant}/percent100/seed1" for variant in ("fast", "slow")], found.runs[0].job.run
    for run in last:
        shutil.rmtree(out / run)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "score_split", killed)
    with pytest.raises(KeyboardInterrupt):
        curve(tiles, out, RECIPE, PERCENTAGES)
    monkeypatch.undo()
    assert not any((out / name).exists() for name in FILES)
    assert (out / last[0] / STATE).exists()
    times = {path: path.stat().st_mtime_ns for path in (out / kept / POINT, out / kept / LAST, out / last[0] / LAST)}
    again = curve(tiles, out, RECIPE, PERCENTAGES)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for name in FILES:
        assert (out / name).read_bytes() == (found.folder / name).read_bytes(), name
    for run in last:
        assert (out / run / LAST).read_bytes() == (found.folder / run / LAST).read_bytes()
    assert again.lines()[:-1] == found.lines()[:-1]


def test_a_curve_with_other_settings_is_refused(found: Curve, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"train\.decoder_lr was 0\.005, is 0\.001"):
        curve(tiles, found.folder, RECIPE.with_settings(train={"decoder_lr": 1e-3}), PERCENTAGES)
    # Fewer seeds and percentages are already computed, and settings without effect may change.
    part = curve(tiles, found.folder, replace(RECIPE, seeds=(1,)), PERCENTAGES[:1])
    assert [point.job.seed for point in part.runs] == [1, 1]
    assert "Note: one seed" in "\n".join(part.lines())
    changed = RECIPE.with_settings(train={"workers": 0, "save_minutes": 1.0})
    assert curve(tiles, found.folder, changed, PERCENTAGES).lines() == found.lines()
    point = found.folder / found.runs[0].job.run / POINT
    before = point.read_bytes()
    point.write_text("{}")
    with pytest.raises(InputError, match=POINT):
        curve(tiles, found.folder, RECIPE, PERCENTAGES)
    point.write_bytes(before)


def test_overlapping_tiles_are_counted_by_area(whole: TileSet) -> None:
    apart = [replace(tile, split="train") for tile in whole.tiles]
    shifted = [replace(tile, window=replace(tile.window, row=tile.window.row // 2)) for tile in apart]
    notes = [_notes(replace(whole, tiles=tuple(tiles)), RECIPE) for tiles in (apart, shifted)]
    assert [any(" 1.8 of them" in note for note in each) for each in notes] == [False, True]
    assert all("no test split" in each[0] for each in notes)


def test_percent_is_parsed_and_the_commands_defaults_match_the_function() -> None:
    defaults = {name: value.default for name, value in signature(command).parameters.items()}
    assert parse_numbers(defaults["percent"], "--percent") == PERCENTS
    assert defaults["min_steps"] == MIN_STEPS
    assert parse_numbers("0.5,100", "--percent") == (0.5, 100.0)
    with pytest.raises(SettingError, match="by commas"):
        parse_numbers("1 2", "--percent")


def test_invalid_settings_are_refused_before_writing(tiles: Path, tmp_path: Path) -> None:
    for recipe, percents, steps in (
        (RECIPE, (0.1,), 0),
        (RECIPE, PERCENTAGES, -1),
        (replace(RECIPE, seeds=()), PERCENTAGES, 0),
    ):
        with pytest.raises(SettingError):
            curve(tiles, tmp_path / "out", recipe, percents, steps)
    assert not list(tmp_path.iterdir())


def test_the_figure_has_the_paired_difference(found: Curve) -> None:
    first, other = found.plot_lines()
    (difference,) = found.difference_lines()
    (paired,) = found.differences.values()
    assert difference.name == other.name
    np.testing.assert_allclose(difference.values.mean, first.values.mean - other.values.mean)
    np.testing.assert_allclose(difference.values.low, [figures["iou"].low for figures in paired])
    np.testing.assert_allclose(difference.seeds, first.seeds - other.seeds)
    alone = learning_curve_figure(found.plot_lines(), found.score, LIGHT, "svg")
    assert found.figure(LIGHT, "svg") == (found.folder / "curve.svg").read_bytes() != alone


def test_the_figure_shows_undefined_scores_as_gaps_and_is_reproducible() -> None:
    number = np.array([1, 2, 3, 100])
    mean = np.array([np.nan, 0.5, 0.6, 0.7])
    lines = [LearningCurve("a", number, ScoreSeries(mean, mean - 0.1, mean + 0.1), mean[:, None])]
    drawn = {learning_curve_figure(lines, "mean IoU", look, "svg") for look in (LIGHT, LIGHT, DARK)}
    assert len(drawn) == 2
    # Without intervals the figure has no band, and drawing gives no warning.
    none = np.full(4, np.nan)
    assert learning_curve_figure([LearningCurve("a", number, ScoreSeries(none, none, none), none[:, None])], "IoU")
