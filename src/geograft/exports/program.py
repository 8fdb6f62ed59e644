"""A run as one torch program from raw pixels to probabilities: the source of every exported graph.

Spectral indices, scaling, temperature, and sigmoid or softmax are inside. Where a pixel is not valid, or NaN, the input
is replaced by the band's mean, as in maps of the run.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float32
from numpy import ndarray
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from geograft.card import ModelCard
from geograft.indices import Index
from geograft.inference.torch_networks import read_network

GraphRunner: TypeAlias = Callable[[Float32[ndarray, "n b h w"], Bool[ndarray, "n h w"]], Float32[ndarray, "n o h w"]]
"""Function from raw pixels and their validity to probabilities: an exported file that was opened."""
MIN_CELLS = 2
"""Minimum height and width of an image, in multiples of the stride."""
IMAGE, VALID, PROBABILITIES = "image", "valid", "probabilities"
"""Names of the inputs and the output of graphs."""
CARD_FILE = "card.json"
"""Name of the card inside a .pt2 file."""


class PixelModel(nn.Module):
    """A network with everything around it, from raw pixels to probabilities."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        """Take a network from scaled pixels to logits, and the card that says how to scale them."""
        super().__init__()
        self.network = network
        self.indices, self.temperature = card.indices, card.temperature
        self.independent = card.legend.overlapping or card.legend.outputs == 1
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(card, name), dtype=torch.float32)[:, None, None])

    def forward(self, image: Float32[Tensor, "n b h w"], valid: Tensor | None = None) -> Float32[Tensor, "n o h w"]:
        """Return the probabilities of unscaled images without indices: of the positive class, or of each class.

        `valid` (n, h, w) is False for pixels without data.
        """
        pixels = torch.cat([image, *(_index(each, image)[:, None] for each in self.indices)], dim=1)
        scaled = (pixels - self.mean) / self.std
        missing = scaled.isnan() if valid is None else scaled.isnan() | ~valid[:, None]
        logits = self.network(scaled.masked_fill(missing, 0.0)) / self.temperature
        probabilities: Tensor = logits.sigmoid() if self.independent else logits.softmax(dim=1)
        return probabilities


def _index(index: Index, image: Float32[Tensor, "n b h w"]) -> Float32[Tensor, "n h w"]:
    """Return a spectral index, NaN where it is not finite. Computed in float64, as when images are read."""
    value: Tensor = index.evaluate(
        lambda band: image[:, band - 1].double(), lambda number: torch.tensor(number, dtype=torch.float64)
    )
    value = value.float()
    return value.masked_fill(~value.isfinite(), torch.nan)


def any_size_model(run: Path, card: ModelCard) -> tuple[PixelModel, int]:
    """Return the model of a run for images whose sides are multiples of the network's stride, and the stride.

    Raises:
        InputError: if the weights are missing, truncated or from another network.
    """
    body = read_network(run, card).body
    return PixelModel(_with_fixed_padding(body), card).eval(), body.stride


def one_size_model(run: Path, card: ModelCard) -> PixelModel:
    """Return the model of a run for images of any one size, which it pads to the network's stride.

    Raises:
        InputError: if the weights are missing, truncated or from another network.
    """
    return PixelModel(read_network(run, card), card).eval()


def export_program(
    model: nn.Module, bands: int, sides: tuple[int, int], stride: int | None, masked: bool = False
) -> ExportedProgram:
    """Return the program of a model for batches of any number of images.

    Args:
        model: the model, from images and, if `masked`, their validity.
        bands: number of bands of the images.
        sides: height and width of an image; of an example, if there is a stride.
        stride: heights and widths may be any of its multiples, from MIN_CELLS on; None if they are fixed.
        masked: whether the validity is the second input.

    Raises:
        Exception: anything, if torch cannot export the model.
    """
    axes: dict[int, Any] = {0: Dim("batch")}
    if stride is not None:
        axes |= {axis + 2: stride * Dim(name, min=MIN_CELLS) for axis, name in enumerate(("rows", "columns"))}
    inputs = [torch.zeros(2, bands, *sides)]
    shapes = [axes]
    if masked:
        inputs.append(torch.ones(2, *sides, dtype=torch.bool))
        shapes.append({max(axis - 1, 0): size for axis, size in axes.items()})
    with torch.no_grad():
        return torch.export.export(model, tuple(inputs), dynamic_shapes=tuple(shapes))


def _with_fixed_padding(body: nn.Module) -> nn.Module:
    """Return a copy whose TensorFlow-like convolutions pad by a constant, for sides that are multiples of the stride.

    Their padding depends on the size of the map otherwise, which would fix the size of the images in a graph.
    """
    body = copy.deepcopy(body)
    found = [(name, layer) for name, layer in body.named_modules() if isinstance(layer, Conv2dSame)]
    for name, layer in found:
        parent, _, own = name.rpartition(".")
        setattr(body.get_submodule(parent), own, _fixed_convolution(layer))
    return body


def _fixed_convolution(layer: nn.Conv2d) -> nn.Sequential:
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    plain.load_state_dict(layer.state_dict())
    totals = [
        max(dilation * (kernel - 1) + 1 - stride, 0)
        for kernel, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ]
    (top, left), (bottom, right) = [each // 2 for each in totals], [each - each // 2 for each in totals]
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)


def write_program(program: ExportedProgram, contents: Mapping[str, Any], path: Path) -> None:
    """Write a program as .pt2, with `contents` of the card as JSON inside."""
    torch.export.save(program, path, extra_files={CARD_FILE: json.dumps(contents)})


def open_program(path: Path) -> GraphRunner:
    """Return a runner of a .pt2 file. Pixels that are not valid are passed as NaN."""
    run: Any = torch.export.load(path).module()

    def predict(pixels: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]) -> Float32[ndarray, "n o h w"]:
        with torch.inference_mode():
            probabilities: ndarray = run(torch.from_numpy(nan_where_invalid(pixels, valid))).numpy()
        return probabilities

    return predict


def nan_where_invalid(
    pixels: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]
) -> Float32[ndarray, "n b h w"]:
    """Return the pixels with NaN in all bands where they are not valid: the input of files without a mask."""
    marked = pixels.copy()
    marked[~valid[:, None].repeat(pixels.shape[1], 1)] = float("nan")
    return marked
