"""The ablation benchmark: rows against the default, relative costs, decoder variants, the table in the log."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bench_ideas
from bench_ideas import Ablation, cached_costs, list_ideas, table_rows
from decoders import CHANGES
from geograft.commands.curve import Curve
from geograft.commands.trials import CurveJob, ScoredRun, SubsetSize
from geograft.config import Recipe, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.networks.network import build
from idea_costs import PREDICTION, STEP, Idea, Runner
from page import LOG, replace_section

WHOLE = SubsetSize(100.0, 8)
SMALL = {"weights": "none", "encoder": "mobilenetv3_small_050", "frozen_stages": 0}


@pytest.fixture
def recipe() -> Recipe:
    """The ablations over a small encoder."""
    return load_recipe(Path("ideas")).with_settings(model=SMALL)


def point(name: str, hits: int, seed: int) -> ScoredRun:
    """A run with `hits` true positives of 10 in each of three scenes, and no false positives."""
    job = CurveJob(name, WHOLE, Recipe().with_settings(train={"seed": seed}), "val", f"{name}/{seed}")
    counts = np.array([[[5, 0], [10 - hits, hits]]] * 3)
    return ScoredRun(job, 1, 1, 1.0, "3 scenes", "", ("a", "b", "c"), counts)


def found(hits: dict[str, tuple[int, int]], folder: Path) -> Curve:
    """A curve of two seeds."""
    points = tuple(point(name, each[seed], seed) for name, each in hits.items() for seed in (0, 1))
    return Curve(folder, "", folder, "val", ("other", "forest"), points)


def test_rows_compare_each_variant_with_the_first(tmp_path: Path) -> None:
    curves = [found({"base": (8, 6), "good": (9, 7)}, tmp_path), found({"base": (5, 5), "good": (4, 4)}, tmp_path)]
    base, good = table_rows(curves, {"base": {STEP: 1, PREDICTION: 1}, "good": {STEP: 1.5, PREDICTION: 0.9}})
    assert base == ["**base**", "1.00", "1.00", "0.700", "", "0.500", ""]
    # All scenes are equal, so the intervals have no width.
    gained, lost = "+0.100 (+0.100 to +0.100)", "-0.100 (-0.100 to -0.100)"
    assert good == ["good", "1.50", "0.90", "0.800", gained, "0.400", lost]


def test_costs_are_measured_again_when_a_variant_was_renamed(
    tiles: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_ideas, "relative_costs", lambda runners, _: {name: {STEP: 1.0} for name in runners})
    ideas = [Idea("base", recipe), Idea("layer-wise rates", recipe)]
    path = tmp_path / "costs.json"
    assert list(cached_costs(ideas, tiles, 1, path)) == ["base", "layer-wise rates"]
    renamed = [ideas[0], replace(ideas[1], name="layer-wise learning rates")]
    assert list(cached_costs(renamed, tiles, 1, path)) == ["base", "layer-wise learning rates"]
    monkeypatch.setattr(bench_ideas, "relative_costs", lambda *_: pytest.fail("measured again"))
    assert list(cached_costs(renamed, tiles, 1, path)) == ["base", "layer-wise learning rates"]


def test_costs_are_weighted_by_the_epochs_of_a_frozen_encoder(tiles: Path, recipe: Recipe) -> None:
    whole = TileSet.open(tiles)
    assert Runner.of(Idea("", recipe), whole).phases == ((1.0, 0),)
    held = Runner.of(Idea("", recipe.with_settings(train={"freeze_epochs": 4, "batch_size": 2})), whole)
    network = held.learner.network
    assert held.phases == ((0.4, len(list(network.get_submodule("body.encoder.stages")))), (0.6, 0))
    assert all(seconds > 0 for seconds in held.seconds().values())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_every_variant_changes_one_setting_of_the_first() -> None:
    recipe = load_recipe(Path("ideas"))
    base = recipe.variant(recipe.variants[0], 0)
    assert (base.model, base.train) == (recipe.model, replace(recipe.train, seed=0))
    for idea in recipe.variants[1:]:
        assert len(idea.train) + len(idea.model) == 1
        assert recipe.variant(idea, 0) != base
    names = [idea.name for idea in list_ideas(recipe)]
    assert len(set(names)) == len(names) == len(recipe.variants) + len(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_every_decoder_variant_changes_the_network_and_learns(name: str, recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = build(recipe.model, 3, 1)
    plain = sum(p.numel() for p in network.parameters())
    CHANGES[name](network)
    image = torch.randn(2, 3, 64, 64)
    logits = network(image)
    assert logits.shape == (2, 1, 64, 64)
    logits.square().mean().backward()
    # The auxiliary heads get gradients only with deep supervision.
    learning = [p for part, p in network.named_parameters() if ".coarse." not in part]
    assert all(p.grad is not None for p in learning)
    assert sum(p.numel() for p in network.parameters()) != plain


def test_flow_alignment_starts_as_the_default(recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = build(recipe.model, 3, 1).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = network(image)
        CHANGES["flow alignment"](network)
        torch.testing.assert_close(network(image), before, rtol=1e-4, atol=1e-5)


def test_decoder_variants_are_trained_once_and_scored_on_the_same_pixels(
    tiles: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_ideas, "CHANGES", {"no context block": CHANGES["no context block"]})
    short = replace(recipe.with_settings(train={"epochs": 1}), variants=recipe.variants[:1], seeds=(0, 1))
    ground = Ablation(tiles, short, tmp_path)
    first = ground.run()
    assert list(first.by_variant) == ["the default", "no context block"]
    totals = {name: spots[0].measure.counts.sum(axis=(2, 3)) for name, spots in first.by_variant.items()}
    np.testing.assert_array_equal(totals["the default"], totals["no context block"])
    monkeypatch.setattr(bench_ideas, "fit", lambda *_: pytest.fail("trained again"))
    again = ground.run()
    for one, other in zip(first.runs, again.runs, strict=True):
        np.testing.assert_array_equal(one.confusion, other.confusion)


def test_the_log_has_markers_for_the_table() -> None:
    assert "| an idea |" in replace_section(LOG.read_text(encoding="utf-8"), "ideas", "| an idea |")
