import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, max_pool2d

from geograft.networks.bodies import STRIDE, WIDTHS, DoubleConv, UNet


def parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def article_unet(unet: UNet, image: Tensor) -> Tensor:
    """The article's forward pass, stated once more with torch's functions and the weights of `unet`."""

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        mean, var = (each[None, :, None, None] for each in (layer.running_mean, layer.running_var))
        return (x - mean) / torch.sqrt(var + 1e-5) * layer.weight[:, None, None] + layer.bias[:, None, None]

    def double(block: DoubleConv, x: Tensor) -> Tensor:
        return norm(block[4], conv(block[3], norm(block[1], conv(block[0], x)).clamp(min=0))).clamp(min=0)

    def up(step: nn.Module, x: Tensor) -> Tensor:
        return conv_transpose2d(x, step.up.weight, step.up.bias, stride=2)

    e1, e2, e3, e4, e5 = unet.stages
    d1, d2, d3, d4, d5 = unet.decoder
    o1 = double(e1, image)
    o2 = double(e2, max_pool2d(o1, 2))
    o3 = double(e3, o2)
    o4 = double(e4, max_pool2d(o3, 2))
    o5 = double(e5, max_pool2d(o4, 2))
    x = double(unet.bottleneck, max_pool2d(o5, 2))
    x = double(d1.mix, torch.cat([o5, up(d1, x)], 1))
    x = double(d2.mix, torch.cat([o4, up(d2, x)], 1))
    x = double(d3.mix, torch.cat([o3, up(d3, x)], 1))
    x = double(d4.mix, torch.cat([o2, x], 1))
    x = double(d5.mix, torch.cat([o1, up(d5, x)], 1))
    return conv(unet.head, x)


def test_article_parameter_count() -> None:
    assert parameters(UNet(bands=3, outputs=1)) == 441_137


def test_same_logits_as_the_article() -> None:
    torch.manual_seed(0)
    unet = UNet(3, 1).double()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for layer in unet.modules():  # statistics other than 0 and 1, so that their use shows
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    unet.eval()
    assert torch.allclose(unet(image), article_unet(unet, image), rtol=1e-9, atol=1e-12)


def test_logits_are_not_squeezed_into_probabilities() -> None:
    torch.manual_seed(0)
    unet = UNet(3, 1).eval()
    with torch.no_grad():
        unet.head.bias.fill_(-5.0)
        logits = unet(torch.randn(1, 3, 32, 32))
    assert logits.max() < 0


def test_stage_sizes_follow_efficientnet() -> None:
    unet = UNet(3, 1)
    shapes: list[tuple[int, ...]] = []
    for stage in unet.stages:
        stage.register_forward_hook(lambda _module, _given, output: shapes.append(tuple(output.shape[1:])))
    unet(torch.zeros(2, 3, 224, 224))
    assert shapes == [(32, 224, 224), (16, 112, 112), (24, 112, 112), (40, 56, 56), (80, 28, 28)]
    assert [shape[0] for shape in shapes] == list(WIDTHS)
    assert [224 // shape[1] for shape in shapes] == list(unet.strides)


@settings(deadline=None, max_examples=8)
@given(bands=st.integers(1, 9), outputs=st.integers(1, 7), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_any_bands_and_outputs(bands: int, outputs: int, rows: int, columns: int) -> None:
    unet = UNet(bands, outputs).eval()
    with torch.no_grad():
        logits = unet(torch.zeros(1, bands, rows * STRIDE, columns * STRIDE))
    assert logits.shape == (1, outputs, rows * STRIDE, columns * STRIDE)
    assert parameters(unet) == 441_137 + (bands - 3) * 9 * 32 + (outputs - 1) * 33
