"""A network that begins with another's weights: what stays, to the bit, and what is new."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geograft.config import ModelConfig
from geograft.networks.finetune import Ends, input_weights, new_bands, sources, start_from, with_bands
from geograft.networks.network import Network, build

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
    assert start_from(new, old.state_dict(), Ends(RGB, TREES), Ends(RGB, TREES)) == ()
    assert torch.equal(shown(new, image(3)), shown(old, image(3)))


@EVERY
def test_a_new_band_changes_nothing_at_first_and_is_learned(model: ModelConfig) -> None:
    old, new = made(model, 3), made(model, 4, seed=1)
    now = ("nir", *RGB)
    assert start_from(new, old.state_dict(), Ends(RGB, TREES), Ends(now, TREES)) == ("band nir new, from zero",)
    pixels = image(4)
    assert torch.allclose(shown(new, pixels), shown(old, pixels[:, 1:]), atol=1e-5)
    new.train()(torch.cat([pixels, pixels.flip(2)])).square().mean().backward()
    gradients = [new.get_parameter(name).grad for name in input_weights(new, 4)]
    assert gradients
    assert all(each is not None and each[:, 0].abs().sum() > 0 for each in gradients)


@EVERY
def test_bands_in_another_order_are_found_by_name(model: ModelConfig) -> None:
    old, new = made(model, 3), made(model, 3, seed=1)
    assert start_from(new, old.state_dict(), Ends(RGB, TREES), Ends(RGB[::-1], TREES)) == ()
    assert torch.allclose(shown(new, image(3)), shown(old, image(3).flip(1)), atol=1e-5)


def test_other_classes_get_a_new_head_and_keep_the_rest() -> None:
    old, new = made(LIGHT, 3), made(LIGHT, 3, 3, seed=1)
    before = {name: tensor.clone() for name, tensor in new.body.head.state_dict().items()}
    assert start_from(new, old.state_dict(), Ends(RGB, TREES), Ends(RGB, ("a", "b", "c"))) == ("head new",)
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.body.head.state_dict().items())
    heads = ("body.head.", "body.coarse.")
    rest = {name: tensor for name, tensor in new.state_dict().items() if not name.startswith(heads)}
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in rest.items())


def test_two_other_classes_of_as_many_outputs_get_a_new_head_too() -> None:
    old, new = made(UNET, 3), made(UNET, 3, seed=1)
    assert start_from(new, old.state_dict(), Ends(RGB, TREES), Ends(RGB, ("other", "roof"))) == ("head new",)
    assert not torch.equal(new.body.head.weight, old.body.head.weight)


def test_the_same_classes_get_a_new_head_when_they_begin_to_overlap() -> None:
    three = ("crops", "tree", "roof")
    old, new = made(LIGHT, 3, outputs=3), made(LIGHT, 3, outputs=3, seed=1)
    head = new.state_dict()["body.head.weight"].clone()
    assert start_from(new, old.state_dict(), Ends(RGB, three), Ends(RGB, three, overlapping=True)) == ("head new",)
    assert torch.equal(new.state_dict()["body.head.weight"], head)
    one, two = made(LIGHT, 3), made(LIGHT, 3, outputs=2, seed=1)
    assert start_from(two, one.state_dict(), Ends(RGB, TREES), Ends(RGB, TREES, overlapping=True)) == ("head new",)


def test_another_network_is_refused_and_nothing_changes() -> None:
    new = made(TRANSFER, 3)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    with pytest.raises(ValueError, match=r"is needed, and it has none"):
        start_from(new, made(UNET, 3).state_dict(), Ends(RGB, TREES), Ends(RGB, TREES))
    wide = {name: torch.cat([tensor, tensor]) if tensor.ndim else tensor for name, tensor in before.items()}
    with pytest.raises(ValueError, match=r"is needed, and it has \("):
        start_from(new, wide, Ends(RGB, TREES), Ends(RGB, TREES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.state_dict().items())


def test_a_first_convolution_that_takes_more_than_the_bands_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 12 channels for 3 bands"):
        with_bands(torch.zeros(8, 12, 3, 3), RGB, ("red", "nir"))


@given(
    before=st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True),
    now=st.lists(st.sampled_from("efghijkl"), min_size=1, max_size=20, unique=True),
)
def test_filters_follow_their_bands(before: list[str], now: list[str]) -> None:
    weight = torch.randn(2, len(before), 3, 3, dtype=torch.float64)
    found = with_bands(weight, before, now)
    assert found.shape == (2, len(now), 3, 3)
    if set(before) & set(now):
        for i, band in enumerate(now):
            old = weight[:, before.index(band)] if band in before else torch.zeros(2, 3, 3)
            assert torch.equal(found[:, i], old)
    else:  # an image whose bands are all alike is seen as before
        assert torch.allclose(found.sum(1), weight.sum(1))


def test_what_is_said_of_bands() -> None:
    assert new_bands(RGB, RGB) == []
    assert new_bands(RGB, ("b1", "b2", "b3")) == []
    assert sources(RGB, ("b1", "b2", "b3")) == [0, 1, 2]
    assert new_bands(RGB, ("green", "nir", "red")) == ["band nir new, from zero", "band blue gone"]
    assert new_bands(RGB, ("b1", "b2")) == ["filters of 3 bands shared out among 2"]
