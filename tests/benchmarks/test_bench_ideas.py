"""The benchmark of ideas: rows against the default, what they cost, other decoders, where the table goes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bench_ideas
from bench_ideas import Ground, ideas_of, rows_of
from decoders import CHANGES
from geograft.commands.curve import Curve
from geograft.commands.trials import CurveJob, ScoredRun, SubsetSize
from geograft.config import Recipe, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.networks.network import build
from idea_costs import PREDICTION, STEP, Idea, Runner
from page import LOG, replaced

WHOLE = SubsetSize(100.0, 8)
SMALL = {"weights": "none", "encoder": "mobilenetv3_small_050", "frozen_stages": 0}


@pytest.fixture
def recipe() -> Recipe:
    """The ideas over a small encoder."""
    return load_recipe(Path("ideas")).with_settings(model=SMALL)


def point(name: str, hits: int, seed: int) -> ScoredRun:
    """A point that found `hits` of 10 pixels in each of three scenes, and nothing wrong."""
    job = CurveJob(name, WHOLE, Recipe().with_settings(train={"seed": seed}), "val", f"{name}/{seed}")
    counts = np.array([[[5, 0], [10 - hits, hits]]] * 3)
    return ScoredRun(job, 1, 1, 1.0, "3 scenes", "", ("a", "b", "c"), counts)


def found(hits: dict[str, tuple[int, int]], folder: Path) -> Curve:
    """A curve of two seeds."""
    points = tuple(point(name, each[seed], seed) for name, each in hits.items() for seed in (0, 1))
    return Curve(folder, "", folder, "val", ("other", "forest"), points)


def test_rows_hold_each_idea_against_the_first(tmp_path: Path) -> None:
    curves = [found({"base": (8, 6), "good": (9, 7)}, tmp_path), found({"base": (5, 5), "good": (4, 4)}, tmp_path)]
    base, good = rows_of(curves, {"base": {STEP: 1, PREDICTION: 1}, "good": {STEP: 1.5, PREDICTION: 0.9}})
    assert base == ["**base**", "1.00", "1.00", "0.700", "", "0.500", ""]
    # All scenes are alike, so that no interval has any width.
    gained, lost = "+0.100 (+0.100 to +0.100)", "-0.100 (-0.100 to -0.100)"
    assert good == ["good", "1.50", "0.90", "0.800", gained, "0.400", lost]


def test_a_held_encoder_counts_for_its_epochs(tiles: Path, recipe: Recipe) -> None:
    whole = TileSet.open(tiles)
    assert Runner.of(Idea("", recipe), whole).phases == ((1.0, 0),)
    held = Runner.of(Idea("", recipe.with_settings(train={"freeze_epochs": 4, "batch_size": 2})), whole)
    network = held.learning.network
    assert held.phases == ((0.4, len(list(network.get_submodule("body.encoder.stages")))), (0.6, 0))
    assert all(seconds > 0 for seconds in held.seconds().values())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_every_idea_changes_one_thing_of_the_first() -> None:
    recipe = load_recipe(Path("ideas"))
    base = recipe.variant(recipe.variants[0], 0)
    assert (base.model, base.train) == (recipe.model, replace(recipe.train, seed=0))
    for idea in recipe.variants[1:]:
        assert len(idea.train) + len(idea.model) == 1
        assert recipe.variant(idea, 0) != base
    names = [idea.name for idea in ideas_of(recipe)]
    assert len(set(names)) == len(names) == len(recipe.variants) + len(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_every_decoder_is_another_network_that_learns(name: str, recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = build(recipe.model, 3, 1)
    plain = sum(p.numel() for p in network.parameters())
    CHANGES[name](network)
    image = torch.randn(2, 3, 64, 64)
    logits = network(image)
    assert logits.shape == (2, 1, 64, 64)
    logits.square().mean().backward()
    # The heads of coarser maps learn only where they are asked for.
    learning = [p for part, p in network.named_parameters() if ".coarse." not in part]
    assert all(p.grad is not None for p in learning)
    assert sum(p.numel() for p in network.parameters()) != plain


def test_maps_to_be_aligned_begin_where_they_are(recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = build(recipe.model, 3, 1).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = network(image)
        CHANGES["maps aligned"](network)
        torch.testing.assert_close(network(image), before, rtol=1e-4, atol=1e-5)


def test_decoders_are_trained_once_and_scored_as_the_ideas_are(
    tiles: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_ideas, "CHANGES", {"no context": CHANGES["no context"]})
    short = replace(recipe.with_settings(train={"epochs": 1}), variants=recipe.variants[:1], seeds=(0, 1))
    ground = Ground(tiles, short, tmp_path)
    first = ground.found()
    assert list(first.by_variant) == ["the default", "no context"]
    totals = {name: spots[0].measure.counts.sum(axis=(2, 3)) for name, spots in first.by_variant.items()}
    np.testing.assert_array_equal(totals["the default"], totals["no context"])
    monkeypatch.setattr(bench_ideas, "fit", lambda *_: pytest.fail("trained again"))
    again = ground.found()
    for one, other in zip(first.runs, again.runs, strict=True):
        np.testing.assert_array_equal(one.confusion, other.confusion)


def test_the_log_has_a_place_for_the_table() -> None:
    assert "| an idea |" in replaced(LOG.read_text(encoding="utf-8"), "ideas", "| an idea |")
