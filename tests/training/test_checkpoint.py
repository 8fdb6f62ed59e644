import io
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim import Adam

from geograft.errors import InputError, OutputError, SettingError
from geograft.training.checkpoint import (
    STATE,
    EpochTotals,
    Stateful,
    TrainingProgress,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from geograft.training.history import Epoch, History
from tests.support.training import TinyNetwork

IDENTITY = {"seed": 0, "tiles": "blocks"}
ROW = Epoch(1, *[0.25] * 5, float("nan"), *[0.5] * 4, lr=1e-3, seconds=2.0, tiles_per_second=9.0)


def nothing() -> EpochTotals:
    return EpochTotals(np.zeros((2, 2), np.int64))


def trained(seed: int = 0) -> tuple[TinyNetwork, dict[str, Stateful]]:
    """Return a network trained for two steps, and its parts."""
    network = TinyNetwork(seed=seed)
    optimizer = Adam(network.parameters())
    for _ in range(2):
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return network, {"network": network, "optimizer": optimizer}


def test_load_state_restores_everything(tmp_path: Path) -> None:
    network, parts = trained()
    progress = TrainingProgress(EpochTotals(np.array([[3, 2**40], [1, 0]]), 1 / 3), 1, 5, 7.5, History((ROW,)))
    save_state(tmp_path, parts, progress, IDENTITY)
    expected = torch.rand(3)
    other, other_parts = trained(seed=1)
    restored = load_state(tmp_path, other_parts, IDENTITY, 9)
    assert repr(restored) == repr(progress)
    assert torch.equal(torch.rand(3), expected)
    assert network.state_dict().keys() == other.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert repr(parts["optimizer"].state_dict()) == repr(other_parts["optimizer"].state_dict())


def test_the_mean_loss_is_over_pixels() -> None:
    totals = nothing()
    assert np.isnan(totals.mean_loss)
    totals.add(1.0, np.array([[1, 0], [0, 0]]))
    totals.add(0.5, np.array([[0, 1], [1, 1]]))
    totals.add(0.0, np.zeros((2, 2), np.int64))
    assert totals.mean_loss == (1.0 + 3 * 0.5) / 4
    np.testing.assert_array_equal(totals.confusion, [[1, 1], [1, 1]])


def test_a_state_of_another_run_is_refused_with_the_differences(tmp_path: Path) -> None:
    _, parts = trained()
    save_state(tmp_path, parts, TrainingProgress(nothing()), IDENTITY)
    with pytest.raises(SettingError, match="seed was 0 and is 4"):
        load_state(tmp_path, parts, {**IDENTITY, "seed": 4}, 9)
    with pytest.raises(SettingError, match="version"):
        load_state(tmp_path, parts, {**IDENTITY, "colour": "red"}, 9)
    with pytest.raises(SettingError, match=STATE):
        load_state(tmp_path, {"network": TinyNetwork(bands=5)}, IDENTITY, 9)


def test_a_state_with_more_epochs_leaves_nothing_to_train(tmp_path: Path) -> None:
    _, parts = trained()
    rows = tuple(replace(ROW, epoch=number) for number in (1, 2, 3))
    progress = TrainingProgress(nothing(), epoch=3, history=History(rows))
    save_state(tmp_path, parts, progress, {**IDENTITY, "epochs": 5})
    for epochs in (2, 3):
        assert load_state(tmp_path, parts, {**IDENTITY, "epochs": epochs}, epochs).epoch == 3
    with pytest.raises(SettingError, match="epochs was 5 and is 4"):
        load_state(tmp_path, parts, {**IDENTITY, "epochs": 4}, 4)


@pytest.mark.parametrize("length", [0, 1, 100, 5000, -30])
def test_a_truncated_state_is_a_one_line_error(tmp_path: Path, length: int) -> None:
    _, parts = trained()
    save_state(tmp_path, parts, TrainingProgress(nothing()), IDENTITY)
    content = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(content[:length])
    with pytest.raises(InputError, match=STATE) as caught:
        load_state(tmp_path, parts, IDENTITY, 9)
    assert "\n" not in str(caught.value)


def test_a_missing_state_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=STATE):
        load_state(tmp_path, {}, IDENTITY, 9)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("write", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c, protocol=2))])
def test_a_state_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write({"identity": Trap()}, tmp_path / STATE)
    with pytest.raises(InputError, match=STATE):
        load_state(tmp_path, {}, IDENTITY, 9)
    assert not (tmp_path / "sprung").exists()


def test_a_state_holds_plain_values_only(tmp_path: Path) -> None:
    _, parts = trained()
    save_state(tmp_path, parts, TrainingProgress(nothing(), history=History((ROW,))), IDENTITY)
    torch.load(io.BytesIO((tmp_path / STATE).read_bytes()), weights_only=True)


def test_weights_are_restored_bit_for_bit(tmp_path: Path) -> None:
    network, _ = trained()
    network.to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w.safetensors", network)
    other = TinyNetwork(seed=1)
    load_weights(tmp_path / "w.safetensors", other)
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert load_file(tmp_path / "w.safetensors").keys() == network.state_dict().keys()


def test_unusable_weights_are_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=path.name):
        load_weights(path, TinyNetwork())
    save_weights(path, TinyNetwork())
    with pytest.raises(InputError, match=path.name) as caught:
        load_weights(path, TinyNetwork(bands=5))
    assert "\n" not in str(caught.value)
    content = path.read_bytes()
    for length in (0, 5, 200, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=path.name):
            load_weights(path, TinyNetwork())


@pytest.mark.skipif(sys.platform == "win32", reason="a file size limit simulates a full disk")
@pytest.mark.parametrize("file", ["state", "weights"])
def test_a_full_disk_leaves_the_previous_file(tmp_path: Path, file: str) -> None:
    import resource
    import signal

    network, parts = trained()
    path = tmp_path / (STATE if file == "state" else "w.safetensors")

    def write() -> None:
        if file == "state":
            save_state(tmp_path, parts, TrainingProgress(nothing()), IDENTITY)
        else:
            save_weights(path, network)

    write()
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=path.name):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
