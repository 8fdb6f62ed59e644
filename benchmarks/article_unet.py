"""The article's EfficientNet U-Net with its own loss and optimizer. It outputs probabilities.

Source: O. Belkovskiy, "Enhancing UNet: Tailoring Superior Segmentation Models through Transfer Learning" (2023), with
its errors corrected and timm's parameter names, so that all contestants load the same weight file.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from trainees import ENCODER

WIDTHS = (32, 16, 24, 40, 80)


class DoubleConv(nn.Module):
    """Two convolutions, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features after both convolutions."""
        return self.layers(inputs)  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """Resize the skip to the deeper map, concatenate, upsample and convolve."""

    def __init__(self, in_channels: int, out_channels: int, upsample: bool = True) -> None:
        super().__init__()
        both = 2 * in_channels
        self.upconv = nn.ConvTranspose2d(both, both, kernel_size=2, stride=2) if upsample else nn.Identity()
        self.layers = DoubleConv(both, out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the decoded features."""
        skip = functional.interpolate(skip, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.layers(self.upconv(torch.cat([skip, x], dim=1)))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """The article's network over the first five stages of EfficientNet-B0. Its output is probabilities."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        effnet: Any = timm.create_model(ENCODER)
        effnet.load_state_dict(load_file(weights), strict=False)
        self.encoder1: nn.Module = nn.Sequential(effnet.conv_stem, effnet.bn1)
        self.encoder2: nn.Module = effnet.blocks[0]
        self.encoder3: nn.Module = effnet.blocks[1]
        self.encoder4: nn.Module = effnet.blocks[2]
        self.encoder5: nn.Module = effnet.blocks[3]
        for part in (self.encoder1, self.encoder2):
            for parameter in part.parameters():
                parameter.requires_grad = False
        first, second, third, fourth, fifth = WIDTHS
        self.bottleneck = DoubleConv(fifth, fifth, fifth)
        self.decoder1 = DecoderBlock(fifth, fourth)
        self.decoder2 = DecoderBlock(fourth, third)
        self.decoder3 = DecoderBlock(third, second)
        self.decoder4 = DecoderBlock(second, first, upsample=False)
        self.decoder5 = DecoderBlock(first, first)
        self.final_conv = nn.Sequential(nn.Conv2d(first, 1, kernel_size=1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return the probability of class 1 per pixel."""
        output1 = self.encoder1(x)
        output2 = self.encoder2(output1)
        output3 = self.encoder3(output2)
        output4 = self.encoder4(output3)
        output5 = self.encoder5(output4)
        x = self.decoder1(self.bottleneck(output5), output5)
        x = self.decoder2(x, output4)
        x = self.decoder3(x, output3)
        x = self.decoder4(x, output2)
        x = self.decoder5(x, output1)
        return self.final_conv(x)  # type: ignore[no-any-return]


class CombinedLoss(nn.Module):
    """75 % binary cross-entropy and 25 % Dice loss of probabilities. It has no ignore index."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        intersection = torch.sum(outputs * targets)
        dice = (2.0 * intersection + 1.0) / (torch.sum(outputs) + torch.sum(targets) + 1.0)
        return 0.75 * functional.binary_cross_entropy(outputs, targets) + 0.25 * (1.0 - dice)


def build_optimizer(network: UNet) -> torch.optim.Adam:
    """Return Adam with the article's learning rates: 1.5e-4 for stages 3 to 5, 5e-4 for the decoder."""
    encoder = [network.encoder3, network.encoder4, network.encoder5]
    encoder_parameters = {parameter for stage in encoder for parameter in stage.parameters()}
    others = [p for p in network.parameters() if p.requires_grad and p not in encoder_parameters]
    return torch.optim.Adam([{"params": list(encoder_parameters), "lr": 1.5e-4}, {"params": others, "lr": 5e-4}])
