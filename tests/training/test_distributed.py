import math
import operator
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.nn.functional import avg_pool2d

from geograft.card import WEIGHTS
from geograft.commands.train import train
from geograft.config import ModelConfig, Recipe, TrainConfig
from geograft.cores import interface_to
from geograft.errors import DivergedError, InputError, ProcessLostError, SettingError
from geograft.losses.segmentation import Logits, MultiScaleLogits
from geograft.networks.network import Network, build
from geograft.training import distributed
from geograft.training.checkpoint import LAST, STATE, RunFolder
from geograft.training.distributed import (
    ProcessGroup,
    SyncBatchNormMode,
    _ddp_strategy,
    _original_error,
    check_devices,
    launch,
    rank_of,
    spawns_processes,
)
from geograft.training.history import HISTORY, History
from geograft.training.loader import TrainingData
from geograft.training.loop import _fit_process, fit
from geograft.training.optim import freeze_encoder
from tests.support.overlapping import overlapping_blocks, overlapping_data
from tests.support.training import Tile, TinyNetwork, blocks, training_data

# Batches of 5, 5, 5 and 3 training tiles and of 5 and 1 validation tiles: shards differ in size, and one may be empty.
CONFIG = TrainConfig(epochs=2, batch_size=5, decoder_lr=3e-3, encoder_lr=1e-3, workers=0, device="cpu")
TWO = replace(CONFIG, devices=2)


def data(**changes: Any) -> TrainingData:
    return training_data(val=blocks(6, 1), **changes)


class Deterministic(TinyNetwork):
    """Without dropout, and without biases before batch norm: their gradients are noise, from which Adam makes steps."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__(outputs=outputs, frozen=1)
        for stage in self.stages:
            stage[0].bias, stage[-1] = None, nn.Identity()


class DeepSupervised(Deterministic):
    """With an auxiliary output in training."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Logits | MultiScaleLogits:
        logits = super().forward(image)
        return (logits, {4: self.coarse(avg_pool2d(image, 4))}) if self.training else logits


class Tiles(list[Tile]):
    """Tiles of which each process can read `left`, then it stops."""

    left = 10**9

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return super().__getitem__(index)

    def random_crop(self, index: int, _: np.random.Generator, /) -> Tile:
        """Return the tile itself. Crops are read again in each epoch."""
        return self[index]


class TilesWithNames(Tiles):
    """Tiles with names."""

    def name(self, index: int, /) -> str:
        return f"scene {index}"


def figures(history: History) -> list[list[float]]:
    """Return the history without times."""
    return [
        [value for name, value in vars(row).items() if name not in ("seconds", "tiles_per_second")]
        for row in history.epochs
    ]


FEATURES = {"ema": 0.9, "optimizer": "adamw", "clip_norm": 0.5, "accumulate": 2, "freeze_epochs": 1}


CASES: dict[str, tuple[Callable[[], Network], Callable[[], TrainingData], dict[str, Any]]] = {
    "binary": (Deterministic, data, {}),
    "overlapping": (
        partial(Deterministic, 2),
        partial(overlapping_data, val=overlapping_blocks(6, 1)),
        {"pixel_loss": "focal"},
    ),
    "lovasz": (Deterministic, data, {"region_loss": "lovasz"}),
    "tversky": (
        partial(Deterministic, 3),
        partial(data, classes=3),
        {"region_loss": "tversky", "boundary_weight": 1.0},
    ),
    "auxiliary outputs": (DeepSupervised, data, {"auxiliary_weight": 1.0}),
}


def fit_cases(group: ProcessGroup, folder: Path) -> dict[str, History]:
    """Train every case in this group of processes, which start once for all of them."""
    return {
        case: _fit_process(
            group, network(), data(), replace(TWO, **FEATURES, **settings), RunFolder(folder / case), False
        )
        for case, (network, data, settings) in CASES.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True], ids=["own collectives", "DDP"])
def test_two_processes_reach_the_weights_and_scores_of_one(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = _ddp_strategy("cuda" if wrapped else "cpu")
    monkeypatch.setattr(distributed, "_ddp_strategy", lambda _device: strategy)
    found = launch(TWO, fit_cases, tmp_path / "two")
    for case, (network, data, settings) in CASES.items():
        one = network()
        expected = fit(one, data(), replace(CONFIG, **FEATURES, **settings), tmp_path / "one" / case)
        np.testing.assert_allclose(figures(found[case]), figures(expected), rtol=1e-3, err_msg=case)
        assert {path.name for path in (tmp_path / "two" / case).iterdir()} == {WEIGHTS, LAST, STATE, HISTORY}
        kept = load_file(tmp_path / "two" / case / LAST)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_interrupted_and_resumed_end_with_the_same_bits(tmp_path: Path) -> None:
    config, tiles = replace(TWO, save_minutes=1e-9, crops=True), Tiles(blocks(18, 0))
    whole = fit(TinyNetwork(), data(train=tiles), config, tmp_path / "whole")
    stopping = Tiles(blocks(18, 0))
    # One is read to try the memory.
    stopping.left = 15
    # On a busy machine, the process that waits for the one that stops may end first.
    with pytest.raises((ProcessRaisedException, ProcessLostError), match=r"InterruptedError|Another process"):
        fit(TinyNetwork(), data(train=stopping), config, tmp_path / "stopped")
    progress = torch.load(tmp_path / "stopped" / STATE, weights_only=True)["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 1)
    network = TinyNetwork(seed=9)
    resumed = fit(network, data(train=tiles), config, tmp_path / "stopped", resume=True)
    assert figures(resumed) == figures(whole)
    for file in (LAST, WEIGHTS):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    for name, value in load_file(tmp_path / "stopped" / LAST).items():
        assert torch.equal(network.state_dict()[name], value)


class SmallOnOne(Deterministic):
    """A network that one of the processes has memory for two tiles of, in training."""

    def forward(self, image: Tensor) -> Tensor:
        if self.training and len(image) > 2 and torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        found: Tensor = super().forward(image)
        return found


@pytest.mark.slow
def test_short_memory_of_one_process_splits_the_batches_of_all(tmp_path: Path) -> None:
    # Shards of four tiles; the last batch of 18 has one tile for each process, which is one chunk.
    history = fit(SmallOnOne(), data(), replace(TWO, batch_size=8, epochs=1), tmp_path)
    (note,) = history.notes
    assert "2 chunks" in note
    assert math.isfinite(history.epochs[0].train_loss)


@pytest.mark.slow
def test_a_nonfinite_tile_in_another_process_is_named_in_one_line(tmp_path: Path) -> None:
    tiles = TilesWithNames(blocks(18, 0))
    tiles[7][0][0, 9, 9], tiles[7][1][9, 9] = math.inf, 1
    with pytest.raises(InputError, match=r"nan in step \d of epoch 1\..* scene 7\.") as caught:
        fit(TinyNetwork(), data(train=tiles), TWO, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_processes_started_by_torchrun_train_one_run(tiles: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 4, "device": "cpu", "devices": 2}
    recipe = Recipe().with_settings(model={"architecture": "unet"}, train=settings)
    expected = train(tiles, tmp_path / "spawned", recipe)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "geograft"]
    arguments = ["train", tiles, "--out", tmp_path / "run", "--recipe", expected.run / "recipe.toml"]
    done = subprocess.run([sys.executable, *torchrun, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: ") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in expected.run.iterdir()}
    for file in (LAST, WEIGHTS):
        assert (tmp_path / "run" / file).read_bytes() == (expected.run / file).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 2}, "nodes = 2.*torchrun or srun"),
        ({"devices": 2, "compile": True}, "compile = true"),
        ({"devices": 6}, "6 processes .*batch_size is 5"),
        (
            {"devices": 3, "batch_size": 6},
            "3 processes .*batch_size is 6.* 18 training and 2 validation",
        ),
    ],
)
def test_an_impossible_process_group_is_a_one_line_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        fit(TinyNetwork(), training_data(val=blocks(2, 1)), replace(CONFIG, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchrun_and_settings_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=r"torchrun .*8 processes, 4 .*--devices 4 --nodes 2"):
        fit(TinyNetwork(), training_data(), TWO, tmp_path)
    assert rank_of(replace(CONFIG, devices=4, nodes=2)) == 5
    assert rank_of(CONFIG) == 0


def in_a_slurm_job(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    job = {"JOB_ID": "1", "JOB_NAME": "geograft", "JOB_NODELIST": "localhost"}
    for name, value in {**job, "PROCID": "0", "LOCALID": "0", "NODEID": "0", **variables}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.slow
def test_a_slurm_job_of_one_process_spawns_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_slurm_job(monkeypatch, NTASKS="1", NNODES="1")
    assert spawns_processes(TWO)
    assert launch(TWO, ranks) == [0, 1]
    assert launch(CONFIG, ranks) == [0]


def group_of(device: str, world_size: int = 2) -> ProcessGroup:
    """Return a process group as it would be on `device`."""
    values = {"global_rank": 0, "world_size": world_size, "device": torch.device(device)}
    return ProcessGroup(Mock(spec=Fabric, strategy=_ddp_strategy(device), **values))


def test_cuda_uses_the_ddp_wrapper_and_cpu_does_not() -> None:
    cuda, cpu = group_of("cuda"), group_of("cpu")
    assert (cuda.has_ddp, cuda.loss_factor, cpu.has_ddp, cpu.loss_factor) == (True, 2, False, 1)
    options = _ddp_strategy("cuda")._ddp_kwargs
    assert options == {"find_unused_parameters": True, "broadcast_buffers": False}
    assert isinstance(cuda.sync_batchnorm(), nullcontext)
    assert isinstance(cpu.sync_batchnorm(), SyncBatchNormMode)


@pytest.mark.parametrize("architecture", ["unet", "transfer", "light"])
def test_cuda_converts_batch_norm_and_cpu_does_not(architecture: Literal["unet", "transfer", "light"]) -> None:
    network = build(ModelConfig(architecture=architecture, weights="none"), 3, 1, pretrained=False).eval()
    image, state = torch.randn(1, 3, 64, 64), deepcopy(network.state_dict())
    parameters = list(network.parameters())
    expected = network(image)
    count = sum(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    for group in (group_of("cpu"), group_of("cuda", world_size=1)):
        group.convert_batchnorm(network)
        assert not any(isinstance(each, nn.SyncBatchNorm) for each in network.modules())
    group_of("cuda").convert_batchnorm(network)
    assert sum(isinstance(each, nn.SyncBatchNorm) for each in network.modules()) == count > 0
    assert not any(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    assert all(map(operator.is_, network.parameters(), parameters))
    assert network.state_dict().keys() == state.keys()
    torch.testing.assert_close(network(image), expected)
    freeze_encoder(network, 2)
    frozen = [each.training for stage in network.train().stages[:2] for each in stage.modules()]
    assert frozen
    assert not any(frozen)


def ranks(group: ProcessGroup) -> list[int]:
    """Return the ranks of all processes."""
    return [int(line) for line in group.all_gather_lines([str(group.rank)])]


@pytest.mark.parametrize("settings", [{"devices": 2}, {"devices": 1}, {"devices": 4}, {"devices": 1, "nodes": 4}])
def test_slurm_and_settings_must_agree(settings: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_slurm_job(monkeypatch, NTASKS="4", NNODES="2")
    with pytest.raises(SettingError, match=r"Slurm .*4 processes on 2 nodes\. .*--devices 2 --nodes 2"):
        check_devices(replace(CONFIG, **settings))
    check_devices(replace(CONFIG, devices=2, nodes=2))


def test_an_error_of_another_process_keeps_its_class_and_message() -> None:
    raised = ProcessRaisedException("...\ngeograft.errors.DivergedError: The loss became nan.\n", 1, 2)
    error = _original_error(raised)
    assert isinstance(error, DivergedError)
    assert str(error) == "The loss became nan."


def test_the_slurm_rank_counts_only_with_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "4", "NTASKS_PER_NODE": "2", "PROCID": "3", "JOB_NAME": "geograft"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert rank_of(replace(CONFIG, devices=2, nodes=2)) == 3
    assert rank_of(CONFIG) == 0


def test_a_process_that_the_system_ended_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 2, -9, "SIGKILL")
    monkeypatch.setattr(Fabric, "launch", Mock(side_effect=killed))
    with pytest.raises(ProcessLostError, match=r"SIGKILL.*--resume"):
        launch(TWO, ranks)


def test_processes_that_begin_differently_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(_: ProcessGroup, lines: list[str]) -> list[str]:
        return [*lines, lines[0].replace("epoch 1, step 1", "epoch 2, step 1")]

    monkeypatch.setattr(ProcessGroup, "all_gather_lines", gather)
    with pytest.raises(InputError, match=r"Process 0 of 2 begins with epoch 1.* process 1 with epoch 2.* run folder"):
        fit(TinyNetwork(), training_data(), CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


def as_number(address: str) -> str:
    """Return an IPv4 address as the kernel prints it in /proc/net/route."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"


def test_the_interface_of_the_most_specific_route_is_found(tmp_path: Path) -> None:
    routes = ("eth0 0.0.0.0 0.0.0.0", "ib0 10.77.0.0 255.255.0.0", "ib1 10.77.3.0 255.255.255.0")
    rows = [(name, as_number(start), as_number(mask)) for name, start, mask in map(str.split, routes)]
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    table, empty = tmp_path / "route", tmp_path / "empty"
    table.write_text(head + "".join(f"{name} {start} 00000000 0001 0 0 0 {mask} 0 0 0\n" for name, start, mask in rows))
    empty.write_text(head)
    found = [interface_to(address, table) for address in ("10.77.3.9", "10.77.4.9", "192.0.2.1", "127.0.0.1")]
    assert found == ["ib1", "ib0", "eth0", ""]
    assert [interface_to("10.77.3.9", path) for path in (empty, tmp_path / "missing")] == ["", ""]
