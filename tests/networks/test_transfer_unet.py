import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, interpolate

from geograft.networks.bodies import ConcatUpsample, TransferUNet
from geograft.networks.encoder import Encoder, build_encoder


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def over(name: str, outputs: int = 1) -> TransferUNet:
    return TransferUNet(build_encoder(timm.create_model(name), name, 3), outputs)


def article_transfer(network: TransferUNet, image: Tensor) -> Tensor:
    """The article's forward pass over EfficientNet-B0, stated once more: each skip resized to what it joins."""
    skips = [image]
    for stage in network.stages:
        skips.append(stage(skips[-1]))
    x = network.bottleneck(skips[-1])
    for number, (step, skip) in enumerate(zip(network.decoder, skips[:0:-1], strict=True), 1):
        size = (x.size(2), x.size(3))
        x = torch.cat([interpolate(skip, size=size, mode="bilinear", align_corners=False), x], dim=1)
        if number != 4:
            x = conv_transpose2d(x, step.up.weight, step.up.bias, stride=2)
        x = step.mix(x)
    return network.head(x)


def test_article_parameter_count() -> None:
    assert parameters(over("efficientnet_b0")) == 728_949


def test_same_logits_as_the_article() -> None:
    torch.manual_seed(0)
    network = over("efficientnet_b0").eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(network(image), article_transfer(network, image))


def test_the_fourth_step_alone_does_not_enlarge() -> None:
    enlarging = [isinstance(step.up, nn.ConvTranspose2d) for step in over("efficientnet_b0").decoder]
    assert enlarging == [True, True, True, False, True]


def test_lite0_has_the_widths_and_strides_of_b0() -> None:
    b0, lite0 = (build_encoder(timm.create_model(n), n, 3) for n in ("efficientnet_b0", "tf_efficientnet_lite0"))
    assert b0.widths == lite0.widths == (32, 16, 24, 40, 80)
    assert b0.strides == lite0.strides == (2, 2, 4, 8, 16)


def test_a_skip_of_another_size_is_resized_to_the_deeper_map() -> None:
    torch.manual_seed(0)
    step = ConcatUpsample(4, 3, factor=2).eval()
    deeper, skip = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 10, 9)
    with torch.no_grad():
        resized = interpolate(skip, size=(5, 6), mode="bilinear", align_corners=False)
        assert torch.equal(step(deeper, skip), step(deeper, resized))
        assert step(deeper, skip).shape == (1, 3, 10, 12)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "test_resnet", "test_nfnet"])
def test_logits_have_the_size_of_the_image_over_any_encoder(name: str) -> None:
    network = over(name, outputs=4).eval()
    edge = 2 * network.stride
    with torch.no_grad():
        assert network(torch.zeros(1, 3, edge, 2 * edge)).shape == (1, 4, edge, 2 * edge)


def test_an_encoder_of_the_users_own() -> None:
    def stage(channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU())

    encoder = Encoder([stage(7, 6, 4), stage(6, 8, 1), stage(8, 10, 2)], bands=7)
    assert (encoder.widths, encoder.strides) == ((6, 8, 10), (4, 4, 8))
    network = TransferUNet(encoder, outputs=2)
    assert network(torch.zeros(2, 7, 16, 24)).shape == (2, 2, 16, 24)
