"""Every family of timm that a user may name: read, filled, trained and kept."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from geograft.networks.pyramid import Pyramid, build_pyramid

CHAINS = (
    "resnet10t",
    "resnest14d",
    "seresnet18",
    "regnety_002",
    "convnext_atto",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "tinynet_e",
    "tf_efficientnetv2_b0",
    "densenet121",
    "ghostnet_050",
    "dla46_c",
    "ese_vovnet19b_slim_dw",
    "cs3darknet_s",
    "edgenext_xx_small",
    "fastvit_t8",
    "pvt_v2_b0",
    "starnet_s050",
)
"""Networks with as many stages as maps."""

WHOLE = ("hrnet_w18_small", "xception41")
"""Networks that are a single stage: one whose branches run side by side, one whose maps arise inside its blocks."""

BANDS = tuple(enumerate(CHAINS + WHOLE, 1))
"""From 1 to 20 bands, each with another family."""


def image(bands: int) -> Tensor:
    return torch.randn(2, bands, 64, 96, generator=torch.Generator().manual_seed(1))


def saved_classifier(name: str, path: Path) -> Path:
    """timm's whole network with random weights and statistics, so that every one of them shows in the maps."""
    torch.manual_seed(0)
    network = timm.create_model(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    save_file(network.state_dict(), path)
    return path


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def maps_of(network: nn.Module, bands: int) -> list[Tensor]:
    with torch.no_grad():
        return network.eval()(image(bands))


def trained_one_step(network: Pyramid, bands: int) -> Pyramid:
    network.train()
    sum(each.square().mean() for each in network(image(bands))).backward()
    assert all(each.grad is not None for each in network.parameters())
    torch.optim.SGD(network.parameters(), lr=1e-3).step()
    return network


@pytest.mark.parametrize(("bands", "name"), BANDS)
def test_a_family_is_read_filled_trained_and_kept(name: str, bands: int, tmp_path: Path) -> None:
    path = saved_classifier(name, tmp_path / "classifier.safetensors")
    by_timm = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    timms = timm.create_model(name, features_only=True, in_chans=bands, **by_timm)
    ours, _ = build_pyramid(name, bands, str(path))
    maps = maps_of(ours, bands)
    assert same(maps, maps_of(timms, bands))
    assert list(ours.strides) == timms.feature_info.reduction() == [96 // each.shape[3] for each in maps]
    assert list(ours.widths) == timms.feature_info.channels() == [each.shape[1] for each in maps]
    assert len(ours.stages) == (1 if name in WHOLE else len(maps))

    state = trained_one_step(ours, bands).state_dict()
    again, _ = build_pyramid(name, bands, "hub", pretrained=False)
    again.load_state_dict(state)
    after = maps_of(again, bands)
    assert same(after, maps_of(ours, bands))
    assert not any(map(torch.equal, after, maps))


@pytest.mark.parametrize("name", ["convnext_atto", "densenet121"])
def test_names_of_a_features_only_network_fill_it_too(name: str, tmp_path: Path) -> None:
    timms = timm.create_model(name, features_only=True)
    save_file(timms.state_dict(), tmp_path / "features.safetensors")
    ours, _ = build_pyramid(name, 3, str(tmp_path / "features.safetensors"))
    assert same(maps_of(ours, 3), maps_of(timms, 3))
