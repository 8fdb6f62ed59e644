"""Other decoders for Geograft's default: each changes one thing of its network."""

from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate, leaky_relu

from geograft.networks import light
from geograft.networks.light import FINE, FINE_STRIDE, NEGATIVE_SLOPE, WORK_STRIDE, Detail, LightUNet, Merge
from geograft.networks.network import Network


class Coarse(nn.Module):
    """In the place of the detail: the map of the working stride as it is."""

    def forward(self, x: Tensor, _fine: Tensor) -> Tensor:
        """Return the coarser map."""
        return x


class Enlarged(nn.Module):
    """The detail by bilinear enlargement."""

    def __init__(self, width: int, own: Detail) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, FINE, kernel_size=1)
        self.lateral, self.mix = own.lateral, own.mix

    def forward(self, x: Tensor, fine: Tensor) -> Tensor:
        """Return the map at stride 2."""
        x = interpolate(self.narrow(x), size=fine.shape[2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(leaky_relu(x + self.lateral(fine), NEGATIVE_SLOPE))
        return mixed


class Inverted(nn.Module):
    """A universal inverted bottleneck with both depth-wise convolutions (Qin et al. 2024, arXiv:2404.10518)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.block = nn.Sequential(
            *_by_channel(width), *_point(width, inner), _unit(), *_by_channel(inner), _unit(), *_point(inner, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map."""
        return x + self.block(x)  # type: ignore[no-any-return]


class Aligned(nn.Module):
    """A decoder step that moves the coarser map to where the finer one is (Li et al. 2020, arXiv:2002.10120)."""

    def __init__(self, own: Merge, width: int) -> None:
        super().__init__()
        self.narrow, self.lateral, self.mix = own.narrow, own.lateral, own.mix
        self.flow = nn.Conv2d(2 * width, 2, kernel_size=3, padding=1)
        # Begins as plain enlargement.
        nn.init.zeros_(self.flow.weight)
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the mixed map, of the skip's size."""
        beside = self.lateral(skip)
        narrow = self.narrow(x)
        large = interpolate(narrow, size=skip.shape[2:], mode="bilinear", align_corners=False)
        still = torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3)
        moved = affine_grid(still, [len(x), 1, *skip.shape[2:]], align_corners=False)
        # In cells of the coarser map; the grid spans it from -1 to 1.
        cells = 2 / torch.tensor([narrow.shape[3], narrow.shape[2]], dtype=x.dtype)
        moved = moved + self.flow(torch.cat([large, beside], 1)).permute(0, 2, 3, 1) * cells
        x = grid_sample(narrow, moved, mode="bilinear", padding_mode="border", align_corners=False)
        mixed: Tensor = self.mix(leaky_relu(x + beside, NEGATIVE_SLOPE))
        return mixed


def no_fine_path(network: Network) -> None:
    """Take the path at stride 2 away: sixteen logits for sixteen pixels from the working stride on."""
    body = _light(network)
    body.detail = Coarse()  # type: ignore[assignment]
    rest = WORK_STRIDE // FINE_STRIDE
    many = body.head.out_channels * rest**2
    width = _width(body.decoder[-1])
    body.head = nn.Sequential(nn.Conv2d(width, many, 3, padding=1), nn.PixelShuffle(rest))  # type: ignore[assignment]


def enlarged_logits(network: Network) -> None:
    """Enlarge bilinearly what sub-pixel convolutions do: the map of stride 4 to stride 2, and the logits."""
    body = _light(network)
    body.detail = Enlarged(_width(body.decoder[-1]), body.detail)  # type: ignore[assignment]
    outputs = body.head.out_channels // FINE_STRIDE**2
    enlarge = nn.Upsample(scale_factor=FINE_STRIDE, mode="bilinear", align_corners=False)
    # The network's own shuffle undoes the last step.
    layers = nn.Conv2d(FINE, outputs, 3, padding=1), enlarge, nn.PixelUnshuffle(FINE_STRIDE)
    body.head = nn.Sequential(*layers)  # type: ignore[assignment]


def separable(network: Network) -> None:
    """Mix with a depth-wise and a point-wise convolution."""
    _mixed(network, lambda width: nn.Sequential(*_by_channel(width), *_point(width, width), _unit()))


def inverted(network: Network) -> None:
    """Mix with universal inverted bottlenecks."""
    _mixed(network, lambda width: nn.Sequential(Inverted(width), _unit()))


def aligned(network: Network) -> None:
    """Align maps before they meet."""
    body = _light(network)
    body.decoder = nn.ModuleList(Aligned(step, _width(step)) for step in body.decoder)  # type: ignore[arg-type]


def no_context(network: Network) -> None:
    """Take away the look around at the coarsest map."""
    body = _light(network)
    body.neck[1] = nn.Identity()


def wide(network: Network) -> None:
    """Make the decoder twice as wide."""
    encoder = _light(network).encoder
    bands, outputs = 3, _light(network).head.out_channels // FINE_STRIDE**2
    with patch.multiple(light, WIDE=2 * light.WIDE, NARROW=2 * light.NARROW, FINE=2 * light.FINE):
        network.body = LightUNet(encoder, bands, outputs)


CHANGES: dict[str, Callable[[Network], None]] = {
    "no path at stride 2": no_fine_path,
    "enlarged, not sub-pixel": enlarged_logits,
    "separable convolutions": separable,
    "inverted bottlenecks": inverted,
    "maps aligned": aligned,
    "no context": no_context,
    "twice as wide": wide,
}


def _light(network: Network) -> LightUNet:
    assert isinstance(network.body, LightUNet)
    return network.body


def _width(step: nn.Module) -> int:
    return next(m.out_channels for m in step.get_submodule("mix").modules() if isinstance(m, nn.Conv2d))


def _mixed(network: Network, block: Callable[[int], nn.Module]) -> None:
    body = _light(network)
    steps: Sequence[nn.Module] = (*body.decoder, body.detail)
    for step in steps:
        step.mix = block(_width(step))


def _by_channel(width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)


def _point(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)


def _unit() -> nn.Module:
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
