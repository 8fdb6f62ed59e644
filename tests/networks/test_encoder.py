import pytest
import timm
import torch
from torch import Tensor, nn

from geograft.errors import SettingError
from geograft.networks.encoder import Encoder, build_encoder, check_name, timm_network

# One of each family that timm writes differently; the tiny ones are timm's own test networks.
CHAINS = (
    "test_resnet",
    "test_convnext",
    "test_byobnet",
    "test_nfnet",
    "resnet18",
    "regnetx_002",
    "convnext_atto",
    "ghostnet_050",
)


def filled(name: str) -> nn.Module:
    """timm's network with random weights and statistics, so that every one of them shows in the outputs."""
    torch.manual_seed(0)
    network = timm.create_model(name)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return network.eval()


def image(bands: int = 3) -> Tensor:
    return torch.randn(1, bands, 160, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_lite0"])
def test_efficientnet_stages_return_timms_features(name: str) -> None:
    network = filled(name)
    features = timm.create_model(name, features_only=True, out_indices=(0, 1, 2)).eval()
    kept = {key: tensor for key, tensor in network.state_dict().items() if key in features.state_dict()}
    features.load_state_dict(kept)
    inside: list[Tensor] = []
    network.blocks[3].register_forward_hook(lambda _module, _given, output: inside.append(output))
    with torch.no_grad():
        maps = build_encoder(network, name, 3).eval()(image())
        inside.clear()
        network(image())
        for ours, timms in zip(maps[1:4], features(image()), strict=True):
            assert torch.equal(ours, timms)
        assert torch.equal(maps[4], inside[0])
        assert torch.equal(maps[0], network.bn1(network.conv_stem(image())))


@pytest.mark.parametrize("name", CHAINS)
def test_stages_of_any_network_return_timms_features(name: str) -> None:
    network = filled(name)
    features = timm.create_model(name, features_only=True).eval()
    # timm renames the modules that it takes out of a container: stages.0 becomes stages_0.
    renamed = {key.replace(".", "_"): tensor for key, tensor in network.state_dict().items()}
    features.load_state_dict({key: renamed[key.replace(".", "_")] for key in features.state_dict()})
    encoder = build_encoder(network, name, 3).eval()
    with torch.no_grad():
        timms = features(image())
        ours = encoder(image())
    assert len(ours) == min(5, len(timms))
    assert all(map(torch.equal, ours, timms))
    assert list(encoder.widths) == features.feature_info.channels()[:5]
    assert list(encoder.strides) == features.feature_info.reduction()[:5]


def test_widths_and_strides_are_read_from_the_network() -> None:
    encoder = build_encoder(timm_network("efficientnet_b0", 3), "efficientnet_b0", 3)
    assert encoder.widths == (32, 16, 24, 40, 80)
    assert encoder.strides == (2, 2, 4, 8, 16)


def test_a_stem_of_stride_4_and_four_stages() -> None:
    encoder = build_encoder(timm_network("convnext_atto", 3), "convnext_atto", 3)
    assert encoder.strides == (4, 8, 16, 32)


@pytest.mark.parametrize("bands", [1, 4, 13])
def test_any_number_of_bands(bands: int) -> None:
    encoder = build_encoder(timm_network("test_efficientnet", bands), "test_efficientnet", bands)
    assert encoder(torch.zeros(2, bands, 64, 64))[0].shape[2:] == (32, 32)


def test_measuring_changes_neither_the_network_nor_the_random_state() -> None:
    network = timm_network("test_efficientnet", 3).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    build_encoder(network, "test_efficientnet", 3)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_the_stages_share_the_networks_weights() -> None:
    network = timm_network("test_efficientnet", 3)
    assert build_encoder(network, "test_efficientnet", 3).stages[0].conv_stem is network.conv_stem


@pytest.mark.parametrize(("typed", "meant"), [("efficentnet_b0", "efficientnet_b0"), ("resnet-18", "resnet18")])
def test_unknown_names_suggest_similar_ones(typed: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"{typed!r}: .*{meant}"):
        check_name(typed)


def test_names_without_a_similar_one_are_rejected() -> None:
    with pytest.raises(SettingError, match=r"timm\.list_models"):
        timm_network("qqqqqqqq", 3)


def test_unknown_tags_are_rejected() -> None:
    with pytest.raises(SettingError, match="Invalid pretrained tag"):
        timm_network("test_efficientnet.of_my_own", 3)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "hrnet_w18_small", "xception41", "inception_v4"])
def test_networks_that_are_not_a_chain_are_rejected_in_one_line(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name!r} .*efficientnet_b0") as caught:
        build_encoder(timm_network(name, 3), name, 3)
    assert len(str(caught.value).splitlines()) == 1


class Looped(nn.Module):
    """A network that is not a chain: the second stage also gets the image."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = [{"module": "first"}, {"module": "second"}]
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + x)


def test_stages_that_are_not_a_chain_are_rejected() -> None:
    with pytest.raises(SettingError, match="'looped'"):
        build_encoder(Looped(), "looped", 3)


def test_strides_that_do_not_divide_are_rejected() -> None:
    with pytest.raises(ValueError, match="128 pixels"):
        Encoder([nn.AvgPool2d(4), nn.Upsample(scale_factor=2)], bands=3)
    with pytest.raises(ValueError, match="126"):
        Encoder([nn.Conv2d(3, 3, 3)], bands=3)


def test_stages_without_feature_maps_are_rejected() -> None:
    with pytest.raises(ValueError, match="feature maps"):
        Encoder([nn.Flatten()], bands=3)
