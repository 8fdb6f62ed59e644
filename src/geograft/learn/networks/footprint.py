"""What a network costs: its arithmetic and its memory, measured by running it."""

import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def flop(network: nn.Module, *given: Tensor) -> int:
    """Return the floating-point operations of one call: two for every multiply-add.

    Convolutions and matrix products count; batch norm, activations, pooling and resizing do not.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*given)
    return int(counter.get_total_flops())


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def kept_bytes(network: nn.Module, image: Float[Tensor, "n bands h w"]) -> int:
    """Return the bytes that a training step keeps from the forward pass for the backward pass, weights not counted.

    Exact: every storage that autograd saves, counted once. The network itself is left as it is.
    """
    network = deepcopy(network).train()
    own = {tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


def peak_bytes(network: nn.Module, image: Float[Tensor, "n bands h w"]) -> int:
    """Return the most bytes of maps that are alive at once while the network predicts, beside image and weights.

    The working memory that the libraries below torch take for themselves is not counted.
    """
    network = deepcopy(network).eval()
    alive = _Alive()
    with torch.no_grad(), alive:
        network(image)
    return alive.peak


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class is untyped
    """Counts the bytes of the storages that operations bring to life, until they die."""

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
