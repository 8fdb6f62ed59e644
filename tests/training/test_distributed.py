import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.functional import avg_pool2d

from geograft.card import WEIGHTS
from geograft.commands.train import train
from geograft.config import Recipe, TrainConfig
from geograft.errors import DivergedError, InputError, SettingError
from geograft.losses.segmentation import Logits, MultiScaleLogits
from geograft.networks.network import Network
from geograft.training.checkpoint import LAST, STATE
from geograft.training.distributed import (
    ProcessGroup,
    _original_error,
    check_devices,
    launch,
    rank_of,
    spawns_processes,
)
from geograft.training.history import HISTORY, History
from geograft.training.loader import TrainingData
from geograft.training.loop import fit
from tests.support.overlapping import overlapping_blocks, overlapping_data
from tests.support.training import Tile, TinyNetwork, blocks, training_data

# Batches of 5, 5, 5, 3 tiles in training and of 5 and 1 in validation: parts differ, and one process may have nothing.
CONFIG = TrainConfig(epochs=2, batch_size=5, decoder_lr=3e-3, encoder_lr=1e-3, workers=0, device="cpu")
TWO = replace(CONFIG, devices=2)


def data(**changes: Any) -> TrainingData:
    return training_data(val=blocks(6, 1), **changes)


class Certain(TinyNetwork):
    """Without dropout, and without biases that batch norm takes away again: Adam would make steps of their noise."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__(outputs=outputs, frozen=1)
        for stage in self.stages:
            stage[0].bias, stage[-1] = None, nn.Identity()


class Coarser(Certain):
    """With logits of a coarser map in training."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(3, 1, 1)

    def forward(self, image: Tensor) -> Logits | MultiScaleLogits:
        logits = super().forward(image)
        return (logits, {4: self.coarse(avg_pool2d(image, 4))}) if self.training else logits


class Tiles(list[Tile]):
    """Tiles of which each process reads only so many."""

    left = 10**9

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        self.left -= 1
        if self.left < 0:
            raise InterruptedError
        return super().__getitem__(index)


class Scenes(Tiles):
    """Tiles with names."""

    def name(self, index: int, /) -> str:
        return f"scene {index}"


def figures(history: History) -> list[list[float]]:
    """Return all but the times."""
    return [
        [value for name, value in vars(row).items() if name not in ("seconds", "tiles_per_second")]
        for row in history.epochs
    ]


FEATURES = {"ema": 0.9, "optimizer": "adamw", "clip_norm": 0.5, "accumulate": 2, "freeze_epochs": 1}


CASES: dict[str, tuple[Callable[[], Network], Callable[[], TrainingData], dict[str, Any]]] = {
    "two classes": (Certain, data, {}),
    "overlapping": (
        partial(Certain, 2),
        partial(overlapping_data, val=overlapping_blocks(6, 1)),
        {"pixel_loss": "focal"},
    ),
    "coarser maps": (Coarser, data, {"auxiliary_weight": 1.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_and_scores_of_one(case: str, tmp_path: Path) -> None:
    network, data, settings = CASES[case]
    one, two = network(), network()
    expected = fit(one, data(), replace(CONFIG, **FEATURES, **settings), tmp_path / "one")
    found = fit(two, data(), replace(TWO, **FEATURES, **settings), tmp_path / "two")
    np.testing.assert_allclose(figures(found), figures(expected), rtol=1e-3)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {WEIGHTS, LAST, STATE, HISTORY}
    kept = load_file(tmp_path / "two" / LAST)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(two.state_dict()[name], kept[name])


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_end_with_the_same_bits(tmp_path: Path) -> None:
    config = replace(TWO, save_minutes=1e-9)
    whole = fit(TinyNetwork(), data(), config, tmp_path / "whole")
    stopping = Tiles(blocks(18, 0))
    stopping.left = 14
    # Whichever is first: the process that stops, or the one that then waits in vain.
    with pytest.raises(ProcessRaisedException, match=r"InterruptedError|Connection"):
        fit(TinyNetwork(), data(train=stopping), config, tmp_path / "stopped")
    position = torch.load(tmp_path / "stopped" / STATE, weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (1, 1)
    resumed = fit(TinyNetwork(seed=9), data(), config, tmp_path / "stopped", resume=True)
    assert figures(resumed) == figures(whole)
    for file in (LAST, WEIGHTS):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
def test_a_process_that_meets_a_bad_tile_names_it_in_one_line(tmp_path: Path) -> None:
    tiles = Scenes(blocks(18, 0))
    tiles[7][0][0, 9, 9], tiles[7][1][9, 9] = math.inf, 1
    with pytest.raises(InputError, match=r"became nan in step \d of epoch 1\. The cause is scene 7\.") as caught:
        fit(TinyNetwork(), data(train=tiles), TWO, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_under_torchrun_the_processes_that_are_there_make_one_run(tiles: Path, tmp_path: Path) -> None:
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
        ({"nodes": 2}, "start geograft on each machine with torchrun or srun"),
        ({"devices": 2, "compile": True}, "compile = true is for one device"),
        ({"devices": 6}, "6 processes cannot share"),
        (
            {"devices": 3, "batch_size": 6},
            "3 processes cannot share batches of 6 of 18 training and 2 validation tiles",
        ),
    ],
)
def test_a_crew_that_cannot_be_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        fit(TinyNetwork(), training_data(val=blocks(2, 1)), replace(CONFIG, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_torchrun_and_settings_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        SettingError, match=r"torchrun started 8 processes, 4 of them here\. Give --devices 4 --nodes 2"
    ):
        fit(TinyNetwork(), training_data(), TWO, tmp_path)
    assert rank_of(replace(CONFIG, devices=4, nodes=2)) == 5
    assert rank_of(CONFIG) == 0


def in_a_slurm_job(monkeypatch: pytest.MonkeyPatch, **told: str) -> None:
    here = {"JOB_ID": "1", "JOB_NAME": "geograft", "JOB_NODELIST": "localhost"}
    for name, value in {**here, "PROCID": "0", "LOCALID": "0", "NODEID": "0", **told}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.slow
def test_a_slurm_job_of_one_process_starts_the_others_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_slurm_job(monkeypatch, NTASKS="1", NNODES="1")
    assert spawns_processes(TWO)
    assert launch(TWO, ranks) == [0, 1]
    assert launch(CONFIG, ranks) == [0]


def ranks(crew: ProcessGroup) -> list[int]:
    """Return the numbers of all processes."""
    return [int(line) for line in crew.all_gather_lines([str(crew.rank)])]


@pytest.mark.parametrize("settings", [{"devices": 2}, {"devices": 1}, {"devices": 4}, {"devices": 1, "nodes": 4}])
def test_slurm_and_settings_must_agree(settings: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_slurm_job(monkeypatch, NTASKS="4", NNODES="2")
    with pytest.raises(SettingError, match=r"has 4 processes on 2 machines\. Give --devices 2 --nodes 2, or"):
        check_devices(replace(CONFIG, **settings))
    check_devices(replace(CONFIG, devices=2, nodes=2))


def test_an_error_of_another_process_is_what_it_was_there() -> None:
    told = ProcessRaisedException("...\ngeograft.errors.DivergedError: The loss became nan.\n", 1, 2)
    error = _original_error(told)
    assert isinstance(error, DivergedError)
    assert str(error) == "The loss became nan."


def test_slurm_numbers_the_processes_that_train_together_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "4", "NTASKS_PER_NODE": "2", "PROCID": "3", "JOB_NAME": "geograft"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert rank_of(replace(CONFIG, devices=2, nodes=2)) == 3
    assert rank_of(CONFIG) == 0
