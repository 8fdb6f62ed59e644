import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geograft.config import ModelConfig
from geograft.networks.network import build
from geograft.networks.summary import ModelSummary, describe, saved_activation_bytes, text_graph

UNET = ModelConfig(architecture="unet")
B0 = ModelConfig(architecture="transfer")
LIGHT = ModelConfig(architecture="light", encoder="mobilenetv3_small_050", frozen_stages=1)
NO_CHAIN = ModelConfig(architecture="light", encoder="hrnet_w18_small", frozen_stages=0)
VIT = ModelConfig(architecture="light", encoder="test_vit", frozen_stages=1)
TINY = ModelConfig(architecture="transfer", encoder="test_efficientnet", frozen_stages=1)


@pytest.fixture(scope="module")
def transfer() -> ModelSummary:
    return describe(B0, bands=3, outputs=1, size=224)


def test_the_articles_two_sizes(transfer: ModelSummary) -> None:
    unet = describe(UNET, bands=3, outputs=1, size=64)
    assert (unet.parameters, unet.trainable) == (441_137, 441_137)
    assert (transfer.parameters, transfer.trainable) == (728_949, 726_573)
    assert "parameters 441,137, trainable 441,137" in unet.lines()
    assert "parameters 728,949, trainable 726,573" in transfer.lines()


def test_parts_in_the_order_of_the_image(transfer: ModelSummary) -> None:
    kinds = [part.kind for part in transfer.parts]
    assert kinds == ["encoder"] * 5 + ["bottleneck"] + ["decoder"] * 5 + ["head"]
    shapes = [(part.channels, part.height, part.width) for part in transfer.parts]
    assert shapes[:6] == [(32, 112, 112), (16, 112, 112), (24, 56, 56), (40, 28, 28), (80, 14, 14), (80, 14, 14)]
    assert shapes[6:] == [(40, 28, 28), (24, 56, 56), (16, 112, 112), (32, 112, 112), (32, 224, 224), (1, 224, 224)]
    assert [part.frozen for part in transfer.parts] == [True, True] + [False] * 10
    assert [part.trainable for part in transfer.parts[:2]] == [0, 0]


@pytest.mark.parametrize("config", [UNET, TINY, LIGHT, VIT], ids=["unet", "transfer", "light", "vit"])
def test_parts_sum_to_the_whole(config: ModelConfig) -> None:
    summary = describe(config, bands=4, outputs=3, size=64)
    network = build(config, 4, 3, pretrained=False).eval()
    aside = [each.numel() for name, each in network.named_parameters() if name.startswith("body.coarse.")]
    assert summary.parameters + sum(aside) == sum(each.numel() for each in network.parameters())
    assert any(f"{sum(aside)} more parameters" in note for note in summary.notes) == bool(aside)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 4, 64, 64))
    assert summary.gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-12)


def test_memory_is_per_tile_and_grows_with_its_area() -> None:
    small, large = (describe(UNET, 3, 1, size) for size in (64, 128))
    network = build(UNET, 3, 1)
    assert small.training_mib * 2**20 == pytest.approx(
        saved_activation_bytes(network, torch.zeros(1, 3, 64, 64)), rel=0.01
    )
    assert large.training_mib / small.training_mib == pytest.approx(4, rel=0.01)
    assert large.prediction_mib / small.prediction_mib == pytest.approx(4, rel=0.01)
    assert small.prediction_mib < small.training_mib
    assert small.weights_mib == large.weights_mib == pytest.approx(441_137 * 4 / 2**20, rel=0.02)


def test_freezing_saves_memory_in_training() -> None:
    frozen, free = (
        describe(
            ModelConfig(architecture="transfer", encoder="test_efficientnet", frozen_stages=n), 3, 1, 64
        ).training_mib
        for n in (3, 0)
    )
    assert frozen < free


def test_padding_inside_the_network_is_noted() -> None:
    summary = describe(TINY, 3, 1, 50)
    assert any("pads the tile to 64 x 64" in line for line in summary.lines())
    assert not any("pads" in line for line in describe(TINY, 3, 1, 64).lines())


@pytest.mark.parametrize(
    ("frozen", "words"), [(1, "Stage 1 is frozen"), (2, "Stages 1 and 2 are frozen"), (4, "Stages 1 to 4 are frozen")]
)
def test_frozen_stages_are_named(frozen: int, words: str) -> None:
    lines = describe(
        ModelConfig(architecture="transfer", encoder="test_efficientnet", frozen_stages=frozen), 3, 1, 32
    ).lines()
    assert any(line.startswith(words) for line in lines)
    assert sum("(frozen)" in line for line in lines) == frozen


def test_random_weights_do_not_change_the_summary() -> None:
    assert describe(TINY, 3, 1, 32) == describe(TINY, 3, 1, 32)


def test_the_text_graph_connects_stages_to_decoder_steps() -> None:
    lines = text_graph(describe(ModelConfig(architecture="transfer", encoder="efficientnet_b0"), 3, 1, 224).parts)
    assert lines[0].startswith("encoder 1 32 x 112 x 112 -") and lines[0].endswith("> decoder 5 32 x 224 x 224")
    assert lines[4].lstrip().startswith("encoder 5 80 x 14 x 14 -") and lines[4].endswith("> decoder 1 40 x 28 x 28")
    assert lines[5].strip() == "bottleneck 80 x 14 x 14"


def test_the_light_network_from_neck_to_detail() -> None:
    summary = describe(LIGHT, 3, 1, 64)
    names = [part.name for part in summary.parts[5:]]
    assert names == ["neck", "decoder 1", "decoder 2", "decoder 3", "detail", "head"]
    skips = {part.name: part.skip for part in summary.parts if part.skip}
    assert skips == {
        "decoder 1": "encoder 4",
        "decoder 2": "encoder 3",
        "decoder 3": "encoder 2",
        "detail": "encoder 1",
    }
    assert [part.name for part in summary.parts if part.frozen] == ["encoder 1"]
    assert summary.title == "Light U-Net over mobilenetv3_small_050"
    lines = text_graph(summary.parts)
    assert lines[0].startswith("encoder 1 16 x 32 x 32 -") and lines[0].endswith("-> detail 16 x 32 x 32")
    assert [line.strip() for line in lines[4:]] == ["encoder 5 288 x 2 x 2", "neck 96 x 2 x 2"]


def test_the_stem_without_a_map_of_stride_2_comes_first() -> None:
    summary = describe(ModelConfig(architecture="light", encoder="starnet_s050", frozen_stages=0), 3, 1, 64)
    assert [part.name for part in summary.parts[:2]] == ["stem", "encoder 1"]
    assert {part.name: part.skip for part in summary.parts}["detail"] == "stem"
    assert text_graph(summary.parts)[0].startswith("stem 16 x 32 x 32 -")


def test_a_single_stage_encoder_skips_to_all_steps() -> None:
    parts = [part for part in describe(NO_CHAIN, 3, 1, 64).parts if part.kind == "decoder"]
    assert [part.skip for part in parts] == ["encoder 1"] * 4
