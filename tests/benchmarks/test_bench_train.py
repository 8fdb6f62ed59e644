"""The training benchmark: the article's network and loss, smp in Geograft's engine, cached results, tables."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import article_unet
import bench_train
import page
import train_tables as tables
from geograft.config import ModelConfig, TrainConfig
from geograft.dataset.tileset import TileSet
from geograft.losses.segmentation import LossConfig, segmentation_loss
from geograft.networks.network import build
from geograft.training.loader import Scaling
from geograft.training.optim import freeze_encoder, parameter_groups
from learners import Learner, plain_loss
from measured import NotRunnableError
from peernets import SmpBody, smp_in_geograft, smp_network
from plainloop import TilesInMemory, TrainingResult, ValidationSet, iou, scaling_of_weights, train, validate
from step_profile import (
    LOADING,
    LOSS,
    OPTIMIZER,
    OTHER,
    convolution_kind,
    named_parts,
    profile_steps,
    time_by_kind,
    time_by_part,
)
from train_results import ResultStore, SeedResults, epochs_within, mean_iou, results_at_equal_time
from trainees import ENCODER, OURS, TRAINEES, TrainingJob, open_tiles, validation_scenes

SCENES = ("a", "b", "c")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random encoder weights with timm's names."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    encoder = smp_network_encoder()
    save_file({name: value for name, value in encoder.state_dict().items() if "num_batches" not in name}, path)
    return path


def smp_network_encoder() -> nn.Module:
    import timm

    return timm.create_model(ENCODER, features_only=True)


@pytest.fixture
def job(tiles: Path, weights: Path) -> TrainingJob:
    return TrainingJob(OURS, tiles, weights, epochs=4)


def trained(seconds: float, hits: int, epochs: int = 4) -> dict[str, Any]:
    """The record of a training with `hits` true positives of 10 in each of three scenes, and no false positives."""
    counts = [[[5, 0], [10 - hits, hits]]] * 3
    ious = [hits / 10 * (epoch + 1) / epochs for epoch in range(epochs)]
    kept = {"seconds": seconds, "peak_mb": 900.0, "tiles": [8, 2], "scenes": SCENES, "parameters": 7}
    return {**kept, "losses": ious[::-1], "ious": ious, "last": counts, "best": counts}


def test_the_articles_network_is_the_one_in_geograft(weights: Path) -> None:
    theirs = article_unet.UNet(weights).eval()
    article = ModelConfig(architecture="transfer", encoder=ENCODER, weights=str(weights), frozen_stages=2)
    ours = build(article, 3, 1).eval()
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    # Both list encoder, bottleneck, decoder and head in this order, so their tensors can be paired.
    ours.load_state_dict({name: value for (name, _), value in pairs})
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), torch.sigmoid(ours(image)))
    trainable = [sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (ours, theirs)]
    assert trainable == [726_573, 726_573]


def test_the_plain_losses_equal_geografts() -> None:
    logits, label = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 16, 16), dtype=torch.uint8)
    ours = segmentation_loss(logits, label, LossConfig())
    torch.testing.assert_close(plain_loss(logits, label, 0.25), ours)
    combined = article_unet.CombinedLoss()(torch.sigmoid(logits[:, 0]), (label == 1).float())
    torch.testing.assert_close(combined, ours)
    label[0, :4] = 255
    torch.testing.assert_close(plain_loss(logits, label, 0.25), segmentation_loss(logits, label, LossConfig()))


@pytest.mark.parametrize("kind", ["unet", "fpn", "deeplab"])
def test_smp_encoders_load_their_weights_from_the_file(kind: str, weights: Path) -> None:
    torch.manual_seed(1)
    network = smp_network(kind, weights)
    filled = network.get_submodule("encoder.model").state_dict()
    torch.manual_seed(0)
    for name, value in smp_network_encoder().state_dict().items():
        torch.testing.assert_close(filled[name], value, rtol=0, atol=0)


def test_a_file_that_lacks_weights_is_refused(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(weights)
    save_file(
        {name: value for name, value in state.items() if name != "conv_stem.weight"}, tmp_path / "less.safetensors"
    )
    with pytest.raises(NotRunnableError, match=r"lacks 1 tensors of tf_efficientnet_b0: conv_stem\.weight"):
        smp_network("unet", tmp_path / "less.safetensors")


def test_geografts_engine_freezes_and_trains_smp_by_stages(weights: Path) -> None:
    network = smp_in_geograft("unet", weights, frozen=2)
    assert isinstance(network.body, SmpBody)
    inner, image = network.body.network.eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), inner(image))
    assert network.body.strides == (2, 4, 8, 16, 32)
    assert len(network.state_dict()) == len(inner.state_dict())
    freeze_encoder(network, 2)
    groups = parameter_groups(network, TrainConfig(encoder_lr=1e-4, layer_decay=0.5, optimizer="adam"))
    encoder = [group for group in groups if group["name"] == "encoder"]
    assert [group["lr"] for group in encoder] == [0.25e-4, 0.5e-4, 1e-4]
    frozen = sum(p.numel() for stage in network.stages[:2] for p in stage.parameters())
    learning = sum(p.numel() for group in groups for p in group["params"])
    assert learning + frozen == sum(p.numel() for p in inner.parameters())


def test_images_are_normalised_as_the_weights_expect() -> None:
    scaling = scaling_of_weights(255)
    assert scaling.mean == pytest.approx((123.675, 116.28, 103.53))
    assert scaling.std == pytest.approx((58.395, 57.12, 57.375))


def test_augmentation_keeps_pixels_and_transforms_labels_too(tiles: Path) -> None:
    samples = TileSet.open(tiles).samples("train")
    as_they_are = TilesInMemory(samples, Scaling((0, 0, 0), (1, 1, 1)))
    turned = TilesInMemory(samples, Scaling((0, 0, 0), (1, 1, 1)), augment=True)
    turned.labels = turned.images[:, 0].to(torch.uint8)
    torch.manual_seed(0)
    seen = set()
    for _ in range(64):
        image, label = turned[0]
        assert torch.equal(image[0].to(torch.uint8), label)
        assert torch.equal(image.flatten(1).sort().values, as_they_are[0][0].flatten(1).sort().values)
        seen.add(image[0, 0].numpy().tobytes())
    assert len(seen) == 8


class Threshold(nn.Module):
    """Predicts class 1 where the first band is at least its parameter."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1] - self.at


def test_validation_counts_every_pixel_once_in_its_scene(tiles: Path) -> None:
    tile_set = TileSet.open(tiles)
    val = ValidationSet(
        TilesInMemory(tile_set.samples("val", unique_pixels=True), Scaling((0, 0, 0), (1, 1, 1))), np.arange(3) % 2, 2
    )
    val = replace(val, scenes=np.arange(len(val.tiles)) % 2)
    found = validate(Threshold(100.0), val)
    assert math.isnan(found.loss)
    label, seen = val.tiles.labels.numpy(), val.tiles.images[:, 0].numpy() >= 100
    for scene in (0, 1):
        own = val.scenes == scene
        expected = [[np.sum((label[own] == truth) & (seen[own] == bright)) for bright in (0, 1)] for truth in (0, 1)]
        assert found.counts[scene].tolist() == expected


def test_the_plain_loop_learns_and_records_the_best_epoch(tiles: Path) -> None:
    tile_set, scaling = TileSet.open(tiles), Scaling((120, 120, 120), (60, 60, 60))
    val = ValidationSet(
        TilesInMemory(tile_set.samples("val", unique_pixels=True), scaling), validation_scenes(tile_set)[1], 4
    )
    network = Threshold(-3.0)
    learning = Learner(
        network, torch.optim.Adam([{"params": [network.at], "lr": 0.5}]), lambda o, y: plain_loss(o, y, 0.25)
    )
    torch.manual_seed(0)
    epochs = train(learning, TilesInMemory(tile_set.samples("train"), scaling, augment=True), val, 3, decay=0.5)
    assert epochs[-1].loss < epochs[0].loss
    assert learning.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.5**3)
    made = TrainingResult.of(1.0, [epochs[2], epochs[0]])
    np.testing.assert_array_equal(made.best, epochs[2].counts)
    np.testing.assert_array_equal(made.last, epochs[0].counts)
    assert made.ious == [iou(epochs[2].counts), iou(epochs[0].counts)]


def test_a_profile_assigns_operators_to_parts_forward_and_backward(tiles: Path) -> None:
    network = build(ModelConfig(architecture="unet"), 3, 1)
    names = [name for name, _ in named_parts(network)]
    assert names[:5] == [f"encoder, stage {i}" for i in range(1, 6)]
    assert {"bottleneck", "decoder", "head"} <= set(names)
    modules = [module for _, part in named_parts(network) for module in part.modules()]
    assert len(modules) == len(set(modules))
    freeze_encoder(network, 1)
    learning = Learner(
        network, torch.optim.Adam(network.parameters()), lambda o, y: segmentation_loss(o, y, LossConfig())
    )
    stream = ((torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8)) for _ in range(3))
    events = profile_steps(learning, stream, steps=2)
    parts = time_by_part(events)
    assert set(names) - {"pools"} <= set(parts)
    assert parts["encoder, stage 1"][0] > 0
    assert parts["encoder, stage 1"][1] == parts[LOADING][1] == 0
    for name in ("encoder, stage 2", "bottleneck", "decoder", "head", LOSS):
        assert min(parts[name]) > 0, name
    assert parts[OPTIMIZER][0] > 0
    total, kinds = sum(sum(both) for both in parts.values()), time_by_kind(events)
    assert total == pytest.approx(sum(event.self_cpu_time_total for event in events))
    assert sum(kinds.values()) == pytest.approx(total)
    assert {"convolutions k x k", "convolutions 1 x 1", "batch norm", "activations", "pooling, means"} <= set(kinds)
    assert sum(parts[OTHER]) < total / 2


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(3, 8, 3), "convolutions k x k"),
        (nn.Conv2d(8, 8, 5, groups=8), "convolutions, depthwise"),
        (nn.Conv2d(8, 16, 1), "convolutions 1 x 1"),
        (nn.Conv2d(1, 1, 3), "convolutions k x k"),
    ],
)
def test_convolutions_are_classified_by_their_weights(layer: nn.Conv2d, kind: str) -> None:
    assert convolution_kind(layer.weight.shape) == kind


def test_the_mean_over_seeds_averages_ious_not_counts() -> None:
    sums = np.array([[0, 0, 5, 5, 0, 0, 0, 1000]])
    assert mean_iou(sums).tolist() == [[0.75]]


def test_differences_are_paired_by_scene() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 90, 12)
    ours, theirs = ([[[100, 0], [int(miss) + more, 100 - int(miss)]] for miss in hard] for more in (0, 10))
    kept = [SeedResults({0: {**trained(1, 5), "last": counts}}) for counts in (ours, theirs)]
    ahead, (low, high) = kept[0].difference(kept[1], "last")
    assert ahead == pytest.approx(kept[0].iou("last") - kept[1].iou("last"))
    assert 0 < low < ahead < high
    widest = kept[0].interval("last")
    assert high - low < (widest[1] - widest[0]) / 3
    assert kept[0].difference(SeedResults({0: kept[0].by_seed[0], 1: kept[0].by_seed[0]}), "last") == (0, (0, 0))


def test_epochs_in_equal_time_are_rounded_down() -> None:
    kept = SeedResults({0: trained(40, 5)})
    assert [epochs_within(seconds, kept, 4) for seconds in (9.99, 10, 20, 39, 400)] == [0, 1, 2, 3, 4]
    assert math.isnan(kept.iou_after(0))
    assert kept.iou_after(2) == pytest.approx(0.25)


def test_a_cached_result_is_used_for_its_own_settings_only(job: TrainingJob, tmp_path: Path) -> None:
    shelf = ResultStore(tmp_path, job)
    assert shelf.read(job) is None
    shelf.write(job, trained(10, 5))
    assert shelf.read(job) is not None
    assert shelf.results(OURS, 3, 4).seeds == 1  # type: ignore[union-attr]
    assert ResultStore(tmp_path, job).read(replace(job, threads=2)) is None
    assert ResultStore(tmp_path, job).read(replace(job, limit=8)) is None
    other = job.weights.with_name("other.safetensors")
    save_file({"a": torch.zeros(1)}, other)
    assert ResultStore(tmp_path, replace(job, weights=other)).read(job) is None
    shelf.forget("til")
    assert shelf.read(job) is not None
    shelf.forget(OURS)
    assert shelf.read(job) is None


def test_a_plain_loop_is_scored_at_the_time_of_the_default(job: TrainingJob, tmp_path: Path) -> None:
    shelf = ResultStore(tmp_path, job)
    assert results_at_equal_time(shelf, "smp-unet", 1, job) == (0, None)
    shelf.write(job, trained(10, 8))
    shelf.write(replace(job, name="smp-unet"), trained(20, 6))
    epochs, kept = results_at_equal_time(shelf, "smp-unet", 1, job)
    assert epochs == 2
    assert kept is not None
    assert kept.iou_after(epochs) == pytest.approx(0.3)


def times() -> dict[str, Any]:
    """Step times of a machine that is twice as slow in the second round and three times in the third."""
    one = {"memory_format": "channels last", "parameters": 10, "trainable": 8}
    ours = {**one, "train": [0.8, 1.6, 2.4], "infer": [0.2, 0.4, 0.6]}
    theirs = {**one, "train": [2.0, 4.0, 6.0], "infer": [0.3, 0.6, 0.9]}
    return {"batch": 8, "tile_px": 32, "loader": [0.01, 0.02, 0.03], "networks": {OURS: ours, "smp-unet": theirs}}


def test_ratios_are_medians_within_a_round() -> None:
    assert tables.ratio(times(), OURS, "smp-unet", "train") == pytest.approx(2.5)
    assert tables.loader_ratio(times()) == pytest.approx(10)
    ours = tables.speed_table(times()).splitlines()[2]
    assert ours == "| **Geograft's default** | 5.00 | 200 | 2.50 | 20.00 | 50 | 1.50 | 10 | 8 | channels last |"


def test_targets_are_checked_against_the_results(job: TrainingJob, tmp_path: Path) -> None:
    shelf = ResultStore(tmp_path, job)
    shelf.write(job, trained(10, 8))
    shelf.write(replace(job, name="smp-fpn"), trained(10, 9))
    found = tables.check_targets(shelf, job, 1, times())
    assert [holds for _, holds in found] == [True, False, True, False]
    assert "2.50 times as fast" in found[0][0]
    assert found[3][0].startswith("IoU -0.1000")


def test_tables_show_which_contestants_were_not_run(job: TrainingJob, tmp_path: Path) -> None:
    shelf = ResultStore(tmp_path, job)
    shelf.write(job, trained(10, 8))
    shelf.write(replace(job, name="smp-unet"), trained(20, 6))
    quality = tables.quality_table(shelf, job, 1).splitlines()
    assert quality[2] == "| **Geograft's default** | 1 | 0.800 | 0.800 to 0.800 |  |  | 0.800 | 4 | 0.800 |"
    assert (
        quality[3]
        == "| smp Unet, plain loop | 1 | 0.600 | 0.600 to 0.600 | +0.200 | +0.200 to +0.200 | 0.600 | 2 | 0.300 |"
    )
    assert quality[4] == "| smp FPN, plain loop | not run |  |  |  |  |  |  |  |"
    assert tables.cost_table(shelf, job, 1).splitlines()[2] == "| **Geograft's default** | 10 | 3.20 | 2.00 | 900 |"


def test_the_profile_tables_add_up() -> None:
    parts = {LOADING: [1.0, 0.0], "encoder, stage 1": [2.0, 4.0], "decoder": [1.0, 1.0], LOSS: [0.5, 0.5]}
    profile = {"parts": parts, "kinds": {OURS: {"batch norm": 6.0, LOADING: 4.0}}}
    rows = [row.split(" | ")[0].strip("| ") for row in tables.part_table(profile).splitlines()[2:]]
    assert rows == ["encoder, stage 1", "decoder", LOSS, LOADING, "total"]
    assert tables.part_table(profile).splitlines()[-1] == "| total | 4.5 | 5.5 | 100% |"
    assert tables.kind_table(profile).splitlines()[2:] == [
        "| batch norm | 6.0 |",
        "| data loading | 4.0 |",
        "| total | 10.0 |",
    ]


def test_slow_contestants_are_trained_last_and_once(job: TrainingJob, tmp_path: Path) -> None:
    bench = bench_train.Bench(job, ResultStore(tmp_path, job), ("geograft", "article-loop", "smp-fpn"), 2, 1, math.inf)
    order = [(each.name, each.seed) for each in bench.jobs()]
    assert order == [("geograft", 0), ("smp-fpn", 0), ("geograft", 1), ("smp-fpn", 1), ("article-loop", 0)]


def test_every_recipe_has_the_same_weights_epochs_and_seed(job: TrainingJob) -> None:
    for name, trainee in TRAINEES.items():
        if trainee.recipe is not None:
            recipe = trainee.recipe(replace(job, name=name, seed=2))
            assert (recipe.train.epochs, recipe.train.seed, recipe.train.repeat, recipe.train.patience) == (4, 2, 1, 0)
            assert recipe.model.encoder == ENCODER
            assert recipe.model.weights in (str(job.weights), "none")


def test_tiles_that_not_all_contestants_can_train_on_are_refused(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(open_tiles(replace(job, limit=2)).split("train")) == 2
    tile_set = TileSet.open(job.tiles)
    four = replace(tile_set, meta=replace(tile_set.meta, band_names=("r", "g", "b", "n"), mean=(0,) * 4, std=(1,) * 4))
    monkeypatch.setattr(TileSet, "open", lambda _: four)
    with pytest.raises(NotRunnableError, match="2 classes, 4 bands of uint8"):
        open_tiles(job)


def test_missing_images_are_an_error_that_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "IMAGES", tmp_path / "images")
    with pytest.raises(NotRunnableError, match="--tiles"):
        bench_train.tile_set(None, tmp_path)


def test_the_training_page_has_markers_for_every_section() -> None:
    text = page.TRAINING.read_text(encoding="utf-8")
    for name in ("targets", "steps", "quality", "trainings", "loader", "profile"):
        assert page.replace_section(text, name, "table")
