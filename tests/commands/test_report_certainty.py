"""What a report says of intervals, probabilities and areas, to people who are no statisticians."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.card import ModelCard
from geograft.commands.report.calibration import decision_in_words, guess, sureness_in_words, sureness_plates, told_bin
from geograft.commands.report.certainty import Estimate, few_units, iou_of, lead_in_words, lead_of, signed
from geograft.commands.report.headline import facts, headline, lead, outdated, remarks
from geograft.commands.report.numbers import NBSP
from geograft.commands.report.scores import AreaFile, FoldsFile, IntervalNote, ReliabilityBin, ScoreTable, read_json
from geograft.commands.report.sources import Row, Run, Subject, Variant
from geograft.commands.report.tables import area_table, networks, score_tables
from geograft.commands.report.text import scores_in_words
from geograft.config import ModelConfig
from geograft.errors import InputError
from geograft.figures.calibration import Chosen, precision_recall_figure, reliability_figure
from geograft.figures.style import DARK
from geograft.legend import Legend
from geograft.metrics.calibration import calibration_error, reliability_counts, reliability_rows
from geograft.metrics.intervals import intervals, paired_intervals
from geograft.metrics.scores import overall_scores
from geograft.training.history import Epoch, History

LEGEND = Legend(("rest", "tree"))
CONFUSION = np.array([[70, 10], [5, 15]])


def counts_of(units: int, seed: int, right: float = 0.8) -> np.ndarray:
    """Return confusion matrices of `units` blocks of 1000 pixels, better where `right` is more."""
    rng = np.random.default_rng(seed)
    tree = rng.integers(150, 350, units)
    found = (tree * np.clip(rng.normal(right, 0.05, units), 0, 1)).astype(int)
    invented = rng.integers(20, 60, units)
    return np.stack([np.stack([1000 - tree - invented, invented], -1), np.stack([tree - found, found], -1)], 1)


def scores_file(counts: np.ndarray, **more: Any) -> ScoreTable:
    """Return the scores of some units, through JSON as a file would give them."""
    total = counts.sum(axis=0)
    overall = {name: float(value) for name, value in overall_scores(total).items()}
    ends = intervals(
        counts.reshape(len(counts), -1), lambda sums: overall_scores(sums.reshape(-1, 2, 2))["iou"][:, None]
    )
    content = {
        "name": "test",
        "split": "test",
        "tiles": "/place/tiles",
        "classes": LEGEND.names,
        "confusion": total.tolist(),
        "overall": overall,
        "overall_intervals": {"iou": ends[0].tolist(), "kappa": None},
        "per_class": [
            {"class": name, "iou": 0.5, "f1": 0.6, "precision": 0.7, "recall": 0.8, "pixels": 9, "later": "more"}
            for name in LEGEND.names
        ],
        "per_scene": [],
        "tiles_scored": 23,
        "interval": {"level": 0.95, "units": len(counts), "unit": "block", "words": f"{len(counts)} blocks of 1 scene"},
        "per_unit": [{"unit": f"s {i}", "scene": "s", "confusion": c.tolist()} for i, c in enumerate(counts)],
    }
    return ScoreTable(**json.loads(json.dumps(content | more)))


def network(name: str, tables: Sequence[ScoreTable]) -> Variant:
    """Return a network with these scores, one a seed."""
    epoch = Epoch(1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.8, 0.7, 1e-3, 60.0, 10.0)
    card = ModelCard(name, ModelConfig(), "random", LEGEND, ("red",), "uint8", (0.0,), (1.0,), 32, None, 0.5, 1)
    runs = tuple(Run(Path("c") / name / str(i), card, History((epoch,)), (t,), {}) for i, t in enumerate(tables))
    rows = tuple(Row(name, i, f"{name}/{i}", 9, 9, 0.5, 1, 0.5, 0.1, 60.0) for i in range(len(tables)))
    return Variant(name, rows, runs)


def compared(*variants: Variant) -> Subject:
    return Subject("comparison", Path("c"), "t", variants)


def test_the_headline_has_the_interval_that_the_file_has() -> None:
    table = scores_file(counts_of(12, 1))
    low, high = table.overall_intervals["iou"] or (0, 0)
    single = Subject("run", Path("c"), "t", (network("map", [table]),))
    assert headline(single, {"test": 0.0}, None) == (
        f"Tree is mapped with IoU {table.iou:.2f}, 95{NBSP}% interval {low:.2f} to {high:.2f}, "
        "on 12 blocks that the model never saw."
    )
    assert remarks(single)[0] == "All 12 blocks lie in one scene: other places may differ by more."
    assert "12 blocks of the test part." in headline(single, {}, None)
    assert f"12 blocks, 94{NBSP}% of whose pixels training saw." in headline(single, {"test": 0.94}, None)


def test_of_several_seeds_the_mean_has_an_interval_over_the_same_ground() -> None:
    counts = [counts_of(12, seed) for seed in (1, 2, 3)]
    found = iou_of(network("a", [scores_file(one) for one in counts]), "test")
    side_by_side = np.stack(counts, axis=1)

    def mean(sums: np.ndarray) -> np.ndarray:
        return overall_scores(sums.reshape(-1, 3, 2, 2))["iou"].mean(axis=1, keepdims=True)

    assert found is not None
    assert (found.low, found.high) == tuple(intervals(side_by_side.reshape(12, -1), mean)[0])
    assert found.value == pytest.approx(np.mean([scores_file(one).iou for one in counts]))


def test_the_lead_is_the_paired_interval_of_the_two_files() -> None:
    first, second = counts_of(15, 1, 0.9), counts_of(15, 1, 0.6)
    a, b = network("a", [scores_file(first)]), network("b", [scores_file(second)])
    found = lead_of(a, b, "test")

    def iou(sums: np.ndarray) -> np.ndarray:
        return overall_scores(sums.reshape(-1, 2, 2))["iou"][:, None]

    assert found is not None
    assert [found.low, found.high] == paired_intervals(first.reshape(15, -1), second.reshape(15, -1), iou)[0].tolist()
    sentence = lead(compared(a, b))
    assert sentence == (
        f"“a” is ahead of “b” by {found.value:.2f}, and with 95{NBSP}% confidence by at least {found.low:.2f}."
    )
    cells = {label: (text, small) for label, text, small in networks(compared(a, b))[1].cells}
    text, small = cells["test IoU, less the best’s"]
    assert text == signed(-found.value)
    assert small == f"{signed(-found.high)} to {signed(-found.low)}"


def test_scores_of_other_ground_are_not_paired() -> None:
    a = network("a", [scores_file(counts_of(12, 1))])
    for other in (scores_file(counts_of(11, 1)), scores_file(counts_of(12, 1), tiles="/another")):
        assert lead_of(a, network("b", [other]), "test") is None
    assert iou_of(network("c", [a.runs[0].scores[0], scores_file(counts_of(11, 1))]), "test") is None


def test_a_run_is_compared_with_the_one_it_was_evaluated_against() -> None:
    against = {"run": "runs/plain", "overall": {"iou": 0.131}, "overall_intervals": {"iou": [0.052, 0.2]}}
    table = scores_file(counts_of(12, 1), against=against)
    single = Subject("run", Path("c"), "crowns", (network("map", [table]),))
    assert lead(single) == f"“crowns” is ahead of “plain” by 0.13, and with 95{NBSP}% confidence by at least 0.05."


@pytest.mark.parametrize(
    ("estimate", "sentence"),
    [
        (Estimate(0.13, 0.05, 0.2), "“a” is ahead of “b” by 0.13, and with 95 % confidence by at least 0.05"),
        (Estimate(-0.13, -0.2, -0.051), "“a” is behind “b” by 0.13, and with 95 % confidence by at least 0.05"),
        (Estimate(0.03, 0.001, 0.06), "“a” is ahead of “b” by 0.03, and with 95 % confidence by more than 0"),
        (Estimate(0.03, -0.02, 0.08), "“a” is ahead of “b” by 0.03, which can be chance: the 95 % interval is "
         "−0.02 to 0.08"),
        (Estimate(0.001, -0.02, 0.02), "“a” and “b” are level (95 % interval of the difference −0.02 to 0.02)"),
        (Estimate(0.001), "“a” and “b” are level"),
        (Estimate(-0.2), "“a” is behind “b” by 0.20"),
    ],
)  # fmt: skip
def test_a_difference_in_words(estimate: Estimate, sentence: str) -> None:
    assert lead_in_words("a", "b", estimate).replace(NBSP, " ") == sentence


@pytest.mark.parametrize(
    ("note", "scenes", "words"),
    [
        (IntervalNote(30, "scene", ""), 30, ""),
        (IntervalNote(30, "block", ""), 2, "All 30 blocks lie in 2 scenes: other places may differ by more."),
        (IntervalNote(6, "scene", ""), 6, "Only 6 scenes were scored: that is too few for a trustworthy interval"),
        (IntervalNote(1, "scene", ""), 1, "Only 1 scene was scored, so nothing says how far off this figure may be"),
        (None, 1, ""),
    ],
)
def test_few_units_are_said_in_a_plain_sentence(note: IntervalNote | None, scenes: int, words: str) -> None:
    found = " ".join(few_units(note, scenes))
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_few_units_stand_under_the_headline_and_over_the_tables() -> None:
    table = scores_file(counts_of(4, 1))
    single = Subject("run", Path("c"), "t", (network("map", [table]),))
    assert remarks(single)[0].startswith("Only 4 blocks were scored")
    assert "Only 4 blocks were scored" in scores_in_words(table)
    lone = scores_file(counts_of(1, 1))
    single = Subject("run", Path("c"), "t", (network("map", [lone]),))
    assert "interval" not in headline(single, {"test": 0.0}, None)
    assert remarks(single)[0].startswith("Only 1 block was scored")


def test_scores_from_before_there_were_intervals_still_make_a_page() -> None:
    old = replace(scores_file(counts_of(12, 1)), interval=None, per_unit=(), overall_intervals={})
    subject = compared(network("a", [old]), network("b", [replace(old, name="far")]))
    assert headline(Subject("run", Path("c"), "t", (network("a", [old]),)), {"test": 0.0}, None) == (
        f"Tree is mapped with IoU {old.iou:.2f} on 23 test tiles that the model never saw."
    )
    (note,) = outdated(subject)
    assert "without intervals" in note
    assert "scores-test.json of a/0 and 1 more" in note
    assert note.endswith("geograft evaluate c/a/0 --split test")
    assert outdated(compared(network("b", [replace(old, name="far")])))[0].endswith("--split test --tiles /place/tiles")
    assert outdated(compared(network("a", [scores_file(counts_of(12, 1))]))) == []
    assert sureness_in_words(old) == sureness_plates(old) == []
    assert decision_in_words(network("a", [old]).runs[0], old) == ""


def sure(seed: int = 0, n: int = 20_000) -> ScoreTable:
    """Return scores of a map that says 80 % where 60 % are right."""
    rng = np.random.default_rng(seed)
    says = rng.choice([0.1, 0.8], n, p=[0.7, 0.3]).astype(np.float32)
    bins = reliability_counts(says, rng.random(n) < np.where(says > 0.5, 0.6, 0.1))
    ece = float(calibration_error(bins))
    table = scores_file(counts_of(12, 1), reliability=reliability_rows(bins))
    return replace(table, overall=table.overall | {"ece": ece, "brier": 0.12, "average_precision": 0.7})


def test_calibration_in_a_sentence() -> None:
    table = sure()
    first, second, third = sureness_in_words(table)
    told = told_bin(table.reliability)
    assert told is not None
    assert told.confidence == pytest.approx(0.8)
    assert first == f"When the map says 80{NBSP}% tree, it is right in {100 * (told.right or 0):.0f}{NBSP}%."
    assert f"calibration error {table.overall['ece']:.3f}" in second
    assert (
        f"Brier score is 0.120, where 0 is perfect and saying the same everywhere would give {guess(table):.3f}"
        in second
    )
    assert third == f"Over all pixels it says 31{NBSP}% tree, and 25{NBSP}% are."


def test_the_guess_is_the_brier_score_of_the_labels_own_shares() -> None:
    table = scores_file(counts_of(12, 1))
    labelled = np.repeat([0, 1], np.array(table.confusion).sum(axis=1))
    assert guess(table) == pytest.approx(np.square(labelled - labelled.mean()).mean())


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 1)), max_size=15))
def test_the_bin_that_is_told_has_its_share_of_the_pixels(bins: list[tuple[int, float]]) -> None:
    rows = [ReliabilityBin(pixels, says if pixels else None, 0.5 if pixels else None) for pixels, says in bins]
    told, total = told_bin(rows), sum(pixels for pixels, _ in bins)
    assert (told is None) == (total == 0)
    if told is not None:
        assert told.pixels >= 0.002 * total
        assert all(
            abs(told.confidence - 0.8) <= abs(says - 0.8) for pixels, says in bins if pixels >= max(0.002 * total, 1)
        )


def test_where_the_threshold_comes_from() -> None:
    run = network("a", [sure()]).runs[0]
    table = replace(sure(), decision=None)
    assert decision_in_words(run, table) == ""
    made = {"threshold": 0.397, "temperature": 1.177, "calibrated": ""}
    plain = scores_file(counts_of(12, 1), decision=made)
    assert decision_in_words(run, plain).endswith("To fit them to the validation tiles: geograft calibrate c/a/0")
    chosen = decision_in_words(
        run, scores_file(counts_of(12, 1), decision=made | {"calibrated": "46 validation tiles"})
    )
    assert chosen.startswith("The threshold 0.40 and the temperature 1.18, which makes the network less sure")
    assert chosen.endswith("were chosen on 46 validation tiles.")


def test_plates_of_probabilities_say_in_words_what_they_show() -> None:
    curve = {"threshold": [0.0, 0.5, 1.0], "precision": [0.2, 0.7, 1.0], "recall": [1.0, 0.8, 0.0]}
    table = replace(sure(), precision_recall=scores_file(counts_of(3, 1), precision_recall=curve).precision_recall)
    reliability, precision_recall = sureness_plates(table)
    assert f"at 80{NBSP}%" in reliability.alt
    assert f"at the chosen one, 0.50, 80{NBSP}% is found and 70{NBSP}% is right" in precision_recall.alt
    assert reliability.wide != reliability.wide_dark


def test_figures_are_the_same_each_time_and_bear_gaps() -> None:
    says, right, pixels = np.array([0.1, np.nan, 0.9]), np.array([0.2, np.nan, 0.7]), np.array([9.0, 0.0, 1.0])
    words = ("the map says tree", "share that is tree")
    drawn = [reliability_figure(says, right, pixels, words, DARK) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert DARK.paper.lower() in drawn[0].decode()
    curve = precision_recall_figure(np.array([0.2, 1.0]), np.array([1.0, np.nan]), Chosen(0.4, 0.3, 0.9), words)
    assert curve.startswith(b"<?xml")


def test_tables_have_intervals_means_kappa_edges_and_objects() -> None:
    counts = counts_of(12, 1)
    interval = {"iou": [0.41, 0.62], "f1": None, "recall": [0.7, 0.9]}
    row = {"iou": 0.5, "f1": 0.6, "precision": 0.7, "recall": 0.8, "pixels": 9, "intervals": interval}
    rows = [{"class": name} | row for name in LEGEND.names]
    table = scores_file(
        counts,
        per_class=rows,
        boundary={"tolerance_m": 0.5, "per_class": rows},
        objects={"class": "tree", "iou": 0.5, "matched": 23, "mapped": 123, "labelled": 114, "precision": 0.19}
        | {"recall": 0.2, "f1": 0.19, "count_error": 0.079, "intervals": {"f1": [0.1, 0.3]}},
    )
    found = {made.caption.split(",")[0]: made for made in score_tables(table)}
    by_class = found["By class"].rows
    assert by_class[1][1] == ("0.50", "0.41 to 0.62")
    assert by_class[1][3] == (f"80{NBSP}%", f"70{NBSP}% to 90{NBSP}%")
    assert [cells[0].text for cells in by_class] == ["rest", "tree", "mean of the classes", "mean by labelled area"]
    assert by_class[2][1].text == f"{table.overall['macro_iou']:.2f}"
    assert found["All classes together"].rows[1][1].text == f"{table.overall['kappa']:.2f}"
    assert [cells[0].text for cells in found["Edges"].rows] == ["tree"]
    assert [cell.text for cell in found["Objects"].rows[0][:4]] == ["tree", "114", "123", "23"]
    assert f"23 are mapped as objects of their own; the map counts 7.9{NBSP}% too many." in scores_in_words(table)


def test_areas_are_in_hectares_with_their_intervals(tmp_path: Path) -> None:
    exact = {"estimate": 1.0, "low": None, "high": None, "standard_error": None}
    classes = [
        {"class": name, "value": i, "pixels": 1, "mapped_area": 90_000.0, "users_accuracy": exact}
        | {"area": {"estimate": 120_000.0, "low": 100_000.0, "high": 140_000.0}, "producers_accuracy": exact}
        for i, name in enumerate(LEGEND.names)
    ]
    content = {"map": "map.tif", "headline": "tree covers 12 ha.", "unit": "m2", "labelled": 50, "classes": classes}
    path = tmp_path / "area.json"
    path.write_text(json.dumps(content))
    table = area_table(read_json(path, AreaFile))
    assert table.columns[1] == "mapped, ha"
    assert table.rows[1][1:3] == (("9.0", ""), ("12.0", "10.0 to 14.0"))
    path.write_text(json.dumps(content | {"classes": [{}]}))
    with pytest.raises(InputError, match=r"area\.json: classes\.0"):
        read_json(path, AreaFile)


def test_over_folds_all_ground_is_the_test_once() -> None:
    ends = {"iou": [0.5, 0.62]}
    content = {
        "interval": {"level": 0.95, "units": 24},
        "variants": [
            {"variant": name, "overall": {"iou": iou, "recall": 0.8, "precision": 0.7}, "overall_intervals": ends}
            for name, iou in (("a", 0.43), ("b", 0.56))
        ],
        "differences": [
            {"first": "a", "second": "b", "overall": {"iou": -0.13}, "overall_intervals": {"iou": [-0.2, -0.07]}}
        ],
        "folds": [],
    }
    networks_of_folds = [
        network(name, [scores_file(counts_of(12, i), tiles=f"/place/fold{i}") for i in seeds])
        for name, seeds in (("b", (1, 2)), ("a", (1, 2)))
    ]
    subject = replace(compared(*networks_of_folds), folds=FoldsFile(**content))
    assert headline(subject, {"test": 0.0}, None) == (
        f"Tree is mapped with IoU 0.56, 95{NBSP}% interval 0.50 to 0.62, on 24 pieces of ground, "
        "each mapped by a model that never saw it."
    )
    assert lead(subject) == f"“b” is ahead of “a” by 0.13, and with 95{NBSP}% confidence by at least 0.07."
    run = subject.run
    assert run is not None
    assert [fact.value for fact in facts(subject, run)[1:3]] == [f"80{NBSP}%", f"70{NBSP}%"]
    few = FoldsFile(**content | {"interval": {"units": 4}})
    assert remarks(replace(subject, folds=few))[0].startswith("Only 4 units were scored")
