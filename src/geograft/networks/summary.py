"""The size analysis of a network: shape, parameters and FLOP of its parts, and the memory that a tile needs.

FLOP and memory are measured by running the network.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from geograft.config import ModelConfig
from geograft.networks.bodies import LightUNet, LinearClassifier
from geograft.networks.network import Network, build, padded_size
from geograft.text import format_table


def count_flop(network: nn.Module, *given: Tensor | list[Tensor]) -> int:
    """Return the number of floating-point operations of one call; a multiply-add counts as two.

    Convolutions and matrix products count; batch norm, activations, pooling and resizing do not.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*given)
    return int(counter.get_total_flops())


def weight_bytes(network: nn.Module) -> int:
    """Return the size of a network's parameters and buffers in bytes."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def saved_activation_bytes(network: nn.Module, image: Float[Tensor, "n bands h w"]) -> int:
    """Return the bytes that autograd saves in the forward pass for the backward pass, without the weights.

    The count is exact: every saved storage counts once. The network does not change.
    """
    network = deepcopy(network).train()
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # keep a reference, so that the address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


def peak_activation_bytes(network: nn.Module, image: Float[Tensor, "n bands h w"]) -> int:
    """Return the peak size in bytes of the activations during prediction, without image and weights.

    Workspace that the libraries below torch allocate is not counted.
    """
    network = deepcopy(network).eval()
    counter = _StorageCounter()
    with torch.no_grad(), counter:
        network(image)
    return counter.peak


class _StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class is untyped
    """Counts the bytes of the storages that operations allocate and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage())
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


MIB = 2**20
GIGA = 1e9
BYTES_PER_TRAINABLE = 3 * 4
"""Bytes that training adds per trainable parameter: its gradient and Adam's two moments, in float32."""

PartKind = Literal["encoder", "bottleneck", "decoder", "head"]
KINDS: tuple[PartKind, ...] = ("encoder", "bottleneck", "decoder", "head")
KIND_OF: dict[str, PartKind] = {
    "stem": "encoder",
    "pyramid": "bottleneck",
    "neck": "bottleneck",
    "bottleneck": "bottleneck",
    "head": "head",
}
"""The kind of a body's parts by name; all others belong to the decoder."""


@dataclass(frozen=True)
class Part:
    """A part of a network: the shape of its output (the coarsest of several maps), and its cost for one tile."""

    name: str
    kind: PartKind
    channels: int
    height: int
    width: int
    parameters: int
    trainable: int
    gflop: float
    frozen: bool
    skip: str = ""
    """The encoder part that is the skip connection of this decoder step."""


@dataclass(frozen=True)
class ModelSummary:
    """The parts of a network and their cost. GFLOP and memory are for one tile, in float32."""

    title: str
    bands: int
    size: int
    parts: tuple[Part, ...]
    training_mib: float
    """Activations saved for the backward pass."""
    prediction_mib: float
    """Peak size of the activations."""
    weights_mib: float
    notes: tuple[str, ...]
    """Remarks for the user, one sentence each."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        """The number of parameters that are not frozen."""
        return sum(part.trainable for part in self.parts)

    @property
    def gflop(self) -> float:
        """10^9 floating-point operations to predict one tile; a multiply-add counts as two."""
        return sum(part.gflop for part in self.parts)

    def lines(self) -> list[str]:
        """Return the summary as plain text: a table of the parts, then the totals."""
        header = ("part", "channels", "size", "parameters", "trainable", "GFLOP")
        rows = [header, *(_row(part) for part in self.parts)]
        all_mib = self.weights_mib + BYTES_PER_TRAINABLE * self.trainable / MIB
        return [
            f"{self.title}, {self.bands} bands, tiles of {self.size} x {self.size} pixels",
            "",
            *format_table(rows),
            "",
            *text_graph(self.parts),
            "",
            f"parameters {self.parameters:,}, trainable {self.trainable:,}",
            f"arithmetic {self.gflop:.2f} GFLOP per tile to predict (a multiply-add counts as two FLOP)",
            f"memory     {self.training_mib:.1f} MiB per tile to train (activations saved for the backward pass)",
            f"           {self.prediction_mib:.1f} MiB per tile to predict (peak of the activations)",
            f"           {self.weights_mib:.1f} MiB weights; {all_mib:.1f} MiB with gradients and Adam's two moments",
            *self.notes,
        ]


def describe(config: ModelConfig, bands: int, outputs: int, size: int) -> ModelSummary:
    """Return the size analysis of the network that `config` describes. No weights are loaded.

    Costs a few forward passes of one tile on the CPU.

    Raises:
        SettingError: for an encoder that timm does not have or that cannot be used as one.
    """
    network = build(config, bands, outputs, pretrained=False)
    image = torch.zeros(1, bands, size, size)
    parts = tuple(parts_of(network, image))
    return ModelSummary(
        title=title_of(config),
        bands=bands,
        size=size,
        parts=parts,
        # Half of two tiles: some networks cannot train on a single one.
        training_mib=saved_activation_bytes(network, image.expand(2, -1, -1, -1).clone()) / 2 / MIB,
        prediction_mib=peak_activation_bytes(network, image) / MIB,
        weights_mib=weight_bytes(network) / MIB,
        notes=tuple(_notes(network, parts, size)),
    )


def text_graph(parts: Sequence[Part]) -> list[str]:
    """Return the network as text: encoder stages on the left, the decoder steps that they skip to on the right.

    Sizes are channels x height x width of the outputs. A stage with several skip connections has one line for each.
    """
    down = [part for part in parts if part.kind == "encoder"]
    lines = [(depth, part, back) for depth, part in enumerate(down) for back in _steps_of(part, parts)]
    left = [f"{'  ' * depth}{_named(part)} " for depth, part, _ in lines]
    right = [f"> {_named(back)}" if back else "" for *_, back in lines]
    wide = max(map(len, left)) + len(left)
    rows = zip(left, right, range(len(left), 0, -1), strict=True)
    return [
        *(f"{there:-<{wide + 2 * height}}{back}" if back else there.rstrip() for there, back, height in rows),
        *(f"{'  ' * len(down)}{_named(part)}" for part in parts if part.kind == "bottleneck"),
    ]


def title_of(config: ModelConfig) -> str:
    """Return the display name of the network that `config` describes."""
    if config.architecture == "unet":
        return "U-Net"
    kinds = {"light": "Light U-Net", "linear": "Linear classifier", "transfer": "U-Net"}
    return f"{kinds[config.architecture]} over {config.encoder}"


def parts_of(network: Network, image: Tensor) -> list[Part]:
    """Return the parts of a network used in prediction: the encoder from fine to coarse, then in forward order."""
    network = deepcopy(network).eval()
    names = {module: name for name, module in _modules(network).items()}
    calls = _calls(network, list(names), image)
    frozen_stages = list(network.stages[: network.frozen])
    parts = [
        Part(
            name=names[module],
            kind=_kind(names[module]),
            channels=output.shape[1],
            height=output.shape[2],
            width=output.shape[3],
            parameters=sum(each.numel() for each in module.parameters()),
            trainable=sum(each.numel() for each in module.parameters() if each.requires_grad),
            gflop=count_flop(module, *given) / GIGA,
            frozen=module in frozen_stages,
        )
        for module, given, output in calls
    ]
    parts.sort(key=lambda part: (KINDS.index(part.kind), -part.height if part.kind == "encoder" else 0))
    return _with_skips(parts)


def _modules(network: Network) -> dict[str, nn.Module]:
    """Return a network's parts by name: its stages, then the other modules of its body that have parameters."""
    named: dict[str, nn.Module] = {f"encoder {i}": stage for i, stage in enumerate(network.stages, 1)}
    encoder = network.body.encoder if isinstance(network.body, (LightUNet, LinearClassifier)) else nn.Module()
    for key, child in (*encoder.named_children(), *network.body.named_children()):
        if isinstance(child, nn.ModuleList):
            steps = {f"{key} {i}": step for i, step in enumerate(child, 1)}
        else:
            steps = {key: child}
        if key not in ("encoder", "stages"):
            named |= {name: step for name, step in steps.items() if list(step.parameters())}
    return named


def _kind(name: str) -> PartKind:
    return "encoder" if name.startswith("encoder ") else KIND_OF.get(name.partition(" ")[0], "decoder")


def _with_skips(parts: Sequence[Part]) -> list[Part]:
    """Return the parts with their skip connections: one by one for equal counts, else by the size of the maps."""
    down = [part for part in parts if part.kind == "encoder"]
    up = [part for part in parts if part.kind == "decoder"]
    skips = {step.name: next((part.name for part in down if part.height == step.height), down[-1].name) for step in up}
    if len(up) == len(down):
        skips = {step.name: part.name for step, part in zip(up, reversed(down), strict=True)}
    return [replace(part, skip=skips.get(part.name, "")) for part in parts]


def _steps_of(stage: Part, parts: Sequence[Part]) -> list[Part | None]:
    steps: list[Part | None] = [part for part in parts[::-1] if part.skip == stage.name]
    return steps or [None]


def _calls(
    network: Network, modules: list[nn.Module], image: Tensor
) -> list[tuple[nn.Module, tuple[Any, ...], Tensor]]:
    calls: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []

    def keep(module: nn.Module, given: tuple[Any, ...], output: Tensor | list[Tensor]) -> None:
        calls.append((module, given, output if isinstance(output, Tensor) else output[-1]))

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _notes(network: Network, parts: Sequence[Part], size: int) -> Iterator[str]:
    beside = sum(each.numel() for each in network.parameters()) - sum(part.parameters for part in parts)
    if beside:
        yield f"{beside:,} more parameters are used in training only."
    if network.frozen:
        words = {1: "Stage 1 is", 2: "Stages 1 and 2 are"}.get(network.frozen, f"Stages 1 to {network.frozen} are")
        yield f"{words} frozen: no gradient, and batch norm keeps its statistics."
    inside = padded_size(size, network.body.stride)
    if inside != size:
        yield f"The network pads the tile to {inside} x {inside} pixels and crops the result back."


def _named(part: Part) -> str:
    return f"{part.name} {part.channels} x {part.height} x {part.width}"


def _row(part: Part) -> tuple[str, ...]:
    name = f"{part.name} (frozen)" if part.frozen else part.name
    size = f"{part.height} x {part.width}"
    return name, f"{part.channels}", size, f"{part.parameters:,}", f"{part.trainable:,}", f"{part.gflop:.3f}"
