"""The linear classifier: a linear function of upsampled features, whose encoder is frozen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from geograft.config import ModelConfig
from geograft.networks.bodies import LinearClassifier, pixel_features
from geograft.networks.network import Network, build


def linear(
    encoder: str = "mobilenetv3_small_050", bands: int = 3, outputs: int = 2
) -> tuple[Network, LinearClassifier]:
    torch.manual_seed(0)
    network = build(ModelConfig(architecture="linear", encoder=encoder, weights="none"), bands, outputs).eval()
    assert isinstance(network.body, LinearClassifier)
    return network, network.body


def upsampled(body: LinearClassifier, image: Tensor) -> Tensor:
    """Return the bands and all maps at the size of the image, (d, h, w)."""
    maps = [interpolate(each, size=image.shape[2:], mode="bilinear", align_corners=False) for each in body.maps(image)]
    return torch.cat([image, *maps], dim=1)[0]


@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "convnext_atto", "vgg11_bn", "test_vit"])
@torch.no_grad()
def test_projecting_before_upsampling_is_a_linear_classifier_of_upsampled_features(encoder: str) -> None:
    _, body = linear(encoder, bands=4, outputs=3)
    image = torch.rand(1, 4, 64, 96)
    features = upsampled(body, image)
    weight, bias = torch.randn(3, len(features)), torch.randn(3)
    body.set_weights(weight, bias)
    expected = torch.einsum("od,dhw->ohw", weight, features) + bias[:, None, None]
    torch.testing.assert_close(body(image)[0], expected, rtol=1e-4, atol=1e-3)
    assert body.strides[-1] == body.stride and sum(body.widths) == len(features)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 95)), min_size=1, max_size=40))
@torch.no_grad()
def test_features_of_pixels_are_those_of_the_upsampled_maps(places: list[tuple[int, int]]) -> None:
    _, body = linear()
    image = torch.rand(1, 3, 64, 96)
    pixels = torch.tensor(places)
    read = pixel_features(image[0], body.maps(image), pixels)
    torch.testing.assert_close(read, upsampled(body, image)[:, pixels[:, 0], pixels[:, 1]].T, rtol=1e-4, atol=1e-4)


@settings(max_examples=10)
@given(st.integers(1, 150), st.integers(1, 150))
def test_logits_have_the_size_of_the_image(height: int, width: int) -> None:
    network, _ = linear()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, height, width)).shape == (1, 2, height, width)


def test_the_encoder_is_frozen_whatever_the_number_of_frozen_stages() -> None:
    network, body = linear()
    network.train()
    assert not any(parameter.requires_grad for parameter in body.encoder.parameters())
    assert not any(module.training for stage in network.stages for module in stage.modules())
    assert all(parameter.requires_grad for parameter in body.head.parameters())
