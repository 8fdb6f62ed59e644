import math
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchmetrics.functional.classification import multilabel_jaccard_index

from geograft.card import WEIGHTS
from geograft.config import TrainConfig
from geograft.errors import InputError, SettingError
from geograft.losses.segmentation import LossConfig, segmentation_loss
from geograft.metrics.confusion import scores
from geograft.networks.network import Network
from geograft.training.checkpoint import LAST, STATE
from geograft.training.history import HISTORY, History, read_history
from geograft.training.loader import TileLoader
from geograft.training.loop import fit
from geograft.training.step import confusion, nonfinite_message
from tests.support.overlapping import overlapping_blocks, overlapping_data
from tests.support.training import Tile, TinyNetwork, blocks, training_data

ROOT = Path(__file__).parents[2]

ARTICLE = TrainConfig(optimizer="adam", schedule="exponential", warmup_epochs=0, ema=0)
CONFIG = replace(ARTICLE, epochs=3, batch_size=4, decoder_lr=3e-3, encoder_lr=3e-3, workers=0, device="cpu")


@pytest.fixture(autouse=True)
def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tiles in every epoch: some of them stop the training when they are read."""
    monkeypatch.setattr("geograft.training.loader.CACHE_BYTES", 0)


def weights(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History, Network]:
    folder, network = tmp_path_factory.mktemp("run"), TinyNetwork()
    return folder, fit(network, training_data(), replace(CONFIG, epochs=12), folder), network


def test_training_reduces_the_loss(run: tuple[Path, History, Network]) -> None:
    _, history, _ = run
    assert history.epochs[-1].train_loss < 0.6 * history.epochs[0].train_loss
    assert history.best.val_iou > 0.9


def test_the_run_folder_contains_weights_state_and_history(run: tuple[Path, History, Network]) -> None:
    folder, history, network = run
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, LAST, STATE, HISTORY}
    assert read_history(folder) == history
    assert [row.epoch for row in history.epochs] == list(range(1, 13))
    for name, value in network.state_dict().items():
        assert torch.equal(load_file(folder / LAST)[name], value)


def test_the_learning_rate_decays_by_epoch(run: tuple[Path, History, Network]) -> None:
    np.testing.assert_allclose([row.lr for row in run[1].epochs], [3e-3 * 0.85**epoch for epoch in range(12)])


def validation(network: Network, path: Path) -> tuple[float, float]:
    """Return loss and IoU of the weights in `path` on the validation tiles of `training_data`, in one batch."""
    network = deepcopy(network)
    network.load_state_dict(load_file(path))
    images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*blocks(5, 1), strict=True))
    valid = (labels != 255)[:, None]
    with torch.no_grad():
        logits = network.eval()((images - 130) / 30 * valid)
    loss = segmentation_loss(logits, labels, LossConfig()).item()
    return loss, float(scores(confusion(logits, labels, 2).numpy()).iou[1])


def test_the_history_matches_both_saved_weights(run: tuple[Path, History, Network]) -> None:
    folder, history, network = run
    for file, row in ((WEIGHTS, history.best), (LAST, history.epochs[-1])):
        loss, iou = validation(network, folder / file)
        assert row.val_loss == pytest.approx(loss, rel=1e-4)
        assert row.val_iou == pytest.approx(iou, abs=1e-6)


def test_the_best_weights_are_kept_if_later_ones_are_worse(tmp_path: Path) -> None:
    history = fit(TinyNetwork(), training_data(val=inverted_tiles()), CONFIG, tmp_path)
    assert history.best.epoch == 1
    fit(TinyNetwork(), training_data(val=inverted_tiles()), replace(CONFIG, epochs=1), tmp_path / "one")
    assert weights(tmp_path / WEIGHTS) == weights(tmp_path / "one" / WEIGHTS)
    assert weights(tmp_path / WEIGHTS) != weights(tmp_path / LAST)


def test_the_result_depends_on_the_seed_and_not_on_the_global_one(tmp_path: Path) -> None:
    network = TinyNetwork()
    for name, seed, everywhere in (("a", 1, 5), ("b", 1, 6), ("c", 2, 5)):
        torch.manual_seed(everywhere)
        fit(deepcopy(network), training_data(), replace(CONFIG, seed=seed, epochs=1), tmp_path / name)
    assert weights(tmp_path / "a" / LAST) == weights(tmp_path / "b" / LAST)
    assert weights(tmp_path / "a" / LAST) != weights(tmp_path / "c" / LAST)


def test_scores_are_over_all_pixels(tmp_path: Path) -> None:
    # One tile all of class 1, one without it, both predicted as class 1: the mean by tile would be that of 1 and 0.
    tiles = blocks(2, 1)
    image = tiles[0][0]
    ones, zeros = np.ones((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    network = TinyNetwork()
    with torch.no_grad():
        network.body.head.weight.zero_()
        network.body.head.bias.fill_(50)
    tiny = replace(CONFIG, epochs=1, decoder_lr=1e-12, encoder_lr=1e-12)
    history = fit(network, training_data(val=[(image, ones), (image, zeros)]), tiny, tmp_path)
    assert history.best.val_iou == 0.5
    assert history.best.val_recall == 1
    counted_twice = [(image, ones), (image, zeros), (image, zeros)]
    history = fit(network, training_data(val=counted_twice), tiny, tmp_path / "b")
    assert history.best.val_iou == pytest.approx(1 / 3)


def test_losses_are_means_over_labelled_pixels(tmp_path: Path) -> None:
    # A batch with fewer labelled pixels has less weight; without Dice the batch size does not matter.
    tiles = blocks(7, 1)
    for _, label in tiles[:4]:
        label[4:] = 255
    config = replace(CONFIG, epochs=1, region_loss_weight=0.0, augment="none", decoder_lr=1e-12, encoder_lr=1e-12)
    data = training_data(val=tiles)
    histories = [
        # Frozen, because the statistics of batch norm depend on the batch size.
        fit(TinyNetwork(frozen=5), data, replace(config, batch_size=size), tmp_path / str(size))
        for size in (2, 4, 7)
    ]
    losses = [history.best.val_loss for history in histories]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("frozen", [0, 2])
def test_frozen_stages_do_not_change_nor_do_their_statistics(tmp_path: Path, frozen: int) -> None:
    network = TinyNetwork(frozen=frozen)
    before = deepcopy(network.state_dict())
    fit(network, training_data(), replace(CONFIG, epochs=1), tmp_path)
    still = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert still == {name for name in before if any(f"stages.{stage}." in name for stage in range(frozen))}


def test_freeze_epochs_freezes_the_whole_encoder_at_first(tmp_path: Path) -> None:
    before = TinyNetwork(frozen=2).state_dict()
    for epochs, still in ((1, range(5)), (2, range(2))):
        network = TinyNetwork(frozen=2)
        fit(network, training_data(), replace(CONFIG, epochs=epochs, freeze_epochs=1), tmp_path / str(epochs))
        found = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
        assert found == {name for name in before if any(f"stages.{stage}." in name for stage in still)}
        assert [all(p.requires_grad for p in stage.parameters()) for stage in network.stages] == [0, 0, 1, 1, 1]


def test_with_ema_the_averaged_weights_are_validated_and_saved(tmp_path: Path) -> None:
    network = TinyNetwork()
    history = fit(network, training_data(), replace(CONFIG, ema=0.9), tmp_path)
    assert validation(network, tmp_path / LAST)[0] == pytest.approx(history.epochs[-1].val_loss, rel=1e-4)
    for name, value in network.state_dict().items():
        assert torch.equal(load_file(tmp_path / LAST)[name], value)
    plain = TinyNetwork()
    fit(plain, training_data(), CONFIG, tmp_path / "plain")
    trained = torch.load(tmp_path / STATE, weights_only=True)["parts"]["network"]
    for name, value in plain.state_dict().items():
        assert torch.equal(trained[name], value)  # the EMA does not affect training


def test_an_encoder_from_scratch_is_never_frozen(tmp_path: Path) -> None:
    for freeze in (0, 2):
        network = TinyNetwork(trained=False)
        fit(network, training_data(), replace(CONFIG, epochs=1, freeze_epochs=freeze), tmp_path / str(freeze))
    assert weights(tmp_path / "0" / LAST) == weights(tmp_path / "2" / LAST)


def test_the_history_contains_the_learning_rate_of_each_last_step(tmp_path: Path) -> None:
    history = fit(TinyNetwork(), training_data(), replace(CONFIG, schedule="cosine"), tmp_path)
    expected = 3e-3 * (1 + np.cos(np.pi * np.array([4, 9, 14]) / 15)) / 2
    assert [row.lr for row in history.epochs] == pytest.approx(expected.tolist(), rel=1e-6)


def test_more_classes_of_which_one_is_absent(tmp_path: Path) -> None:
    data = training_data(classes=3, train=blocks(18, 0, 2), val=blocks(5, 1, 2))
    history = fit(TinyNetwork(outputs=3), data, replace(CONFIG, epochs=6), tmp_path)
    assert history.best.val_iou > 0.4
    assert all(math.isfinite(row.train_loss) for row in history.epochs)


def test_half_precision_trains_too(tmp_path: Path) -> None:
    history = fit(TinyNetwork(), training_data(), replace(CONFIG, precision="bf16-mixed"), tmp_path)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert all(value.dtype != torch.bfloat16 for value in load_file(tmp_path / LAST).values())


def test_without_validation_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    history = fit(TinyNetwork(), training_data(val=[]), replace(CONFIG, epochs=2), tmp_path)
    assert history.best.epoch == 2
    assert math.isnan(history.best.val_loss)
    assert weights(tmp_path / WEIGHTS) == weights(tmp_path / LAST)


def test_an_empty_training_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training tile"):
        fit(TinyNetwork(), training_data(train=[]), CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Scenes(list[Tile]):
    """Tiles with names."""

    def name(self, index: int, /) -> str:
        return f"scene {index}"


def with_infinite_pixels(tiles: list[int]) -> Scenes:
    """Return 18 tiles, some of which have an infinite pixel."""
    scenes = Scenes(blocks(18, 0))
    for index in tiles:
        scenes[index][0][0, 9, 9] = np.inf
        scenes[index][1][9, 9] = 1
    return scenes


@pytest.mark.parametrize(("tiles", "named"), [([7], "scene 7"), ([2, 11], "scene (2|11)"), ([9, 12], "scene (9|12)")])
def test_a_nan_loss_stops_the_run_and_names_the_tile(tmp_path: Path, tiles: list[int], named: str) -> None:
    network = TinyNetwork()
    with pytest.raises(InputError, match=rf"nan in step \d of epoch 1\..* {named}\.") as caught:
        fit(network, training_data(train=with_infinite_pixels(tiles)), CONFIG, tmp_path)
    assert "\n" not in str(caught.value)
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_tiles_without_names_are_numbered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r" tile 7\."):
        fit(TinyNetwork(), training_data(train=list(with_infinite_pixels([7]))), CONFIG, tmp_path)


def test_tiles_are_not_named_if_all_of_them_or_the_weights_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nan in step .*learning rates, or look for extreme pixel values"):
        fit(TinyNetwork(), training_data(train=with_infinite_pixels(list(range(18)))), CONFIG, tmp_path)
    assert "scene 2 and 1 more." in nonfinite_message(TinyNetwork(), [f"scene {n}" for n in range(4)], 9)
    network = TinyNetwork()
    with torch.no_grad():
        network.body.head.bias.fill_(torch.nan)
    with pytest.raises(InputError, match=r"nan in step .*weights.*clip_norm"):
        fit(network, training_data(), CONFIG, tmp_path)
    assert "clip_norm" in nonfinite_message(TinyNetwork(), [], 4)


class Small(TinyNetwork):
    """A network whose memory holds two tiles in training."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training and len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(image)


def test_out_of_memory_splits_batches_with_a_message(tmp_path: Path) -> None:
    history = fit(Small(), training_data(), CONFIG, tmp_path)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert len(history.notes) == 1
    assert "2 chunks" in history.notes[0]
    # A resumed run keeps the number of chunks, even with enough memory.
    assert fit(TinyNetwork(), training_data(), replace(CONFIG, epochs=4), tmp_path, resume=True).notes == history.notes


class SmallInValidation(TinyNetwork):
    """A network whose memory holds no batch in validation."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(image)


def test_out_of_memory_in_validation_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="batch_size") as caught:
        fit(SmallInValidation(), training_data(), CONFIG, tmp_path)
    assert "\n" not in str(caught.value)


class Deterministic(TinyNetwork):
    """A network without dropout."""

    def __init__(self) -> None:
        super().__init__()
        for stage in self.stages:
            stage[-1] = torch.nn.Identity()


def plain_loop(network: Network, config: TrainConfig) -> None:
    """Train with a plain PyTorch loop."""
    optimizer = torch.optim.Adam(network.to(memory_format=torch.channels_last).train().parameters(), 3e-3)
    loader = TileLoader(training_data(), config, torch.device("cpu"))
    for epoch in range(config.epochs):
        batches = list(loader.train(epoch))
        for start in range(0, len(batches), config.accumulate):
            group = batches[start : start + config.accumulate]
            optimizer.zero_grad()
            for images, label in group:
                (segmentation_loss(network(images), label, LossConfig()) / len(group)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm or math.inf)
            optimizer.step()


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"clip_norm": 0.05}, {"accumulate": 3, "clip_norm": 0.1}])
def test_the_loop_matches_a_plain_pytorch_loop(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(CONFIG, epochs=2, lr_decay=1.0, **changes)
    mine, plain = Deterministic(), Deterministic()
    fit(mine, training_data(), config, tmp_path)
    plain_loop(plain, config)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value)


def inverted_tiles() -> list[Tile]:
    """Return validation tiles with inverted labels."""
    return [(image, np.where(label == 255, label, 1 - label)) for image, label in blocks(5, 1)]


def test_patience_stops_training_early(tmp_path: Path) -> None:
    data, config = training_data(val=inverted_tiles()), replace(CONFIG, epochs=9)
    patient = fit(TinyNetwork(), data, replace(config, patience=2), tmp_path / "a")
    assert (patient.best.epoch, len(patient.epochs)) == (1, 3)
    assert patient.notes == ("stopped after epoch 3 of 9: 2 epochs without a lower validation loss (patience)",)
    assert fit(TinyNetwork(), data, replace(config, patience=2), tmp_path / "a", resume=True) == patient
    longer = fit(TinyNetwork(), data, replace(config, patience=4), tmp_path / "a", resume=True)
    whole = fit(TinyNetwork(), data, replace(config, epochs=5), tmp_path / "b")
    assert without_times(longer) == without_times(whole)
    assert weights(tmp_path / "a" / LAST) == weights(tmp_path / "b" / LAST)


def test_patience_has_no_effect_without_validation(tmp_path: Path) -> None:
    assert len(fit(TinyNetwork(), training_data(val=[]), replace(CONFIG, patience=1), tmp_path).epochs) == 3


def test_without_a_terminal_training_prints_one_line_per_epoch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    history = fit(TinyNetwork(), training_data(), replace(CONFIG, epochs=2), tmp_path)
    printed = capfd.readouterr()
    first, *lines = printed.err.splitlines()
    assert printed.out == ""
    assert "18 tiles, validation on 5;" in first
    assert first.endswith("encoder weights: random; cpu; 2 epochs of 5 steps")
    assert len(lines) == len(history.epochs) == 2
    for row, line in zip(history.epochs, lines, strict=True):
        assert line.startswith(f"epoch {row.epoch} of 2: train loss {row.train_loss:.4f}, ")
        assert f"val loss {row.val_loss:.4f}, val IoU {row.val_iou:.3f}" in line
    assert lines[-1].endswith("; 0 s left")
    fit(TinyNetwork(), training_data(), replace(CONFIG, epochs=2), tmp_path, resume=True)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_ends_within_an_epoch_has_the_weights_of_the_epoch_before(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, save_minutes=1e-9, ema=0.8)
    stopping = Tiles(blocks(18, 0))
    stopping.left = 18 + 9
    with pytest.raises(StopError):
        fit(TinyNetwork(), training_data(train=stopping), config, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    network = TinyNetwork(seed=9)
    history = fit(network, training_data(), replace(config, epochs=1), tmp_path, resume=True)
    assert len(history.epochs) == 1
    for name, value in network.state_dict().items():
        assert torch.equal(load_file(tmp_path / LAST)[name], value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.kill_train", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 21
    assert {signal for _, signal, *_ in lines} == {"9"}
    # In the middle of an epoch, at its last step, between two epochs, and in the second one.
    assert {("0", "2"), ("0", "5"), ("1", "0"), ("1", "5")} <= {(epoch, step) for *_, epoch, step in lines}
    for name, *_ in lines:
        for file in (WEIGHTS, LAST):
            assert weights(tmp_path / name / file) == weights(tmp_path / "whole" / file), name
    assert weights(tmp_path / "whole" / WEIGHTS) != weights(tmp_path / "whole" / LAST)


def without_times(history: History) -> list[Any]:
    return [replace(row, seconds=0, tiles_per_second=0) for row in history.epochs]


def test_a_run_resumed_with_more_epochs_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    fit(TinyNetwork(), training_data(), replace(CONFIG, epochs=1), short)
    resumed = fit(TinyNetwork(seed=9), training_data(), CONFIG, short, resume=True)
    whole = fit(TinyNetwork(), training_data(), CONFIG, long)
    assert weights(short / LAST) == weights(long / LAST)
    assert without_times(resumed) == without_times(whole)
    assert read_history(short) == resumed


class StopError(Exception):
    """Simulates a kill."""


class Tiles(list[Tile]):
    """Tiles of which `left` can be read."""

    left = 10**9

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        self.left -= 1
        if self.left < 0:
            raise StopError
        return super().__getitem__(index)


FEATURES = {
    "schedule": {"schedule": "cosine", "warmup_epochs": 1.5},
    "optimizer": {"optimizer": "adamw", "weight_decay": 0.1, "layer_decay": 0.7},
    "freeze": {"freeze_epochs": 1},
    "ema": {"ema": 0.8},
    "accumulate": {"accumulate": 2},
    "clip": {"clip_norm": 0.05},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_resumes_with_the_same_bits(tmp_path: Path, feature: str) -> None:
    config = replace(CONFIG, epochs=2, save_minutes=1e-9, **FEATURES[feature])
    whole = fit(TinyNetwork(), training_data(), config, tmp_path / "whole")
    plain = fit(TinyNetwork(), training_data(), replace(CONFIG, epochs=2), tmp_path / "plain")
    assert without_times(whole) != without_times(plain)
    for tiles in (11, 33):
        stopping = Tiles(blocks(18, 0))
        stopping.left = tiles
        folder = tmp_path / str(tiles)
        with pytest.raises(StopError):
            fit(TinyNetwork(), training_data(train=stopping), config, folder)
        resumed = fit(TinyNetwork(seed=9), training_data(), config, folder, resume=True)
        assert without_times(resumed) == without_times(whole)
        for file in (LAST, WEIGHTS):
            assert weights(folder / file) == weights(tmp_path / "whole" / file)


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    history = fit(TinyNetwork(), training_data(), CONFIG, tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert fit(TinyNetwork(), training_data(), CONFIG, tmp_path, resume=True) == history
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("changed", "data", "network", "message"),
    [
        ({"batch_size": 5}, {}, {}, "batch_size was 4 and is 5"),
        (
            {"seed": 1, "region_loss_weight": 0.5},
            {},
            {},
            r"region_loss_weight was 0.25 and is 0.5, seed was 0 and is 1",
        ),
        ({}, {"fingerprint": "other"}, {}, STATE + ".*tile set"),
        ({}, {"network_settings": {"encoder": "resnet18"}}, {}, "encoder was 'resnet34' and is 'resnet18'"),
        ({}, {"classes": 3}, {"outputs": 3}, r"classes was \['class 0', 'class 1'\] and is"),
        ({}, {}, {"bands": 4}, STATE),
        ({}, {}, {"frozen": 1}, STATE),
        ({"schedule": "cosine", "epochs": 4}, {}, {}, "schedule was 'exponential' and is 'cosine'"),
    ],
)
def test_resuming_with_other_settings_data_or_network_is_refused(
    tmp_path: Path, changed: dict[str, Any], data: dict[str, Any], network: dict[str, Any], message: str
) -> None:
    fit(TinyNetwork(), training_data(), CONFIG, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SettingError, match=message):
        fit(TinyNetwork(**network), training_data(**data), replace(CONFIG, **changed), tmp_path, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_cosine_schedule_cannot_be_resumed_with_more_epochs(tmp_path: Path) -> None:
    cosine = replace(CONFIG, schedule="cosine", epochs=1)
    fit(TinyNetwork(), training_data(), cosine, tmp_path)
    with pytest.raises(SettingError, match="epochs was 1 and is 2"):
        fit(TinyNetwork(), training_data(), replace(cosine, epochs=2), tmp_path, resume=True)


def test_settings_without_effect_on_the_result_may_change(tmp_path: Path) -> None:
    fit(TinyNetwork(), training_data(), replace(CONFIG, epochs=1), tmp_path)
    fit(TinyNetwork(), training_data(), replace(CONFIG, save_minutes=1.0, epochs=2), tmp_path, resume=True)


def test_overlapping_classes_are_learnt_independently(tmp_path: Path) -> None:
    network = TinyNetwork(outputs=2)
    history = fit(network, overlapping_data(), replace(CONFIG, epochs=12, decoder_lr=0.02, encoder_lr=0.02), tmp_path)
    assert history.epochs[-1].train_loss < 0.6 * history.epochs[0].train_loss
    assert history.best.val_iou > 0.9
    images, fractions = (torch.from_numpy(np.stack(part)) for part in zip(*overlapping_blocks(5, 1), strict=True))
    network.load_state_dict(load_file(tmp_path / WEIGHTS))
    with torch.no_grad():
        logits = network.eval()((images - 130) / 30 * fractions.isfinite().all(1, keepdim=True))
    theirs = multilabel_jaccard_index(
        logits.sigmoid(), fractions.nan_to_num(-1).int(), num_labels=2, average="macro", ignore_index=-1
    )
    assert history.best.val_iou == pytest.approx(theirs.item(), abs=1e-6)


def test_a_run_with_overlapping_classes_resumes_with_the_same_bits(tmp_path: Path) -> None:
    whole, parts = (TinyNetwork(outputs=2) for _ in range(2))
    fit(whole, overlapping_data(), replace(CONFIG, epochs=2), tmp_path / "whole")
    fit(parts, overlapping_data(), replace(CONFIG, epochs=1), tmp_path / "parts")
    history = fit(parts, overlapping_data(), replace(CONFIG, epochs=2), tmp_path / "parts", resume=True)
    assert weights(tmp_path / "whole" / LAST) == weights(tmp_path / "parts" / LAST)
    assert history.epochs[-1].val_iou == read_history(tmp_path / "whole").epochs[-1].val_iou
