"""Batch norm over the tiles of all processes that train together, so that several count as one.

PyTorch's SyncBatchNorm is for CUDA alone; this is the same for any device that torch.distributed serves.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

SIGNATURE = inspect.signature(batch_norm)


class SharedStatistics(TorchFunctionMode):
    """While it is active, batch norm in training takes mean and variance over the tiles of all processes.

    A mode, for networks call torch's function from classes of their own (timm's BatchNormAct2d).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what `func` gives; batch norm's result where it is that."""
        return (_shared if func is batch_norm else func)(*args, **(kwargs or {}))


def _shared(*args: Any, **kwargs: Any) -> Tensor:
    """Return what torch's `batch_norm` gives, for the tiles of all processes."""
    given = SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    if not given.arguments["training"]:
        return batch_norm(*given.args, **given.kwargs)
    values, eps = given.arguments["input"], given.arguments["eps"]
    mean, variance, count = _moments(values.detach().float())
    if given.arguments["running_mean"] is not None:
        given.arguments["running_mean"].lerp_(mean, given.arguments["momentum"])
        given.arguments["running_var"].lerp_(variance * (count / (count - 1)), given.arguments["momentum"])
    result: Tensor = _Normalised.apply(values.float(), mean, torch.rsqrt(variance + eps), count)
    if given.arguments["weight"] is not None:
        result = result * _by_channel(given.arguments["weight"])
    if given.arguments["bias"] is not None:
        result = result + _by_channel(given.arguments["bias"])
    return result.to(values.dtype)


class _Normalised(torch.autograd.Function):
    """(x - mean) / deviation, where both come from the x of all processes.

    Source of the gradient: S. Ioffe and C. Szegedy, "Batch Normalization" (2015), section 3.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, mean: Tensor, inverse: Tensor, count: float) -> Tensor:
        """Return the normalised values."""
        normal = (values - _by_channel(mean)) * _by_channel(inverse)
        ctx.save_for_backward(normal, inverse)
        ctx.count = count
        return normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the values."""
        (slope,) = gradients
        normal, inverse = ctx.saved_tensors
        means = torch.stack([_sums(slope), _sums(slope * normal)])
        distributed.all_reduce(means)
        means /= ctx.count
        return (slope - _by_channel(means[0]) - normal * _by_channel(means[1])) * _by_channel(inverse), None, None, None


def _moments(values: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance of each channel, and the number of values of one, over all processes."""
    # In two rounds, for a difference of sums of squares loses digits.
    sums = torch.cat([_sums(values), values.new_tensor([values.numel() / values.shape[1]])])
    distributed.all_reduce(sums)
    count = float(sums[-1])
    mean = sums[:-1] / count
    squares = _sums((values - _by_channel(mean)).square())
    distributed.all_reduce(squares)
    return mean, squares / count, count


def _sums(values: Tensor) -> Tensor:
    return values.sum(dim=[dim for dim in range(values.ndim) if dim != 1])


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
