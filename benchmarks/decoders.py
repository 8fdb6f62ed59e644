"""Decoder variants of Geograft's default network. Each changes one component."""

from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate, leaky_relu

from geograft.networks import bodies
from geograft.networks.bodies import FINE, FINE_STRIDE, NEGATIVE_SLOPE, WORK_STRIDE, Detail, LightUNet, Merge
from geograft.networks.network import Network


class NoDetail(nn.Module):
    """Replace the detail block: return the map of the working stride unchanged."""

    def forward(self, x: Tensor, _fine: Tensor) -> Tensor:
        """Return the map of the working stride."""
        return x


class BilinearDetail(nn.Module):
    """The detail block with bilinear upsampling instead of a sub-pixel convolution."""

    def __init__(self, width: int, own: Detail) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, FINE, kernel_size=1)
        self.lateral, self.mix = own.lateral, own.mix

    def forward(self, x: Tensor, fine: Tensor) -> Tensor:
        """Return the map at stride 2."""
        x = interpolate(self.narrow(x), size=fine.shape[2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(leaky_relu(x + self.lateral(fine), NEGATIVE_SLOPE))
        return mixed


class InvertedBottleneck(nn.Module):
    """A universal inverted bottleneck with both depth-wise convolutions (Qin et al. 2024, arXiv:2404.10518)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.block = nn.Sequential(
            *_depthwise(width),
            *_pointwise(width, inner),
            _activation(),
            *_depthwise(inner),
            _activation(),
            *_pointwise(inner, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus the block's output."""
        return x + self.block(x)  # type: ignore[no-any-return]


class FlowAlignedMerge(nn.Module):
    """Decoder step that warps the coarser map to the finer one by a learned flow (Li et al. 2020, arXiv:2002.10120)."""

    def __init__(self, own: Merge, width: int) -> None:
        super().__init__()
        self.narrow, self.lateral, self.mix = own.narrow, own.lateral, own.mix
        self.flow = nn.Conv2d(2 * width, 2, kernel_size=3, padding=1)
        # Zero flow: starts as plain bilinear upsampling.
        nn.init.zeros_(self.flow.weight)
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the merged map, of the skip's size."""
        lateral = self.lateral(skip)
        narrow = self.narrow(x)
        large = interpolate(narrow, size=skip.shape[2:], mode="bilinear", align_corners=False)
        identity = torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3)
        grid = affine_grid(identity, [len(x), 1, *skip.shape[2:]], align_corners=False)
        # The flow is in cells of the coarser map, which the sampling grid spans from -1 to 1.
        cells = 2 / torch.tensor([narrow.shape[3], narrow.shape[2]], dtype=x.dtype)
        grid = grid + self.flow(torch.cat([large, lateral], 1)).permute(0, 2, 3, 1) * cells
        x = grid_sample(narrow, grid, mode="bilinear", padding_mode="border", align_corners=False)
        mixed: Tensor = self.mix(leaky_relu(x + lateral, NEGATIVE_SLOPE))
        return mixed


def remove_fine_path(network: Network) -> None:
    """Remove the path at stride 2: one sub-pixel convolution from the working stride to full resolution."""
    body = _light(network)
    body.detail = NoDetail()  # type: ignore[assignment]
    factor = WORK_STRIDE // FINE_STRIDE
    channels = body.head.out_channels * factor**2
    width = _width(body.decoder[-1])
    body.head = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.PixelShuffle(factor))  # type: ignore[assignment]


def use_bilinear_upsampling(network: Network) -> None:
    """Upsample bilinearly instead of by sub-pixel convolution: from stride 4 to 2, and the logits."""
    body = _light(network)
    body.detail = BilinearDetail(_width(body.decoder[-1]), body.detail)  # type: ignore[assignment]
    outputs = body.head.out_channels // FINE_STRIDE**2
    enlarge = nn.Upsample(scale_factor=FINE_STRIDE, mode="bilinear", align_corners=False)
    # PixelUnshuffle cancels the pixel shuffle that the network applies to its logits.
    layers = nn.Conv2d(FINE, outputs, 3, padding=1), enlarge, nn.PixelUnshuffle(FINE_STRIDE)
    body.head = nn.Sequential(*layers)  # type: ignore[assignment]


def use_separable_convolutions(network: Network) -> None:
    """Use depth-wise separable convolutions in the decoder."""
    _replace_mix(network, lambda width: nn.Sequential(*_depthwise(width), *_pointwise(width, width), _activation()))


def use_inverted_bottlenecks(network: Network) -> None:
    """Use universal inverted bottlenecks in the decoder."""
    _replace_mix(network, lambda width: nn.Sequential(InvertedBottleneck(width), _activation()))


def use_flow_alignment(network: Network) -> None:
    """Align the coarser map to the skip before they are added."""
    body = _light(network)
    body.decoder = nn.ModuleList(FlowAlignedMerge(step, _width(step)) for step in body.decoder)  # type: ignore[arg-type]


def remove_context(network: Network) -> None:
    """Remove the context block at the coarsest stride."""
    body = _light(network)
    body.neck[1] = nn.Identity()


def double_width(network: Network) -> None:
    """Make the decoder twice as wide."""
    encoder = _light(network).encoder
    bands, outputs = 3, _light(network).head.out_channels // FINE_STRIDE**2
    with patch.multiple(bodies, WIDE=2 * bodies.WIDE, NARROW=2 * bodies.NARROW, FINE=2 * bodies.FINE):
        network.body = LightUNet(encoder, bands, outputs)


def double_context(network: Network) -> None:
    """Put a second context block at the coarsest stride."""
    body = _light(network)
    width = body.neck[0][0].out_channels  # type: ignore[index]
    body.neck.append(bodies.Context(width))


CHANGES: dict[str, Callable[[Network], None]] = {
    "no path at stride 2": remove_fine_path,
    "bilinear upsampling instead of sub-pixel": use_bilinear_upsampling,
    "separable convolutions": use_separable_convolutions,
    "inverted bottlenecks": use_inverted_bottlenecks,
    "flow alignment": use_flow_alignment,
    "no context block": remove_context,
    "double decoder width": double_width,
}


def _light(network: Network) -> LightUNet:
    assert isinstance(network.body, LightUNet)
    return network.body


def _width(step: nn.Module) -> int:
    return next(m.out_channels for m in step.get_submodule("mix").modules() if isinstance(m, nn.Conv2d))


def _replace_mix(network: Network, block: Callable[[int], nn.Module]) -> None:
    body = _light(network)
    steps: Sequence[nn.Module] = (*body.decoder, body.detail)
    for step in steps:
        step.mix = block(_width(step))


def _depthwise(width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)


def _pointwise(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)


def _activation() -> nn.Module:
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
