"""Confidence intervals, calibration and area estimates in a report."""

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
from geograft.commands.report.calibration import (
    calibration_figures,
    calibration_summary,
    constant_brier_score,
    described_bin,
    threshold_summary,
)
from geograft.commands.report.headline import headline, key_figures, lead_sentence, outdated_scores_notes, remarks
from geograft.commands.report.intervals import (
    ScoreEstimate,
    difference_sentence,
    format_signed,
    iou_difference,
    seed_mean_iou,
)
from geograft.commands.report.scores import AreaFile, FoldsFile, IntervalInfo, ReliabilityBin, ScoreTable, read_json
from geograft.commands.report.sources import NetworkRuns, RunSummary, Subject, TrainedRun
from geograft.commands.report.tables import area_table, network_rows, score_tables
from geograft.commands.report.text import NBSP, interval_warnings, scores_explanation
from geograft.config import ModelConfig
from geograft.errors import InputError
from geograft.figures.curves import OperatingPoint, precision_recall_figure, reliability_figure
from geograft.figures.style import DARK
from geograft.legend import Legend
from geograft.metrics.calibration import expected_calibration_error, reliability_counts, reliability_diagram
from geograft.metrics.confusion import overall_scores
from geograft.metrics.intervals import confidence_intervals, paired_confidence_intervals
from geograft.training.history import Epoch, History

LEGEND = Legend(("rest", "tree"))
CONFUSION = np.array([[70, 10], [5, 15]])


def counts_of(units: int, seed: int, right: float = 0.8) -> np.ndarray:
    """Return confusion matrices of `units` blocks of 1000 pixels with a recall of about `right`."""
    rng = np.random.default_rng(seed)
    tree = rng.integers(150, 350, units)
    found = (tree * np.clip(rng.normal(right, 0.05, units), 0, 1)).astype(int)
    invented = rng.integers(20, 60, units)
    return np.stack([np.stack([1000 - tree - invented, invented], -1), np.stack([tree - found, found], -1)], 1)


def scores_file(counts: np.ndarray, **more: Any) -> ScoreTable:
    """Return a score table of these units, converted to JSON and back."""
    total = counts.sum(axis=0)
    overall = {name: float(value) for name, value in overall_scores(total).items()}
    ends = confidence_intervals(
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
        "interval": {
            "level": 0.95,
            "units": len(counts),
            "unit": "block",
            "description": f"{len(counts)} blocks of 1 scene",
        },
        "per_unit": [{"unit": f"s {i}", "scene": "s", "confusion": c.tolist()} for i, c in enumerate(counts)],
    }
    return ScoreTable(**json.loads(json.dumps(content | more)))


def network(name: str, tables: Sequence[ScoreTable]) -> NetworkRuns:
    """Return a network with these scores, one per seed."""
    epoch = Epoch(1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.8, 0.7, 1e-3, 60.0, 10.0)
    card = ModelCard(name, ModelConfig(), "random", LEGEND, ("red",), "uint8", (0.0,), (1.0,), 32, None, 0.5, 1)
    runs = tuple(TrainedRun(Path("c") / name / str(i), card, History((epoch,)), (t,), {}) for i, t in enumerate(tables))
    rows = tuple(RunSummary(name, i, f"{name}/{i}", 9, 9, 0.5, 1, 0.5, 0.1, 60.0) for i in range(len(tables)))
    return NetworkRuns(name, rows, runs)


def compared(*variants: NetworkRuns) -> Subject:
    return Subject("comparison", Path("c"), "t", variants)


def test_the_headline_shows_the_interval_of_the_file() -> None:
    table = scores_file(counts_of(12, 1))
    low, high = table.overall_intervals["iou"] or (0, 0)
    single = Subject("run", Path("c"), "t", (network("map", [table]),))
    assert headline(single, {"test": 0.0}, None) == (
        f"Tree is mapped with an IoU of {table.iou:.2f} (95{NBSP}% confidence interval {low:.2f} to {high:.2f}) "
        "on 12 held-out blocks."
    )
    assert remarks(single)[0] == "All 12 blocks lie in one scene; other areas may differ more."
    assert headline(single, {}, None).endswith(" 12 blocks of the test split.")
    leaky = headline(single, {"test": 0.94}, None)
    assert leaky.endswith(f" 12 blocks of the test split, with 94{NBSP}% of the pixels also in training tiles.")


def test_the_mean_over_seeds_has_an_interval_over_the_same_units() -> None:
    counts = [counts_of(12, seed) for seed in (1, 2, 3)]
    found = seed_mean_iou(network("a", [scores_file(one) for one in counts]), "test")
    side_by_side = np.stack(counts, axis=1)

    def mean(sums: np.ndarray) -> np.ndarray:
        return overall_scores(sums.reshape(-1, 3, 2, 2))["iou"].mean(axis=1, keepdims=True)

    assert found is not None
    assert (found.low, found.high) == tuple(confidence_intervals(side_by_side.reshape(12, -1), mean)[0])
    assert found.value == pytest.approx(np.mean([scores_file(one).iou for one in counts]))


def test_the_difference_has_the_paired_interval_of_the_two_files() -> None:
    first, second = counts_of(15, 1, 0.9), counts_of(15, 1, 0.6)
    a, b = network("a", [scores_file(first)]), network("b", [scores_file(second)])
    found = iou_difference(a, b, "test")

    def iou(sums: np.ndarray) -> np.ndarray:
        return overall_scores(sums.reshape(-1, 2, 2))["iou"][:, None]

    assert found is not None
    assert [found.low, found.high] == paired_confidence_intervals(first.reshape(15, -1), second.reshape(15, -1), iou)[
        0
    ].tolist()
    sentence = lead_sentence(compared(a, b))
    interval = f"{found.low:.2f} to {found.high:.2f}"
    assert sentence == (
        f"The IoU of “a” is {found.value:.2f} higher than that of “b” "
        f"(95{NBSP}% confidence interval of the difference {interval})."
    )
    cells = {label: (text, small) for label, text, small in network_rows(compared(a, b))[1].cells}
    text, small = cells["test IoU, difference to best"]
    assert text == format_signed(-found.value)
    assert small == f"{format_signed(-found.high)} to {format_signed(-found.low)}"


def test_scores_of_other_units_are_not_paired() -> None:
    a = network("a", [scores_file(counts_of(12, 1))])
    for other in (scores_file(counts_of(11, 1)), scores_file(counts_of(12, 1), tiles="/another")):
        assert iou_difference(a, network("b", [other]), "test") is None
    assert seed_mean_iou(network("c", [a.runs[0].scores[0], scores_file(counts_of(11, 1))]), "test") is None


def test_a_run_is_compared_with_the_one_it_was_evaluated_against() -> None:
    against = {"run": "runs/plain", "overall": {"iou": 0.131}, "overall_intervals": {"iou": [0.052, 0.2]}}
    table = scores_file(counts_of(12, 1), against=against)
    single = Subject("run", Path("c"), "crowns", (network("map", [table]),))
    assert (
        lead_sentence(single) == f"The IoU of “crowns” is 0.13 higher than that of “plain” "
        f"(95{NBSP}% confidence interval of the difference 0.05 to 0.20)."
    )


@pytest.mark.parametrize(
    ("estimate", "sentence"),
    [
        (ScoreEstimate(0.13, 0.05, 0.2), "The IoU of “a” is 0.13 higher than that of “b” (CI 0.05 to 0.20)"),
        (ScoreEstimate(-0.13, -0.2, -0.051), "The IoU of “a” is 0.13 lower than that of “b” (CI −0.20 to −0.05)"),
        (ScoreEstimate(0.03, 0.001, 0.06), "The IoU of “a” is 0.03 higher than that of “b” (CI 0.001 to 0.060)"),
        (ScoreEstimate(0.03, -0.02, 0.08), "The IoU of “a” is 0.03 higher than that of “b”, but not significantly: "
         "the CI is −0.02 to 0.08"),
        (ScoreEstimate(0.001, -0.02, 0.02), "The IoU of “a” and “b” differs by less than 0.01 (CI −0.02 to 0.02)"),
        (ScoreEstimate(0.001), "The IoU of “a” and “b” differs by less than 0.01"),
        (ScoreEstimate(-0.2), "The IoU of “a” is 0.20 lower than that of “b”"),
    ],
)  # fmt: skip
def test_the_difference_sentence(estimate: ScoreEstimate, sentence: str) -> None:
    expected = sentence.replace("CI", f"95{NBSP}% confidence interval of the difference")
    assert difference_sentence("a", "b", estimate) == expected


@pytest.mark.parametrize(
    ("note", "scenes", "words"),
    [
        (IntervalInfo(30, "scene", ""), 30, ""),
        (IntervalInfo(30, "block", ""), 2, "All 30 blocks lie in 2 scenes"),
        (IntervalInfo(6, "scene", ""), 6, "Only 6 scenes were scored"),
        (IntervalInfo(1, "scene", ""), 1, "Only 1 scene was scored"),
        (None, 1, ""),
    ],
)
def test_few_units_are_noted_in_a_sentence(note: IntervalInfo | None, scenes: int, words: str) -> None:
    found = " ".join(interval_warnings(note, scenes))
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_few_units_are_noted_below_the_headline_and_above_the_tables() -> None:
    table = scores_file(counts_of(4, 1))
    single = Subject("run", Path("c"), "t", (network("map", [table]),))
    assert remarks(single)[0].startswith("Only 4 blocks were scored")
    assert "Only 4 blocks were scored" in scores_explanation(table)
    lone = scores_file(counts_of(1, 1))
    single = Subject("run", Path("c"), "t", (network("map", [lone]),))
    assert "interval" not in headline(single, {"test": 0.0}, None)
    assert remarks(single)[0].startswith("Only 1 block was scored")


def test_scores_without_intervals_are_shown_with_a_note() -> None:
    old = replace(scores_file(counts_of(12, 1)), interval=None, per_unit=(), overall_intervals={})
    subject = compared(network("a", [old]), network("b", [replace(old, name="far")]))
    assert headline(Subject("run", Path("c"), "t", (network("a", [old]),)), {"test": 0.0}, None) == (
        f"Tree is mapped with an IoU of {old.iou:.2f} on 23 held-out test tiles."
    )
    (note,) = outdated_scores_notes(subject)

    assert "scores-test.json of a/0 and 1 more" in note
    assert note.endswith("geograft evaluate c/a/0 --split test")
    assert outdated_scores_notes(compared(network("b", [replace(old, name="far")])))[0].endswith(
        "--split test --tiles /place/tiles"
    )
    assert outdated_scores_notes(compared(network("a", [scores_file(counts_of(12, 1))]))) == []
    assert calibration_summary(old) == calibration_figures(old) == []
    assert threshold_summary(network("a", [old]).runs[0], old) == ""


def overconfident(seed: int = 0, n: int = 20_000) -> ScoreTable:
    """Return scores of a map that predicts 80 % where 60 % of the pixels are of the class."""
    rng = np.random.default_rng(seed)
    confidence = rng.choice([0.1, 0.8], n, p=[0.7, 0.3]).astype(np.float32)
    bins = reliability_counts(confidence, rng.random(n) < np.where(confidence > 0.5, 0.6, 0.1))
    ece = float(expected_calibration_error(bins))
    table = scores_file(counts_of(12, 1), reliability=reliability_diagram(bins))
    return replace(table, overall=table.overall | {"ece": ece, "brier": 0.12, "average_precision": 0.7})


def test_the_calibration_summary_shows_the_described_bin_and_the_scores() -> None:
    table = overconfident()
    first, second, third = calibration_summary(table)
    described = described_bin(table.reliability)
    assert described is not None
    assert described.confidence == pytest.approx(0.8)
    observed = f"{100 * (described.observed_frequency or 0):.0f}{NBSP}%"
    assert first == f"Where the map gives tree a probability of 80{NBSP}%, {observed} of the pixels are tree."
    assert f"calibration error is {table.overall['ece']:.3f}" in second
    assert "Brier score is 0.120;" in second
    assert second.endswith(f" {constant_brier_score(table):.3f}.")
    assert third == f"The mean predicted probability of tree is 31{NBSP}%; 25{NBSP}% of the pixels are tree."


def test_the_constant_brier_score_predicts_the_class_proportions() -> None:
    table = scores_file(counts_of(12, 1))
    labelled = np.repeat([0, 1], np.array(table.confusion).sum(axis=1))
    assert constant_brier_score(table) == pytest.approx(np.square(labelled - labelled.mean()).mean())


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 1)), max_size=15))
def test_the_described_bin_is_nearest_to_80_percent_and_large_enough(bins: list[tuple[int, float]]) -> None:
    rows = [
        ReliabilityBin(pixels, confidence if pixels else None, 0.5 if pixels else None) for pixels, confidence in bins
    ]
    described, total = described_bin(rows), sum(pixels for pixels, _ in bins)
    assert (described is None) == (total == 0)
    if described is not None:
        assert described.pixels >= 0.002 * total
        assert all(
            abs(described.confidence - 0.8) <= abs(confidence - 0.8)
            for pixels, confidence in bins
            if pixels >= max(0.002 * total, 1)
        )


def test_the_threshold_summary_names_threshold_temperature_and_source() -> None:
    run = network("a", [overconfident()]).runs[0]
    table = replace(overconfident(), decision=None)
    assert threshold_summary(run, table) == ""
    decision = {"threshold": 0.397, "temperature": 1.177, "calibrated": ""}
    plain = scores_file(counts_of(12, 1), decision=decision)
    assert threshold_summary(run, plain).endswith("geograft calibrate c/a/0")
    chosen = threshold_summary(
        run, scores_file(counts_of(12, 1), decision=decision | {"calibrated": "46 validation tiles"})
    )
    assert chosen.startswith("The threshold 0.40 and the temperature 1.18 were chosen on 46 validation tiles.")
    assert "less confident" in chosen


def test_calibration_figures_have_alternative_texts_with_their_values() -> None:
    curve = {"threshold": [0.0, 0.5, 1.0], "precision": [0.2, 0.7, 1.0], "recall": [1.0, 0.8, 0.0]}
    table = replace(
        overconfident(), precision_recall=scores_file(counts_of(3, 1), precision_recall=curve).precision_recall
    )
    reliability, precision_recall = calibration_figures(table)
    assert f"at 80{NBSP}%" in reliability.alt
    assert precision_recall.alt.endswith(f"threshold 0.50, recall is 80{NBSP}% and precision 70{NBSP}%")
    assert reliability.wide != reliability.wide_dark


def test_figures_are_deterministic_and_accept_nan() -> None:
    confidence, right, pixels = np.array([0.1, np.nan, 0.9]), np.array([0.2, np.nan, 0.7]), np.array([9.0, 0.0, 1.0])
    words = ("predicted probability of tree", "observed frequency of tree")
    drawn = [reliability_figure(confidence, right, pixels, words, DARK) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert DARK.paper.lower() in drawn[0].decode()
    curve = precision_recall_figure(np.array([0.2, 1.0]), np.array([1.0, np.nan]), OperatingPoint(0.4, 0.3, 0.9), words)
    assert curve.startswith(b"<?xml")


def test_tables_have_intervals_means_kappa_boundaries_and_objects() -> None:
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
    found = {each.caption.split(",")[0]: each for each in score_tables(table)}
    by_class = found["By class"].rows
    assert by_class[1][1] == ("0.50", "0.41 to 0.62")
    assert by_class[1][3] == (f"80{NBSP}%", f"70{NBSP}% to 90{NBSP}%")
    assert [cells[0].text for cells in by_class] == ["rest", "tree", "mean over classes", "mean weighted by area"]
    assert by_class[2][1].text == f"{table.overall['macro_iou']:.2f}"
    assert found["All classes"].rows[1][1].text == f"{table.overall['kappa']:.2f}"
    assert [cells[0].text for cells in found["Boundaries"].rows] == ["tree"]
    assert [cell.text for cell in found["Objects"].rows[0][:4]] == ["tree", "114", "123", "23"]
    explanation = scores_explanation(table)
    assert "Of 114 labelled objects of tree, 23 match" in explanation
    assert f"7.9{NBSP}% more objects" in explanation


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
    assert table.columns[1] == "mapped area, ha"
    assert table.rows[1][1:3] == (("9.0", ""), ("12.0", "10.0 to 14.0"))
    path.write_text(json.dumps(content | {"classes": [{}]}))
    with pytest.raises(InputError, match=r"area\.json: classes\.0"):
        read_json(path, AreaFile)


def test_cross_validation_scores_every_unit_once() -> None:
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
        f"Tree is mapped with an IoU of 0.56 (95{NBSP}% confidence interval 0.50 to 0.62) "
        "on 24 held-out units in cross-validation."
    )
    assert lead_sentence(subject) == (
        f"The IoU of “b” is 0.13 higher than that of “a” "
        f"(95{NBSP}% confidence interval of the difference 0.07 to 0.20)."
    )
    run = subject.run
    assert run is not None
    assert [fact.value for fact in key_figures(subject, run)[1:3]] == [f"80{NBSP}%", f"70{NBSP}%"]
    few = FoldsFile(**content | {"interval": {"units": 4}})
    assert remarks(replace(subject, folds=few))[0].startswith("Only 4 units were scored")
