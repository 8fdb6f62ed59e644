"""Weights transferred between networks with other bands or classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geograft.config import ModelConfig
from geograft.networks.network import (
    Network,
    Signature,
    adapt_first_conv,
    build,
    describe_band_changes,
    input_conv_weights,
    match_bands,
    transfer_weights,
)

RGB = ("red", "green", "blue")
TREES = ("other", "tree")
LIGHT = ModelConfig(architecture="light", encoder="mobilenetv3_small_050", weights="none")
STEMMED = ModelConfig(architecture="light", encoder="starnet_s050", weights="none")
TRANSFER = ModelConfig(encoder="test_efficientnet", weights="none")
UNET = ModelConfig(architecture="unet")
EVERY = pytest.mark.parametrize("model", [LIGHT, STEMMED, TRANSFER, UNET], ids=["light", "stem", "transfer", "unet"])


def made(model: ModelConfig, bands: int, outputs: int = 1, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build(model, bands, outputs, pretrained=False).eval()


def image(bands: int) -> Tensor:
    return torch.randn(1, bands, 64, 64, generator=torch.Generator().manual_seed(1))


def shown(network: Network, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(pixels)


@EVERY
def test_the_same_bands_and_classes_give_the_same_network(model: ModelConfig) -> None:
    old, new = made(model, 3), made(model, 3, seed=1)
    assert transfer_weights(new, old.state_dict(), Signature(RGB, TREES), Signature(RGB, TREES)) == ()
    assert torch.equal(shown(new, image(3)), shown(old, image(3)))


@EVERY
def test_a_new_band_has_zero_weights_and_a_gradient(model: ModelConfig) -> None:
    old, new = made(model, 3), made(model, 4, seed=1)
    now = ("nir", *RGB)
    assert transfer_weights(new, old.state_dict(), Signature(RGB, TREES), Signature(now, TREES)) == (
        "band nir new (zero weights)",
    )
    pixels = image(4)
    assert torch.allclose(shown(new, pixels), shown(old, pixels[:, 1:]), atol=1e-5)
    new.train()(torch.cat([pixels, pixels.flip(2)])).square().mean().backward()
    gradients = [new.get_parameter(name).grad for name in input_conv_weights(new, 4)]
    assert gradients
    assert all(each is not None and each[:, 0].abs().sum() > 0 for each in gradients)


@EVERY
def test_reordered_bands_are_matched_by_name(model: ModelConfig) -> None:
    old, new = made(model, 3), made(model, 3, seed=1)
    assert transfer_weights(new, old.state_dict(), Signature(RGB, TREES), Signature(RGB[::-1], TREES)) == ()
    assert torch.allclose(shown(new, image(3)), shown(old, image(3).flip(1)), atol=1e-5)


def test_other_classes_get_a_new_head_and_keep_the_rest() -> None:
    old, new = made(LIGHT, 3), made(LIGHT, 3, 3, seed=1)
    before = {name: tensor.clone() for name, tensor in new.body.head.state_dict().items()}
    assert transfer_weights(new, old.state_dict(), Signature(RGB, TREES), Signature(RGB, ("a", "b", "c"))) == (
        "head new",
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.body.head.state_dict().items())
    heads = ("body.head.", "body.coarse.")
    rest = {name: tensor for name, tensor in new.state_dict().items() if not name.startswith(heads)}
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in rest.items())


def test_other_class_names_get_a_new_head() -> None:
    old, new = made(UNET, 3), made(UNET, 3, seed=1)
    assert transfer_weights(new, old.state_dict(), Signature(RGB, TREES), Signature(RGB, ("other", "roof"))) == (
        "head new",
    )
    assert not torch.equal(new.body.head.weight, old.body.head.weight)


def test_classes_that_become_overlapping_get_a_new_head() -> None:
    three = ("crops", "tree", "roof")
    old, new = made(LIGHT, 3, outputs=3), made(LIGHT, 3, outputs=3, seed=1)
    head = new.state_dict()["body.head.weight"].clone()
    assert transfer_weights(new, old.state_dict(), Signature(RGB, three), Signature(RGB, three, overlapping=True)) == (
        "head new",
    )
    assert torch.equal(new.state_dict()["body.head.weight"], head)
    one, two = made(LIGHT, 3), made(LIGHT, 3, outputs=2, seed=1)
    assert transfer_weights(two, one.state_dict(), Signature(RGB, TREES), Signature(RGB, TREES, overlapping=True)) == (
        "head new",
    )


def test_other_architectures_are_rejected_and_change_nothing() -> None:
    new = made(TRANSFER, 3)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    with pytest.raises(ValueError, match=r"body\.\S+ \(.*\), found none"):
        transfer_weights(new, made(UNET, 3).state_dict(), Signature(RGB, TREES), Signature(RGB, TREES))
    wide = {name: torch.cat([tensor, tensor]) if tensor.ndim else tensor for name, tensor in before.items()}
    with pytest.raises(ValueError, match=r"body\.\S+ \(.*\), found \("):
        transfer_weights(new, wide, Signature(RGB, TREES), Signature(RGB, TREES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.state_dict().items())


def test_a_first_convolution_with_other_channels_than_bands_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"12 channels.* 3 bands"):
        adapt_first_conv(torch.zeros(8, 12, 3, 3), RGB, ("red", "nir"))


@given(
    before=st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True),
    now=st.lists(st.sampled_from("efghijkl"), min_size=1, max_size=20, unique=True),
)
def test_filters_follow_their_bands(before: list[str], now: list[str]) -> None:
    weight = torch.randn(2, len(before), 3, 3, dtype=torch.float64)
    found = adapt_first_conv(weight, before, now)
    assert found.shape == (2, len(now), 3, 3)
    if set(before) & set(now):
        for i, band in enumerate(now):
            old = weight[:, before.index(band)] if band in before else torch.zeros(2, 3, 3)
            assert torch.equal(found[:, i], old)
    else:  # an image whose bands are all alike is seen as before
        assert torch.allclose(found.sum(1), weight.sum(1))


def test_descriptions_of_band_changes() -> None:
    assert describe_band_changes(RGB, RGB) == []
    assert describe_band_changes(RGB, ("b1", "b2", "b3")) == []
    assert match_bands(RGB, ("b1", "b2", "b3")) == [0, 1, 2]
    assert describe_band_changes(RGB, ("green", "nir", "red")) == ["band nir new (zero weights)", "band blue dropped"]
    assert describe_band_changes(RGB, ("b1", "b2")) == ["mean filter of 3 bands used for 2 new bands"]
