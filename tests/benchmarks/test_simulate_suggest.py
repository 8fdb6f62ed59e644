"""The active learning simulation: tiles needed and saved, and whole curves on a small archive."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

import simulate_suggest as simulation
from archive import TILE_PX, Archive
from geograft.metrics.intervals import confidence_intervals
from simulate_suggest import STRATEGIES, curve, table_rows, tiles_needed, tiles_saved


def test_tiles_needed_are_interpolated_between_rounds() -> None:
    curve = np.array([0.5, 0.7, 0.8])
    assert tiles_needed(curve, 0.5) == 4
    assert tiles_needed(curve, 0.6) == pytest.approx(6)
    assert tiles_needed(curve, 0.75) == pytest.approx(10)
    assert tiles_needed(curve, 0.81) == 16


def test_a_decreasing_curve_is_smoothed_first() -> None:
    # 0.75 and 0.625 both become 0.6875, which is first reached with 8 tiles.
    assert tiles_needed(np.array([0.5, 0.75, 0.625, 1.0]), 0.6875) == 8


def test_tiles_saved_are_counted_at_the_final_score_of_random() -> None:
    random, other = np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.array([0.5, 0.7, 0.9, 0.9, 0.9])
    (tiles, fewer, share) = tiles_saved(np.concatenate([3 * random, 3 * other, [3.0]])[None])[0]
    assert (tiles, fewer) == (20, 12)
    assert share == pytest.approx(0.4)


def test_the_interval_contains_the_true_saving_and_narrows_with_seeds() -> None:
    def ends(seeds: int) -> ndarray:
        rng = np.random.default_rng(0)
        random = np.linspace(0.5, 0.9, 9) + rng.normal(0, 0.03, (seeds, 1))
        other = np.linspace(0.5, 1.3, 9) + rng.normal(0, 0.03, (seeds, 1))
        return confidence_intervals(
            np.concatenate([random, other, np.ones((seeds, 1))], axis=1), tiles_saved, draws=300
        )[2]

    few, many = ends(6), ends(60)
    for low, high in (few, many):
        assert low < 16 / 36 < high
    assert np.ptp(many) < np.ptp(few)


@pytest.fixture(scope="module")
def patches() -> Archive:
    """Six scenes of four tiles. A pixel's class is the sign of its first feature, up to noise."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.random((24, 8, 8)) < 0.5, np.ones((16, 16), bool)).astype(np.uint8)
    coarse = truth[:, ::4, ::4].reshape(24, 1024, 1).astype(float)
    seen = np.concatenate([2 * coarse - 1 + rng.normal(0, 0.3, coarse.shape), rng.normal(size=(24, 1024, 3))], axis=2)
    return Archive(seen.astype(np.float16), truth, np.repeat(np.arange(6), 4))


def test_cell_features_are_means_of_their_pixels(patches: Archive) -> None:
    side = TILE_PX // 4
    whole = patches.features[5].reshape(side, side, -1).astype(np.float64)
    assert patches.cell_features.shape == (24, 4, 4)
    assert patches.cell_features[5, 1] == pytest.approx(whole[:16, 16:].mean(axis=(0, 1)), abs=1e-3)


def test_every_strategy_starts_equal_learns_and_is_reproducible(patches: Archive) -> None:
    curves = {name: curve(patches, name, 0, 2) for name in STRATEGIES}
    assert len({ious[0] for ious in curves.values()}) == 1
    for ious in curves.values():
        assert len(ious) == 3
        assert min(ious) > 0.9
    assert curve(patches, "suggest", 0, 2) == curves["suggest"]


def test_finished_curves_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {name: {"0": [0.5, 0.6 + 0.1 * i, 0.9]} for i, name in enumerate(STRATEGIES)}
    (tmp_path / "suggest-2.json").write_text(json.dumps(held))
    monkeypatch.setattr(simulation, "curve", lambda *_: pytest.fail("computed again"))
    found = simulation.simulate(tmp_path, 1, 2, 1)
    assert found == held
    rows = table_rows({name: {"0": ious["0"], "1": ious["0"]} for name, ious in found.items()})
    assert rows[0][:5] == ["random", "0.500", "0.600", "0.900", "12"]
    assert rows[1][4:] == ["12", "0% (0% to 0%)", "+0.050 (+0.050 to +0.050)"]
    less = {name: {"0": [0.5, 0.6, 0.9 if name == "random" else 0.8]} for name in found}
    assert table_rows(less)[1][4:6] == ["more than 12", "none"]
