"""A mode that sees every operator that would make the host wait for a GPU; on a CPU they only read a number."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {
    *("_local_scalar_dense", "bincount", "nonzero", "masked_select", "equal", "is_nonzero", "item", "unique_dim"),
    *("_unique2", "unique_consecutive", "repeat_interleave", "lift_fresh", "lift", "one_hot"),
}
"""Operators for which the host waits for a GPU; lift_fresh is a tensor of Python's numbers, which is copied there."""


class RefuseToWait(TorchDispatchMode):
    """Fails at an operator that waits for a GPU, unless its tensor is in the host's memory also with a GPU."""

    def __init__(self, *on_host: Tensor) -> None:
        super().__init__()
        self.on_host = on_host
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_host = tensors and all(any(each is own for own in self.on_host) for each in tensors)
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(each.dtype == torch.bool for each in tensors[1:])
        assert on_host or not (name in WAITING or by_mask), f"{func} waits for a GPU"
        return func(*args, **(kwargs or {}))
