"""The processes that train together: how they come up, and what they do at the same time.

Started by torchrun or Slurm (`srun`) they are there already; else this process starts one for each device. Each takes
its part of every batch through its own copy of the network. The parts' logits are then put together, and each process
computes the loss of the whole batch: a loss over the batch (Dice) is that of a single process, and so are the scores.
Gradients are added up once before each step of the optimizer.

Batch norm over the tiles of all processes that train together, so that several count as one.

PyTorch's SyncBatchNorm is for CUDA alone; this is the same for any device that torch.distributed serves.
"""

import inspect
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from geograft.config import TrainConfig
from geograft.errors import GeograftError, SettingError
from geograft.networks.device import find_device, find_precision
from geograft.text import pluralise

Result = TypeVar("Result")
Value = TypeVar("Value")


# Here, for the processes that Fabric starts import this before they report themselves.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


class _UnwrappedDDPStrategy(DDPStrategy):
    """Processes side by side, without torch's wrapper around the network, which needs a gradient in every parameter."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]  # torch's wrapper is a module too
        return module


class ProcessGroup:
    """One process among those that train together.

    Attributes:
        rank: its number, from 0; the first one writes the files.
        world: how many there are.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank, self.world_size = fabric.global_rank, fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows progress."""
        return self.rank == 0

    def sync_batchnorm(self) -> AbstractContextManager[object]:
        """Return the context in which batch norm sees the tiles of all processes."""
        return SyncBatchNormMode() if self.world_size > 1 else nullcontext()

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the parts of all processes, one after another by rank; only the own one has a gradient.

        Parts differ at most in their first dimension. Costs a transfer of the whole.
        """
        if self.world_size == 1:
            return part
        counts = torch.zeros(self.world_size, dtype=torch.int64, device=part.device)
        counts[self.rank] = len(part)
        distributed.all_reduce(counts)
        start, total = int(counts[: self.rank].sum()), int(counts.sum())
        whole = part.new_zeros((total, *part.shape[1:]))
        whole[start : start + len(part)] = part.detach()
        distributed.all_reduce(whole)
        return torch.cat([whole[:start], part, whole[start + len(part) :]])

    def sync_parameters(self, network: nn.Module) -> None:
        """Give `network` the values that it has in the first process."""
        if self.world_size > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)

    def all_reduce_gradients(self, network: nn.Module) -> None:
        """Replace the gradients of `network` by their sums over all processes, in one transfer."""
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if self.world_size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, total in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))

    def broadcast(self, value: Value) -> Value:
        """Return what the first process has for `value`."""
        return self.fabric.broadcast(value) if self.world_size > 1 else value

    def all_gather_lines(self, lines: list[str]) -> list[str]:
        """Return the lines of all processes, by rank."""
        if self.world_size == 1:
            return lines
        everyones: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everyones, lines)
        return [line for each in everyones for line in each]


def rank_of(config: TrainConfig) -> int:
    """Return the number of this process among those that torchrun or Slurm started to train together; else 0."""
    if config.devices * config.nodes == 1 or not _externally_launched():
        return 0
    environment = TorchElasticEnvironment if TorchElasticEnvironment.detect() else SLURMEnvironment
    return environment().global_rank()


def spawns_processes(config: TrainConfig) -> bool:
    """Return whether training starts processes of its own, each with a copy of the network."""
    return config.devices * config.nodes > 1 and not _externally_launched()


def launch(config: TrainConfig, work: Callable[..., Result], *given: Any) -> Result:
    """Return what `work(crew, *given)` returns in the first of the processes that `config` asks for.

    Raises:
        SettingError: for devices that are not there, or another number of processes than were started.
    """
    fabric = _fabric(config)
    if fabric.world_size == 1:
        return work(ProcessGroup(fabric), *given)
    try:
        # Wrapped, both ways, for Fabric looks for tensors in what it hands over, and stops at frozen dataclasses.
        result: Result = fabric.launch(partial(_run_process, work, given)).result
    except ProcessRaisedException as error:
        raise _original_error(error) from error
    return result


def _run_process(work: Callable[..., Any], given: tuple[Any, ...], fabric: Fabric) -> SimpleNamespace:
    # Networks come in memory that the processes share: what one trained, all would.
    own = [deepcopy(each) if isinstance(each, nn.Module) else each for each in given]
    try:
        return SimpleNamespace(result=work(ProcessGroup(fabric), *own))
    finally:
        distributed.destroy_process_group()


def _fabric(config: TrainConfig) -> Fabric:
    device = find_device(config.device)
    check_devices(config)
    several: Any = "auto"
    if config.devices * config.nodes > 1:
        start: Literal["popen", "spawn"] = "popen" if _externally_launched() else "spawn"
        several = _UnwrappedDDPStrategy(start_method=start)
    with warnings.catch_warnings():
        # Advice on clusters that has no use here.
        warnings.simplefilter("ignore")
        return Fabric(
            accelerator=device,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=several,
            precision=find_precision(config.precision, device),
            # Fabric would take a Slurm job of one process for one whose processes are all there.
            plugins=None if _externally_launched() else LightningEnvironment(),
        )


def check_devices(config: TrainConfig) -> None:
    """Raise SettingError where the processes or devices that `config` speaks of cannot be there."""
    device = find_device(config.device)
    if config.devices > 1 and device == "mps":
        raise SettingError(f"devices = {config.devices}: Apple's machines have one GPU. Use --devices 1.")
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise SettingError(f"devices = {config.devices}: this machine has {torch.cuda.device_count()} GPUs. Use those.")
    if config.nodes > 1 and not _externally_launched():
        raise SettingError(f"nodes = {config.nodes}: start geograft on each machine with torchrun or srun.")
    if config.compile and config.devices * config.nodes > 1:
        raise SettingError("compile = true is for one device. Train without --compile, or with --devices 1.")
    _check_process_count(config)


def _check_process_count(config: TrainConfig) -> None:
    """Raise SettingError where torchrun or Slurm started other numbers of processes than `config` says."""
    if TorchElasticEnvironment.detect():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if (config.devices, config.devices * config.nodes) != (here, everywhere):
            raise SettingError(
                f"torchrun started {everywhere} processes, {here} of them here. "
                f"Give --devices {here} --nodes {everywhere // here}."
            )
    elif _slurm_tasks() > 1:
        tasks, nodes = _slurm_tasks(), int(os.environ.get("SLURM_NNODES", config.nodes))
        if (config.devices * config.nodes, config.nodes) != (tasks, nodes):
            raise SettingError(
                f"The Slurm job has {tasks} processes on {pluralise(nodes, 'machine')}. Give --devices {tasks // nodes} "
                f"--nodes {nodes}, or ask Slurm for one (--ntasks 1)."
            )


def _externally_launched() -> bool:
    return TorchElasticEnvironment.detect() or _slurm_tasks() > 1


def _slurm_tasks() -> int:
    """Return how many processes the Slurm job has that this one belongs to; 1 where there is none."""
    with warnings.catch_warnings():
        # Fabric's advice to use srun where there is one.
        warnings.simplefilter("ignore")
        return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 1


def _original_error(error: ProcessRaisedException) -> Exception:
    """Return the error of another process: as it was when it is Geograft's, which is one line, and the last."""
    name, _, text = str(error).strip().splitlines()[-1].partition(": ")
    kind = {kind.__name__: kind for kind in _subclasses(GeograftError)}.get(name.rpartition(".")[2])
    return kind(text) if kind else error


def _subclasses(root: type[GeograftError]) -> list[type[GeograftError]]:
    """Return an error and all that are kinds of it."""
    return [root, *(kind for child in root.__subclasses__() for kind in _subclasses(child))]


SIGNATURE = inspect.signature(batch_norm)


class SyncBatchNormMode(TorchFunctionMode):
    """While it is active, batch norm in training takes mean and variance over the tiles of all processes.

    A mode, for networks call torch's function from classes of their own (timm's BatchNormAct2d).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what `func` gives; batch norm's result where it is that."""
        return (_sync_batch_norm if func is batch_norm else func)(*args, **(kwargs or {}))


def _sync_batch_norm(*args: Any, **kwargs: Any) -> Tensor:
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
    result: Tensor = _Normalize.apply(values.float(), mean, torch.rsqrt(variance + eps), count)
    if given.arguments["weight"] is not None:
        result = result * _by_channel(given.arguments["weight"])
    if given.arguments["bias"] is not None:
        result = result + _by_channel(given.arguments["bias"])
    return result.to(values.dtype)


class _Normalize(torch.autograd.Function):
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
