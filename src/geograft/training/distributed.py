"""Distributed data-parallel training: starting the processes, collectives, and synchronised batch norm.

torchrun or Slurm (`srun`) start the processes; otherwise this process spawns one per device. Each passes its shard of
every batch through its own copy of the network. The sums that the loss of the whole batch consists of (for Dice:
intersection, prediction and target of each class) and the confusion matrices are then all-reduced, so that loss and
scores equal those of a single process up to rounding. The Lovász loss is no function of sums and needs the logits of
all processes. The gradients are summed once before each optimizer step.

On CPU, gradients are summed in one transfer, and `SyncBatchNormMode` synchronises batch norm, because SyncBatchNorm
supports GPUs only. On CUDA, DistributedDataParallel reduces the gradients during the backward pass, and batch norm is
converted to SyncBatchNorm. Tests cover the wrapper on CPU and the choice of both; the CUDA path never ran on a GPU.

A process that ends closes its connections, so that each of the others fails in its next collective and raises
`ProcessLostError`; when a machine disappears without closing them, after `PATIENCE`.
"""

import inspect
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode

from geograft.config import TrainConfig
from geograft.cores import interface_to
from geograft.errors import GeograftError, ProcessLostError, SettingError, first_line
from geograft.interrupts import (
    Interrupted,
    handle_signals,
    handles_signals,
    postpone_interrupts,
    received_signal,
    relay_interrupts,
)
from geograft.networks.device import find_device, find_precision
from geograft.text import pluralise

Result = TypeVar("Result")
Value = TypeVar("Value")

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others, when they start and in each collective. Longer than the main process needs
to write an epoch to slow storage; torch's default for CPUs is half an hour."""
GRACE_S = 1.0
"""How long a process that lost another one waits before it ends, so that the spawning process sees the other first."""


class _QuietDDPStrategy(DDPStrategy):
    """DDP without Fabric's log messages about the process group."""

    def setup_environment(self) -> None:
        """Join the process group.

        Raises:
            ProcessLostError: if the processes cannot connect to each other.
        """
        if self.num_nodes > 1 and self.cluster_environment is not None:
            # By default gloo uses the address of the host's name, often a loopback address that no other host reaches.
            interface = interface_to(self.cluster_environment.main_address)
            if interface and not os.environ.get("GLOO_SOCKET_IFNAME"):
                os.environ["GLOO_SOCKET_IFNAME"] = interface
        try:
            with _quiet_fabric():
                super().setup_environment()
        except RuntimeError as error:
            if not _is_connection_error(error):
                raise
            raise ProcessLostError(
                f"The processes of this training cannot connect to each other ({_reason(error)}). Start all of them "
                "with one MASTER_ADDR that every machine reaches, and set GLOO_SOCKET_IFNAME (with GPUs "
                "NCCL_SOCKET_IFNAME) to the network interface between the machines."
            ) from error


class _UnwrappedDDPStrategy(_QuietDDPStrategy):
    """DDP processes without the DistributedDataParallel wrapper, which `ProcessGroup.all_reduce_gradients` replaces."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]  # DistributedDataParallel is a module too
        return module


class ProcessGroup:
    """The group of processes that train together, as seen by one of them.

    Attributes:
        fabric: Lightning Fabric, which launches the processes and moves data to the device.
        rank: global rank of this process.
        world_size: number of processes.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank, self.world_size = fabric.global_rank, fabric.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the main process (rank 0), which writes files and shows progress."""
        return self.rank == 0

    @property
    def has_ddp(self) -> bool:
        """Whether networks are wrapped in DistributedDataParallel, which averages their gradients."""
        strategy = self.fabric.strategy
        return isinstance(strategy, DDPStrategy) and not isinstance(strategy, _UnwrappedDDPStrategy)

    @property
    def loss_factor(self) -> int:
        """Factor of the loss that turns the averages of DistributedDataParallel into sums over the processes."""
        return self.world_size if self.has_ddp else 1

    def convert_batchnorm(self, network: nn.Module) -> None:
        """Replace batch norm by SyncBatchNorm, in place, on CUDA with several processes.

        Uses timm's conversion, because torch's would drop the activation of timm's BatchNormAct2d. Parameters and
        buffers stay the same objects under the same names.
        """
        if self.world_size > 1 and self.fabric.device.type == "cuda":
            convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]

    def sync_batchnorm(self) -> AbstractContextManager[object]:
        """Return a context in which batch norm uses the statistics of all processes; on CUDA SyncBatchNorm does."""
        several_cpus = self.world_size > 1 and self.fabric.device.type != "cuda"
        return SyncBatchNormMode() if several_cpus else nullcontext()

    def skip_gradient_sync(self, model: Any, enabled: bool) -> AbstractContextManager[object]:
        """Return a context for forward and backward passes whose gradients are accumulated, without communication."""
        return self.fabric.no_backward_sync(model, enabled) if self.has_ddp else nullcontext()

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the tensors of all processes, concatenated by rank. Only the own one carries gradients.

        Tensors may differ in their first dimension only. Costs a transfer of the whole result.
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

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes. Each gets the gradient of its own summand."""
        summed: Tensor = _AllReduce.apply(values) if self.world_size > 1 else values
        return summed

    def all_max(self, value: int) -> int:
        """Return the largest `value` of all processes."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=self.fabric.device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def sync_parameters(self, network: nn.Module) -> None:
        """Broadcast the parameters and buffers of `network` from rank 0."""
        if self.world_size > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)

    def all_reduce_gradients(self, network: nn.Module) -> None:
        """Sum the gradients of `network` over all processes, in one transfer, unless DistributedDataParallel did."""
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if self.world_size == 1 or self.has_ddp or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, total in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
            gradient.copy_(total.view(gradient.shape))

    def broadcast(self, value: Value) -> Value:
        """Return the `value` of rank 0."""
        return self.fabric.broadcast(value) if self.world_size > 1 else value

    def all_gather_lines(self, lines: list[str]) -> list[str]:
        """Return the lines of all processes, concatenated by rank."""
        if self.world_size == 1:
            return lines
        gathered: list[Any] = [None] * self.world_size
        distributed.all_gather_object(gathered, lines)
        return [line for each in gathered for line in each]


class _AllReduce(torch.autograd.Function):
    """The sum over all processes, whose gradient passes to the own summand unchanged.

    torch.distributed.nn.functional.all_reduce also sums the gradients. Here every process computes the same loss from
    the same sum, and `all_reduce_gradients` adds up what follows from the summands.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum."""
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the own summand."""
        return gradients[0]


def rank_of(config: TrainConfig) -> int:
    """Return the global rank of this process if torchrun or Slurm started it for distributed training; else 0."""
    if config.devices * config.nodes == 1 or not _externally_launched():
        return 0
    environment = TorchElasticEnvironment if TorchElasticEnvironment.detect() else SLURMEnvironment
    return environment().global_rank()


def spawns_processes(config: TrainConfig) -> bool:
    """Return whether training spawns its own processes, each with a copy of the network."""
    return config.devices * config.nodes > 1 and not _externally_launched()


def launch(config: TrainConfig, function: Callable[..., Result], *args: Any) -> Result:
    """Run `function(group, *args)` in each of the processes that `config` asks for, and return the result of rank 0.

    Interrupts are postponed to the end of `function`, which may raise `Interrupted` itself once its state is saved; the
    processes that this one spawns are interrupted with it.

    Raises:
        SettingError: if a device is not available, or torchrun or Slurm started another number of processes.
        ProcessLostError: if another process ended or cannot be reached.
    """
    fabric = _fabric(config)
    if fabric.world_size == 1:
        with postpone_interrupts():
            return function(ProcessGroup(fabric), *args)
    try:
        with relay_interrupts() if spawns_processes(config) else nullcontext():
            # Arguments and result are wrapped, because Fabric searches them for tensors and fails at dataclasses.
            outcome = fabric.launch(partial(_run_process, function, args, handles_signals()))
    except ProcessRaisedException as error:
        raise _original_error(error) from error
    except ProcessExitedException as error:
        # A process that was interrupted while it started has no handler yet.
        if received_signal():
            raise Interrupted from error
        raise ProcessLostError(f"A process of this training ended: {error}. {HOW_TO_CONTINUE}") from error
    if outcome.interrupt is not None:
        raise outcome.interrupt
    result: Result = outcome.result
    return result


def _run_process(function: Callable[..., Any], args: tuple[Any, ...], handled: bool, fabric: Fabric) -> SimpleNamespace:
    # Networks arrive in memory that the processes share, so that each needs a copy of its own.
    own = [deepcopy(each) if isinstance(each, nn.Module) else each for each in args]
    try:
        with handle_signals(handled), postpone_interrupts():
            return SimpleNamespace(result=function(ProcessGroup(fabric), *own), interrupt=None)
    except Interrupted as error:
        # Returned, because torch drops a KeyboardInterrupt of a process.
        return SimpleNamespace(interrupt=error)
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        if not _externally_launched():
            time.sleep(GRACE_S)
        raise ProcessLostError(
            f"Another process of this training ended or cannot be reached ({_reason(error)}). {HOW_TO_CONTINUE}"
        ) from error
    finally:
        distributed.destroy_process_group()


HOW_TO_CONTINUE = "Start it again, on all machines, with --resume: it continues from the last saved state."


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether a collective failed because of another process or the network. Gloo's errors have no class."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _reason(error: RuntimeError) -> str:
    """Return the first line of an error of torch.distributed without the places in its source."""
    return first_line(RuntimeError(re.sub(r"\[\S+\.(cc|cpp|h):\d+\] *", "", str(error))))


def _fabric(config: TrainConfig) -> Fabric:
    device = find_device(config.device)
    check_devices(config)
    strategy: Any = "auto"
    if config.devices * config.nodes > 1:
        strategy = _ddp_strategy(device)
    with _quiet_fabric():
        return Fabric(
            accelerator=device,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy,
            precision=find_precision(config.precision, device),
            # Without it, Fabric would treat a Slurm job of one process as already launched.
            plugins=None if _externally_launched() else LightningEnvironment(),
        )


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Suppress Fabric's log messages about the process group, and its advice on clusters, which does not apply here."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _ddp_strategy(device: str) -> DDPStrategy:
    start: Literal["popen", "spawn"] = "popen" if _externally_launched() else "spawn"
    if device != "cuda":
        return _UnwrappedDDPStrategy(start_method=start, timeout=PATIENCE)
    # Frozen stages and unused auxiliary heads get no gradient. SyncBatchNorm keeps the buffers equal; broadcasting them
    # would block processes in validation, where one may have no tile of a batch.
    return _QuietDDPStrategy(start_method=start, timeout=PATIENCE, find_unused_parameters=True, broadcast_buffers=False)


def check_devices(config: TrainConfig) -> None:
    """Raise SettingError if the devices or processes that `config` asks for are not available."""
    device = find_device(config.device)
    if config.devices > 1 and device == "mps":
        raise SettingError(f"devices = {config.devices}: mps has one GPU. Use --devices 1.")
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise SettingError(
            f"devices = {config.devices}, but {torch.cuda.device_count()} GPUs are available. Lower --devices."
        )
    if config.nodes > 1 and not _externally_launched():
        raise SettingError(f"nodes = {config.nodes}: start geograft on each machine with torchrun or srun.")
    if config.compile and config.devices * config.nodes > 1:
        raise SettingError("compile = true works on one device only. Train without --compile, or with --devices 1.")
    _check_process_count(config)


def _check_process_count(config: TrainConfig) -> None:
    """Raise SettingError if torchrun or Slurm started another number of processes than `config` asks for."""
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
                f"The Slurm job has {tasks} processes on {pluralise(nodes, 'node')}. Give --devices {tasks // nodes} "
                f"--nodes {nodes}, or ask Slurm for one (--ntasks 1)."
            )


def _externally_launched() -> bool:
    return TorchElasticEnvironment.detect() or _slurm_tasks() > 1


def _slurm_tasks() -> int:
    """Return the number of processes in the Slurm job of this process; 1 without Slurm."""
    with warnings.catch_warnings():
        # Fabric's advice to use srun.
        warnings.simplefilter("ignore")
        return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 1


def _original_error(error: ProcessRaisedException) -> Exception:
    """Return the original error of another process if it is a GeograftError, whose message is the last line."""
    name, _, text = str(error).strip().splitlines()[-1].partition(": ")
    kind = {kind.__name__: kind for kind in _subclasses(GeograftError)}.get(name.rpartition(".")[2])
    return kind(text) if kind else error


def _subclasses(root: type[GeograftError]) -> list[type[GeograftError]]:
    """Return an error class and all its subclasses."""
    return [root, *(kind for child in root.__subclasses__() for kind in _subclasses(child))]


SIGNATURE = inspect.signature(batch_norm)


class SyncBatchNormMode(TorchFunctionMode):
    """A context in which batch norm in training uses the mean and variance over all processes.

    It intercepts `torch.nn.functional.batch_norm`, which networks also call from classes of their own (timm's
    BatchNormAct2d).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or the synchronised version if it is `batch_norm`."""
        return (_sync_batch_norm if func is batch_norm else func)(*args, **(kwargs or {}))


def _sync_batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    """Return torch's `batch_norm` with the statistics of all processes."""
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    if not bound.arguments["training"]:
        return batch_norm(*bound.args, **bound.kwargs)
    values, eps = bound.arguments["input"], bound.arguments["eps"]
    mean, variance, count = _moments(values.detach().float())
    if bound.arguments["running_mean"] is not None:
        bound.arguments["running_mean"].lerp_(mean, bound.arguments["momentum"])
        bound.arguments["running_var"].lerp_(variance * (count / (count - 1)), bound.arguments["momentum"])
    result: Tensor = _Normalize.apply(values.float(), mean, torch.rsqrt(variance + eps), count)
    if bound.arguments["weight"] is not None:
        result = result * _by_channel(bound.arguments["weight"])
    if bound.arguments["bias"] is not None:
        result = result + _by_channel(bound.arguments["bias"])
    return result.to(values.dtype)


class _Normalize(torch.autograd.Function):
    """(x - mean) / standard deviation, both over the x of all processes.

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
        """Return the gradient with respect to the values."""
        (gradient,) = gradients
        normal, inverse = ctx.saved_tensors
        means = torch.stack([_sums(gradient), _sums(gradient * normal)])
        distributed.all_reduce(means)
        means /= ctx.count
        return (
            (gradient - _by_channel(means[0]) - normal * _by_channel(means[1])) * _by_channel(inverse),
            None,
            None,
            None,
        )


def _moments(values: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance of each channel, and the number of values per channel, over all processes."""
    # Two passes, because E[x^2] - E[x]^2 loses digits.
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
