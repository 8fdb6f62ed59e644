"""Training that waits for no GPU within a step, here with torch's CPU device and its fused optimizer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geograft.config import ModelConfig, TrainConfig
from geograft.errors import DivergedError
from geograft.interrupts import Interrupted
from geograft.networks.network import Network, build
from geograft.training import loop
from geograft.training.checkpoint import LAST, RunFolder
from geograft.training.distributed import launch
from geograft.training.history import History
from geograft.training.loader import TrainingData
from geograft.training.loop import fit
from geograft.training.optim import build_optimizer
from geograft.training.step import count_by_sorting
from tests.support.overlapping import overlapping_data
from tests.support.training import Tile, TinyNetwork, blocks, training_data
from tests.support.waiting import RefuseToWait

CONFIG = TrainConfig(epochs=2, batch_size=4, decoder_lr=3e-3, encoder_lr=3e-3, workers=0, device="cpu", ema=0.8)


@pytest.fixture(autouse=True)
def deferring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defer the checks as on a GPU, and read results every third step, which is not a divisor of an epoch's five."""
    monkeypatch.setattr("geograft.training.loop.can_defer_checks", lambda _: True)
    monkeypatch.setattr("geograft.training.step.count_values", count_by_sorting)
    monkeypatch.setattr("geograft.training.loop.READ_STEPS", 3)


def light() -> Network:
    return build(ModelConfig(encoder="mobilenetv3_small_050", weights="none"), 3, 3)


@pytest.mark.parametrize(
    ("network", "data", "options", "chunks"),
    [
        (TinyNetwork, training_data, {"clip_norm": 0.1}, 1),
        (TinyNetwork, training_data, {"accumulate": 2, "class_weights": "1,2", "boundary_weight": 1.0}, 3),
        (light, lambda: training_data(3), {"class_weights": "1,2,3", "label_smoothing": 0.1}, 1),
        (light, lambda: training_data(3), {"pixel_loss": "focal", "region_loss": "lovasz"}, 2),
        (lambda: TinyNetwork(outputs=2), overlapping_data, {"region_loss": "tversky", "optimizer": "adam"}, 2),
    ],
)
def test_a_step_waits_for_nothing(
    *,
    network: Callable[[], Network],
    data: Callable[[], TrainingData],
    options: dict[str, Any],
    chunks: int,
    tmp_path: Path,
) -> None:
    def run_steps(group: Any) -> int:
        run = loop._Run(group, network(), data(), replace(CONFIG, **options), RunFolder(tmp_path), resume=False)
        run._step.chunks = chunks
        run._begin_epoch()
        batches = list(run._loader.train(0))[:4]
        run._optimizer_step(batches[:1])
        assert run._ema is not None
        with RefuseToWait(run._ema.n_averaged) as mode:
            for batch in batches[1:]:
                run._optimizer_step([batch])
        return mode.calls

    assert launch(CONFIG, run_steps) > 100


def test_the_mode_sees_what_waits() -> None:
    numbers = torch.arange(3)
    waiting = (
        lambda: numbers.sum().item(),
        lambda: bool(numbers.any()),
        lambda: torch.tensor([1, 2]),
        lambda: numbers[numbers > 1],
        lambda: torch.bincount(numbers),
    )
    for call in waiting:
        with pytest.raises(AssertionError, match="waits for a GPU"), RefuseToWait():
            call()
    number = torch.tensor(3)
    with RefuseToWait(number):
        assert number.item() == 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 11)), st.integers(12, 20))
def test_values_are_counted_as_by_bincount(values: list[int], size: int) -> None:
    given_values = torch.tensor(values, dtype=torch.int64)
    assert torch.equal(count_by_sorting(given_values, size), torch.bincount(given_values, minlength=size))


def immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check each loss before gradients are computed, with the same optimizer."""
    monkeypatch.setattr("geograft.training.loop.can_defer_checks", lambda _: False)
    monkeypatch.setattr(
        "geograft.training.loop.build_optimizer", lambda network, config, fused: build_optimizer(network, config, True)
    )


def rows(history: History) -> list[Any]:
    return [replace(row, seconds=0, tiles_per_second=0) for row in history.epochs]


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"optimizer": "adam", "clip_norm": 0.1}])
def test_deferred_checks_change_no_bit(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, **options)
    deferred = fit(TinyNetwork(), training_data(), config, tmp_path / "deferred")
    immediate(monkeypatch)
    history = fit(TinyNetwork(), training_data(), config, tmp_path / "immediate")
    assert rows(deferred) == rows(history)
    assert (tmp_path / "deferred" / LAST).read_bytes() == (tmp_path / "immediate" / LAST).read_bytes()


class Scenes(list[Tile]):
    """Tiles with names."""

    def name(self, index: int, /) -> str:
        return f"scene {index}"


@pytest.mark.parametrize(("tile", "accumulate"), [(7, 1), (2, 1), (12, 2)])
def test_a_nan_loss_leaves_the_weights_and_names_the_tile(
    tile: int, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps after it, until results are read, change nothing."""
    tiles = Scenes(blocks(18, 0))
    tiles[tile][0][0, 9, 9] = np.inf
    tiles[tile][1][9, 9] = 1
    found = []
    for prepare in (lambda _: None, immediate):
        prepare(monkeypatch)
        network = TinyNetwork()
        with pytest.raises(DivergedError, match=rf"nan in step \d of epoch 1\. .*scene {tile}\.") as caught:
            fit(network, training_data(train=tiles), replace(CONFIG, accumulate=accumulate), tmp_path)
        assert not list(tmp_path.iterdir())
        found.append((str(caught.value), [parameter.detach() for parameter in network.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(parameter.isfinite().all() for parameter in found[0][1])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(TinyNetwork(), training_data(), CONFIG, tmp_path / "whole")
    asked = 0

    def received() -> int:
        nonlocal asked
        asked += 1
        return 2 if asked > 12 else 0

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        for module in ("loop", "step"):
            patch.setattr(f"geograft.training.{module}.received_signal", received)
        fit(TinyNetwork(), training_data(), CONFIG, tmp_path / "parts")
    state = torch.load(tmp_path / "parts" / "state.ckpt", weights_only=True)["progress"]
    assert (state["epoch"], state["step"]) not in ((0, 0), (1, 0))
    resumed = fit(TinyNetwork(seed=9), training_data(), CONFIG, tmp_path / "parts", resume=True)
    assert rows(resumed) == rows(whole)
    assert (tmp_path / "parts" / LAST).read_bytes() == (tmp_path / "whole" / LAST).read_bytes()
