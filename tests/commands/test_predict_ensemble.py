"""Maps of an ensemble: the order of its runs decides nothing."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geograft.card import WEIGHTS, ensemble_card, read_card, read_cards
from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.errors import InputError
from geograft.indices import parse_indices
from geograft.inference.predictor import EnsemblePredictor
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.training.checkpoint import save_weights
from tests.commands.test_predict import read
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, TREES, USES, ContextPredictor, make_run

RASTERS = ("map.tif", "map.probabilities.tif", "map.uncertainty.tif")
RUNS: tuple[dict[str, Any], ...] = (
    {"threshold": 0.1, "tile_px": 32, "resolution_m": 0.1},
    {"threshold": 0.5, "tile_px": 48, "resolution_m": 0.13, "temperature": 1.7, "std": (40.0, 60.0, 30.0)},
    {"threshold": 0.7, "tile_px": 32, "resolution_m": 0.11, "mean": (120.0, 70.0, 115.0)},
)
LEGENDS = pytest.mark.parametrize("legend", [TREES, COVERS, USES], ids=["binary", "exclusive", "overlapping"])


def make_runs(folder: Path, legend: Legend) -> list[Path]:
    """Write three runs that differ in all that an ensemble permits; two have the same weights."""
    runs = []
    for number, changes in enumerate(RUNS):
        run = make_run(folder / f"run{number}", legend, **changes)
        torch.manual_seed(number // 2)
        save_weights(run / WEIGHTS, build(read_card(run).model, 3, legend.outputs))
        runs.append(run)
    return runs


@LEGENDS
@pytest.mark.parametrize("resample", [False, True])
def test_the_order_of_the_runs_changes_no_bit_of_a_map(tmp_path: Path, legend: Legend, resample: bool) -> None:
    runs = make_runs(tmp_path, legend)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 60, 50))
    settings = PredictConfig(
        probabilities="float16", uncertainty=True, resample=resample, backend="torch", device="cpu", overlap=0.25
    )
    found = []
    for number, order in enumerate(permutations(runs)):
        predict(order, (scene,), tmp_path / str(number) / "map.tif", settings)
        found.append([read(tmp_path / str(number) / name) for name in RASTERS])
    assert any(np.ptp(raster[~np.isnan(raster)]) > 0 for raster in found[0])
    for other in found[1:]:
        for raster, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(raster, expected)


def test_three_layers_whose_sum_depends_on_its_order(tmp_path: Path) -> None:
    """The bits that a mean in the order of the command line would change."""
    runs = make_runs(tmp_path, TREES)
    pixels, valid = textured(3, 32, 32)[None].repeat(4, 0), np.ones((4, 32, 32), bool)
    options: dict[str, Any] = {"device": "cpu", "backend": "torch", "batch_size": 4}
    alone = [EnsemblePredictor.load([run], **options)(pixels, valid) for run in runs]
    naive = [(alone[i] + (alone[j] + alone[k])) / np.float32(3) for i, j, k in permutations(range(3))]
    assert any(not np.array_equal(one, naive[0]) for one in naive)
    joint = [EnsemblePredictor.load(order, **options)(pixels, valid) for order in permutations(runs)]
    assert all(np.array_equal(one, joint[0]) for one in joint)
    assert any(np.array_equal(one, joint[0]) for one in naive)


@given(st.data())
def test_thresholds_are_averaged_per_output(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    overlapping = data.draw(st.booleans())
    outputs = 3 if overlapping else 1
    values = st.tuples(*[st.floats(0, 1)] * outputs)
    chosen = data.draw(st.lists(values, min_size=1, max_size=5))
    plain = read_card(make_run(tmp_path_factory.mktemp("runs") / "run", USES if overlapping else TREES))
    cards = [plain.with_thresholds(thresholds) for thresholds in chosen]
    found = ensemble_card(cards).output_thresholds
    np.testing.assert_allclose(found, np.mean(chosen, axis=0), rtol=1e-12)
    assert all(min(each) <= mean <= max(each) for each, mean in zip(zip(*chosen, strict=True), found, strict=True))
    assert ensemble_card(data.draw(st.permutations(cards))).output_thresholds == found


def test_the_card_of_an_ensemble(tmp_path: Path) -> None:
    cards = read_cards(make_runs(tmp_path, TREES))
    card = ensemble_card(cards)
    assert (card.tile_px, card.threshold) == (48, pytest.approx(1.3 / 3))
    assert card.resolution_m == pytest.approx(0.34 / 3)
    assert ensemble_card([cards[0], replace(cards[1], resolution_m=None)]).resolution_m is None
    assert ensemble_card(cards[:1]) is cards[0]


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(
    "changes",
    [
        {"legend": Legend(("other", "roads"), (1, 2))},
        {"legend": Legend(("other", "trees"), overlapping=True)},
        {"band_names": ("red", "green"), "mean": (1.0,) * 2, "std": (1.0,) * 2},
        {"dtype": "uint16"},
        {
            "band_names": ("red", "green", "x"),
            "indices": parse_indices(("x=b1-b2",), ("red", "green")),
        },
    ],
)
def test_runs_that_do_not_match_are_refused_in_any_order(
    tmp_path: Path, changes: dict[str, Any], turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    runs = [make_run(tmp_path / "first"), make_run(tmp_path / "second", **changes)][::turn]
    scene = write_raster(tmp_path / "scene.tif", textured(3, 40, 40))
    with pytest.raises(InputError, match=f"{runs[1].name} .* {runs[0]}"):
        predict(runs, (scene,), tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()
