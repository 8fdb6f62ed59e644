"""The light network: any pyramid under one decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import interpolate

from geograft.config import ModelConfig
from geograft.errors import SettingError
from geograft.networks.bodies import FINE, FINE_STRIDE, Detail, LightUNet, Merge
from geograft.networks.network import Network, build

B0 = ModelConfig(architecture="light", encoder="efficientnet_b0", weights="none")


def light(encoder: str, bands: int = 3, outputs: int = 1) -> Network:
    torch.manual_seed(0)
    return build(ModelConfig(architecture="light", encoder=encoder, weights="none"), bands, outputs)


@pytest.fixture(scope="module")
def network() -> Network:
    return light("mobilenetv3_small_050", bands=4, outputs=3).eval()


@settings(max_examples=15)
@given(st.integers(1, 150), st.integers(1, 150))
def test_logits_have_the_size_of_the_image(network: Network, height: int, width: int) -> None:
    with torch.inference_mode():
        assert network(torch.zeros(1, 4, height, width)).shape == (1, 3, height, width)


def test_parameters_over_efficientnet_b0() -> None:
    network = build(B0, 3, 1)
    assert sum(each.numel() for each in network.parameters()) == 3_852_611
    assert sum(each.numel() for each in network.stages.parameters()) == 3_595_388
    assert isinstance(network.body, LightUNet)
    assert sum(each.numel() for each in network.body.coarse.parameters()) == 96 + 64 + 64 + 3


@pytest.mark.parametrize(
    ("encoder", "strides"),
    [
        ("resnet10t", (2, 4, 8, 16, 32)),
        ("convnext_atto", (4, 8, 16, 32)),
        ("vgg11_bn", (1, 2, 4, 8, 16, 32)),
        ("test_vit", (4, 8, 16, 32)),
    ],
)
def test_decoders_fit_the_strides_of_any_pyramid(encoder: str, strides: tuple[int, ...]) -> None:
    network = light(encoder)
    assert isinstance(network.body, LightUNet)
    assert network.body.strides == strides
    assert isinstance(network.body.stem, nn.Identity) == (FINE_STRIDE in strides)
    network.set_deep_supervision(enabled=True)
    logits, coarser = network(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    (logits.square().mean() + sum(each.square().mean() for each in coarser.values())).backward()
    assert not [name for name, each in network.named_parameters() if each.grad is None]
    own = [each for name, each in network.named_parameters() if ".encoder." not in name]
    assert all(each.grad.any() for each in own if each.grad is not None)


def test_auxiliary_logits_are_returned_in_training_with_deep_supervision(network: Network) -> None:
    image = torch.rand(2, 4, 50, 70)
    plain = network(image)
    network.set_deep_supervision(enabled=True)
    try:
        torch.testing.assert_close(network(image), plain, rtol=0, atol=0)
        logits, coarser = network.train()(image)
    finally:
        network.eval().set_deep_supervision(enabled=False)
    assert logits.shape == plain.shape
    # No more of them than the image has.
    shapes = {stride: tuple(each.shape) for stride, each in coarser.items()}
    assert shapes == {16: (2, 3, 4, 5), 8: (2, 3, 7, 9), 4: (2, 3, 13, 18)}


def test_other_networks_have_no_auxiliary_logits() -> None:
    network = build(ModelConfig(architecture="unet"), 3, 1)
    network.set_deep_supervision(enabled=True)
    assert isinstance(network.train()(torch.zeros(2, 3, 32, 32)), torch.Tensor)


def test_projection_and_upsampling_commute() -> None:
    # What Merge does first: a point-wise map and bilinear weights, which add up to one, commute.
    narrow = nn.Conv2d(6, 3, kernel_size=1)
    x = torch.randn(2, 6, 5, 7)
    before = interpolate(narrow(x), size=(10, 14), mode="bilinear", align_corners=False)
    after = narrow(interpolate(x, size=(10, 14), mode="bilinear", align_corners=False))
    torch.testing.assert_close(before, after)


def test_steps_give_the_size_of_the_finer_map() -> None:
    merged = Merge(8, 5, 6)(torch.rand(2, 8, 4, 4), torch.rand(2, 5, 8, 8))
    assert merged.shape == (2, 6, 8, 8)
    assert Detail(6, 5, 4)(torch.rand(2, 6, 4, 4), torch.rand(2, 5, 16, 16)).shape == (2, FINE, 16, 16)


def test_sub_pixel_logits_differ_between_neighbours() -> None:
    # Sub-pixel logits: without them the four pixels under one place of stride 2 could only be blends of its neighbours.
    network = light("mobilenetv3_small_050").eval()
    assert isinstance(network.body, LightUNet)
    head = network.body.head
    with torch.no_grad():
        head.weight.zero_()
        assert head.bias is not None
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        logits = network(torch.rand(1, 3, 64, 64))
    assert logits[0, 0, :2, :2].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert (logits[0, 0] == logits[0, 0, :2, :2].repeat(32, 32)).all()


def test_frozen_stages_are_counted_over_the_pyramid() -> None:
    config = ModelConfig(architecture="light", encoder="efficientnet_b0", weights="package", frozen_stages=5)
    network = build(config, 3, 1, pretrained=False)
    assert not any(each.requires_grad for each in network.stages.parameters())
    with pytest.raises(SettingError, match="frozen_stages = 5: convnext_atto has 4 stages"):
        build(ModelConfig(architecture="light", encoder="convnext_atto", frozen_stages=5), 3, 1, pretrained=False)


def test_a_decoder_with_only_negative_activations_still_learns() -> None:
    network = light("mobilenetv3_small_050").train()
    body = network.body
    assert isinstance(body, LightUNet)
    # Each norm before a unit pushes it far below zero, as a rare class does while training learns that it is rare.
    for part in (body.neck, body.decoder, body.detail, body.stem):
        for norm in (each for each in part.modules() if isinstance(each, nn.BatchNorm2d)):
            nn.init.constant_(norm.bias, -10.0)
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    silent = [name for name, each in body.detail.named_parameters() if each.grad is None or not each.grad.any()]
    assert not silent
    assert all(each.grad is not None and each.grad.any() for each in body.neck.parameters())
