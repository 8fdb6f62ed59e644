"""Encoders: the first stages of timm's convolutional networks, and activation checkpointing of stages.

Widths and strides are measured on the network.
"""

import difflib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import is_model_in_modules
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geograft.errors import SettingError, first_line

MAX_STAGES = 5
"""Largest number of stages taken from a network."""

PROBE_PX = 128

PLAIN_VITS = ("vision_transformer", "eva")
"""timm's modules of vision transformers that interpolate their position embeddings: ViT, DeiT III, DINO, EVA."""

BUILD_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What timm raises for a network that cannot be built or run with the given arguments."""


class Encoder(nn.Module):
    """A chain of stages: each stage's output is the input of the next stage and a skip connection to the decoder.

    Attributes:
        stages: the stages, from the image downwards.
        widths: the channels of each stage's output.
        strides: downsampling factor of each stage's output relative to the image.
    """

    def __init__(self, stages: Sequence[nn.Module], bands: int) -> None:
        """Take `stages` and measure their widths and strides on one small image.

        Raises:
            ValueError: if a stage's output is not a feature map, or a stride does not divide the next.
        """
        super().__init__()
        self.stages = nn.ModuleList(stages)
        maps = probe(self, bands)
        self.widths = tuple(each.shape[1] for each in maps)
        self.strides = strides_of(maps)

    def forward(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the feature maps of all stages, from the image downwards."""
        maps = []
        for stage in self.stages:
            image = run_stage(stage, image)
            maps.append(image)
        return maps


def check_name(name: str) -> None:
    """Raise SettingError if timm has no network `name`; the message suggests similar names."""
    if not timm.is_model(name):
        raise SettingError(f"encoder = {name!r}: timm has no network of this name.{_suggestion(name)}")


def timm_network(name: str, bands: int, features: bool = False) -> nn.Module:
    """Return timm's network `name` for images of `bands` bands, with random weights.

    With `features` it has no head and returns all feature maps that timm lists for it, from fine to coarse.

    Raises:
        SettingError: if timm has no such network, or it does not support this number of bands or `features`.
    """
    check_name(name)
    try:
        network: nn.Module = timm.create_model(name, in_chans=bands, **features_options(name, features))
    except BUILD_ERRORS as error:
        raise SettingError(f"encoder = {name!r} for {bands} bands cannot be built: {first_line(error)}.") from error
    return network


def features_options(name: str, features: bool) -> dict[str, Any]:
    """Return timm's options for feature maps of network `name`, if `features`.

    Otherwise nothing: some networks reject even features_only=False. Plain vision transformers get images of any size.
    """
    if not features:
        return {}
    return {"features_only": True} | ({"dynamic_img_size": True} if is_plain_vit(name) else {})


def is_plain_vit(name: str) -> bool:
    """Return whether timm's network `name` is a vision transformer whose maps all have one stride."""
    return bool(is_model_in_modules(name, PLAIN_VITS))


def build_encoder(network: nn.Module, name: str, bands: int) -> Encoder:
    """Return the first stages of timm's `network` called `name` as an encoder that shares its weights.

    Verifies on one small image that the stages return the network's inner feature maps. Costs three forward passes.

    Raises:
        SettingError: if the network has no feature maps, or is not a chain of stages.
    """
    stages = stage_modules(network, name)
    parts = [nn.Sequential(OrderedDict((key.replace(".", "_"), module) for key, module in stage)) for stage in stages]
    try:
        encoder = Encoder(parts, bands)
        inside = _maps_inside(network, [stage[-1][1] for stage in stages], bands)
        alike = all(map(torch.allclose, probe(encoder, bands), inside)) and len(inside) == len(stages)
    except BUILD_ERRORS as error:
        raise SettingError(_not_an_encoder(name, first_line(error))) from error
    if not alike:
        raise SettingError(_not_an_encoder(name, "its stages are not a simple chain"))
    return encoder


def stage_modules(network: nn.Module, name: str) -> list[list[tuple[str, nn.Module]]]:
    """Return the named modules of each of a network's first stages, in forward order.

    EfficientNet and MobileNet: the stem, then the first four blocks (strides 2, 2, 4, 8, 16 for B0). Any other network
    is split after each of the first five feature maps that timm lists for it.

    Raises:
        SettingError: if the network has no feature maps, or they are too deep inside its modules to split there.
    """
    blocks = isinstance(network, (EfficientNet, MobileNetV3))
    split_points = _block_names(network) if blocks else _listed_names(network)
    modules = list(iter_modules(network, split_points))
    names = [key for key, _ in modules]
    if not split_points or any(point not in names for point in split_points):
        raise SettingError(_not_an_encoder(name, "it has no feature maps, or they are inside other modules"))
    ends = [names.index(point) + 1 for point in split_points]
    return [modules[start:end] for start, end in pairwise([0, *ends])]


def probe(network: nn.Module, bands: int) -> Any:
    """Return the output of `network` for one image of 128 x 128 pixels. The network's state does not change."""
    # A ramp: feature maps of a blank image can agree by chance, and random numbers would change the initial weights.
    image = torch.linspace(-1, 1, bands * PROBE_PX**2).reshape(1, bands, PROBE_PX, PROBE_PX)
    with _eval_mode(network), torch.no_grad():
        return network(image)


def strides_of(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the strides of the feature maps of the probe image.

    Raises:
        ValueError: if one of them is not a feature map, or a stride does not divide the next.
    """
    if not all(isinstance(each, Tensor) and each.ndim == 4 for each in maps):
        raise ValueError("the outputs of its stages are not feature maps")
    sizes = [tuple(each.shape[2:]) for each in maps]
    strides = tuple(PROBE_PX // max(1, width) for _, width in sizes)
    even = all(deeper % stride == 0 for stride, deeper in pairwise(strides))
    if not even or sizes != [(PROBE_PX // stride, PROBE_PX // stride) for stride in strides]:
        raise ValueError(f"its stages turn {PROBE_PX} pixels into {sizes}, and each size must divide the one before")
    return strides


def iter_modules(network: nn.Module, split_points: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network's named child modules in order; containers that hold a split point are replaced by theirs."""
    # The split point stages.1 is inside the container `stages`: only such containers are opened.
    opened = {cut.rpartition(".")[0] for cut in split_points}
    for key, module in network.named_children():
        if key in opened and isinstance(module, nn.Sequential):
            yield from ((f"{key}.{inner}", child) for inner, child in module.named_children())
        else:
            yield key, module


def _block_names(network: nn.Module) -> list[str]:
    names = [key for key, _ in network.named_children()]
    stem = names[names.index("blocks") - 1]
    blocks = [key for key, _ in network.get_submodule("blocks").named_children()]
    return [stem, *(f"blocks.{key}" for key in blocks[: MAX_STAGES - 1])]


def _listed_names(network: nn.Module) -> list[str]:
    listed = list(getattr(network, "feature_info", ()))
    return [info["module"] for info in listed[:MAX_STAGES]]


def _maps_inside(network: nn.Module, modules: Sequence[nn.Module], bands: int) -> list[Tensor]:
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> None:
        maps.append(output.clone())  # a later activation may be in place

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        probe(network, bands)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _not_an_encoder(name: str, reason: str) -> str:
    return (
        f"encoder = {name!r} cannot be used as an encoder ({reason}). Use a convolutional network: efficientnet_b0, "
        "resnet18, ..."
    )


def _suggestion(name: str) -> str:
    known = timm.list_models()
    close = difflib.get_close_matches(name, known, n=3) or [each for each in known if name.lower() in each][:3]
    return f" Similar names: {', '.join(close)}." if close else " timm.list_models() lists all names."


CHECKPOINTED = "is_checkpointed"
"""Attribute of a stage whose activations are recomputed in the backward pass."""


def set_checkpointing(stages: nn.ModuleList, enabled: bool) -> bool:
    """Switch activation checkpointing of stages on or off; return whether it can save memory: not if all are frozen.

    Checkpointed stages keep no activations and recompute them in the backward pass: less memory for about a third more
    time, and the same gradients. Where memory is short this comes before batches are split, because the region loss and
    batch norm of a split batch are those of its parts. Source: T. Chen et al., "Training Deep Nets with Sublinear
    Memory Cost" (arXiv:1604.06174).
    """
    for stage in stages:
        setattr(stage, CHECKPOINTED, enabled)
    return any(parameter.requires_grad for parameter in stages.parameters())


def run_stage(stage: nn.Module, image: Tensor) -> Any:
    """Return the output of an encoder stage; in training, if it is checkpointed, without keeping what is inside.

    Random numbers are drawn twice alike, and batch-norm statistics are updated once.
    """
    if not (getattr(stage, CHECKPOINTED, False) and torch.is_grad_enabled() and _needs_gradient(stage, image)):
        return stage(image)
    return checkpoint(stage, image, use_reentrant=False, context_fn=partial(_contexts, stage))


def _needs_gradient(stage: nn.Module, image: Tensor) -> bool:
    return image.requires_grad or any(parameter.requires_grad for parameter in stage.parameters())


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the first and of the second computation."""
    return nullcontext(), _without_running_statistics(stage)


@contextmanager
def _without_running_statistics(stage: nn.Module) -> Iterator[None]:
    """Leave the statistics of batch norm in training as they are, by a momentum of 0 and without counting the batch.

    The running statistics must still be there: torch compares what both computations save.
    """
    norms = [each for each in stage.modules() if each.training and each._buffers.get("num_batches_tracked") is not None]
    before = [(norm.momentum, norm._buffers["num_batches_tracked"]) for norm in norms]
    for norm in norms:
        norm.momentum, norm._buffers["num_batches_tracked"] = 0.0, None  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm._buffers["num_batches_tracked"] = momentum, count
