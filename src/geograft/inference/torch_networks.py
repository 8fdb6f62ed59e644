"""Networks on PyTorch: the reference of all backends, and the backend for GPUs. Imported only when it is needed.

A network computes the logits of pixels; its encoder alone computes the features of cells.
"""

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from geograft.card import WEIGHTS, ModelCard, check_weights
from geograft.errors import SettingError, first_line
from geograft.inference.graphs import exported_graph, suppress_warnings
from geograft.inference.probability import output_layers
from geograft.inference.runners import (
    TORCH,
    BackendOptions,
    ExportBackend,
    LoadedBackend,
    Runner,
    TileWorkers,
    TrainedNetwork,
    Trial,
    Trials,
)
from geograft.networks.device import deterministic_algorithms, half_precision, memory_format_for
from geograft.networks.network import Network, build, pad_to_multiple
from geograft.runs import run_file
from geograft.training.checkpoint import load_weights

TOLERANCE = 1e-3
"""Largest allowed difference of a backend's probabilities from torch's."""
HALF_TOLERANCE = 0.02
"""Largest allowed difference of probabilities in half precision from those in float32: bfloat16 has 8 bits."""
WARM_UP_RUNS = 3
"""Runs of a network before it is captured: libraries choose their algorithms in them."""


def read_network(run: Path, card: ModelCard) -> Network:
    """Return the best network of a run, on the CPU. No pretrained weights are downloaded.

    Raises:
        InputError: if the weights are missing, truncated, from another network or not those of the card.
    """
    network = build(card.model, len(card.band_names), card.legend.outputs, pretrained=False)
    check_weights(run, card, load_weights(run_file(run, WEIGHTS), network))
    return network


class TorchRunner:
    """A network on a device: from scaled images to logits, both on the CPU. Thread-safe on a CPU, one core per thread.

    Attributes:
        note: the reason if compiling or capturing the network failed, else empty.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Move a network to a device; it computes in half precision if `dtype` is one."""
        self._device, self._dtype, self.note = device, dtype, ""
        self._network: Any = network.to(device, memory_format=memory_format_for(device)).eval()  # type: ignore[call-overload]
        self._plain = self._network
        self._threads = threading.local()
        self._batch = 0

    def __call__(self, images: Float32[ndarray, "n b t t"]) -> Float32[ndarray, "n o h w"]:
        """Return the logits of scaled images."""
        if self._device.type == "cpu":
            self._use_one_core()
        tensor = torch.from_numpy(np.ascontiguousarray(images))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        tensor = tensor.to(self._device, memory_format=memory_format_for(self._device), non_blocking=True)
        logits: ndarray = self.logits(tensor).numpy(force=True)
        return logits

    def logits(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "n o h w"]:
        """Return the logits of scaled images on the device, there. Does not wait for them."""
        missing = self._batch - len(images)
        batch = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else images
        with self._inference():
            found: Tensor = self._network(batch).float()
        return found[: len(images)]

    def compile(self, images: Float32[ndarray, "n b t t"], workers: TileWorkers) -> None:
        """Compile the network for batches like `images`; if torch cannot, set `note` and keep the uncompiled network.

        Takes a minute or two. Smaller batches are filled up, because each size would be compiled.
        """
        self._network, self._batch = torch.compile(self._plain, dynamic=False), 0 if workers.count else len(images)
        try:
            with suppress_warnings():
                workers.map(self, images)
        except Exception as error:  # a compiler, its toolchain or its driver may raise anything
            self.release()
            self.note = f"torch cannot compile the network here ({first_line(error)}); it runs without compiling"

    def capture(self, images: Float32[Tensor, "n b t t"]) -> None:
        """Capture the network as a CUDA graph for batches of the shape of `images`; smaller ones are filled up.

        A graph starts hundreds of kernels at once, for which Python would need longer than they run. If torch cannot,
        set `note` and keep the network as it is.

        Raises:
            torch.OutOfMemoryError: if the graph does not fit into the device's memory.
        """
        before = self._network
        try:
            with self._inference():
                self._network, self._batch = CapturedNetwork(before, images), len(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an operator that cannot be captured, or a driver, may raise anything
            self.note = f"torch cannot capture the network as a CUDA graph ({first_line(error)}); it runs without one"

    def release(self) -> None:
        """Run the network without compiling or a graph from now on, and free the graph's memory."""
        self._network, self._batch = self._plain, 0

    @contextmanager
    def _inference(self) -> Iterator[None]:
        # A graph must hold the conversions of the weights to half precision, which autocast would cache outside of it.
        half = torch.autocast(
            self._device.type,
            dtype=self._dtype,
            enabled=self._dtype is not None,
            cache_enabled=self._device.type == "cpu",
        )
        with torch.inference_mode(), deterministic_algorithms(self._device), half:
            yield

    def _use_one_core(self) -> None:
        # Torch's number of threads is a setting of each thread.
        if not getattr(self._threads, "limited", False):
            torch.set_num_threads(1)
            self._threads.limited = True


class CapturedNetwork:
    """A network captured as a CUDA graph for batches of one shape. Used by one thread, which may change.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
    """

    def __init__(self, network: Any, images: Float32[Tensor, "n b t t"]) -> None:
        """Run the network a few times, as capturing requires, and capture it. Waits for the device."""
        self._images = images.clone()
        warm_up: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UP_RUNS):
                network(self._images)
        torch.cuda.current_stream().wait_stream(warm_up)
        self._graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits: Tensor = network(self._images)
        torch.cuda.synchronize()

    def __call__(self, images: Float32[Tensor, "n b t t"]) -> Tensor:
        """Return the logits of a batch of the captured shape, in a tensor of their own."""
        self._images.copy_(images)
        self._graph.replay()
        return self._logits.clone()


@contextmanager
def refuse_short_memory() -> Iterator[None]:
    """Raise SettingError where a GPU's memory is too short, for what cannot be computed in smaller parts."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"{first_line(error)}. Give a smaller --batch-size or --window-px, or --device cpu; or free the GPU."
        ) from error


class CellFeatures(nn.Module):
    """The mean of each channel of all encoder stages in square cells of an image, (n, d, rows, cols).

    Shallow stages describe light, haze and colour, deep ones objects and land cover. Cells start at the upper left; the
    last ones may extend beyond the image, which is then padded by reflection. Costs one pass of the encoder.
    """

    def __init__(self, network: Network, cell_px: int) -> None:
        """Use the encoder of `network`.

        Raises:
            ValueError: if `cell_px` is not a multiple of the network's stride.
        """
        super().__init__()
        if cell_px % network.body.stride:
            stride = network.body.stride
            raise ValueError(f"cells of {cell_px} pixels are not a multiple of the network's stride, {stride}")
        self.body, self.cell_px = network.body, cell_px

    def forward(self, images: Float32[Tensor, "n bands h w"]) -> Float32[Tensor, "n d rows cols"]:
        """Return the features of scaled images."""
        rows, cols = (-(-length // self.cell_px) for length in images.shape[2:])
        maps = self.body.maps(pad_to_multiple(images, self.cell_px))
        steps = (self.cell_px // stride for stride in self.body.strides)
        pooled = [avg_pool2d(features, step) for features, step in zip(maps, steps, strict=True)]
        return torch.cat(pooled, dim=1)[..., :rows, :cols]


def torch_runner(trained: TrainedNetwork) -> TorchRunner:
    """Return the runner of a network on the CPU, in float32."""
    return TorchRunner(_module(trained), torch.device("cpu"))


def _module(trained: TrainedNetwork) -> nn.Module:
    network = read_network(trained.run, trained.card)
    return CellFeatures(network, trained.cell_px) if trained.cell_px else network


def load_on_torch(
    networks: Sequence[TrainedNetwork], device: str, workers: TileWorkers, options: BackendOptions
) -> LoadedBackend:
    """Load networks with torch: in float32, or on a GPU in half precision if that agrees with float32 on the samples.

    Raises:
        InputError: if weights are missing, truncated or from another network.
        SettingError: if the device's memory is too short for the networks or the samples.
    """
    with refuse_short_memory():
        return _load_on_torch(networks, device, workers, options)


def _load_on_torch(
    networks: Sequence[TrainedNetwork], device: str, workers: TileWorkers, options: BackendOptions
) -> LoadedBackend:
    target, dtype = torch.device(device), half_precision(torch.device(device))
    if any(each.cell_px for each in networks):
        # They are compared with features of the training tiles, and are a small part of the work.
        dtype = None
    plain = [_module(each) for each in networks]
    notes: list[str] = []
    difference = 0.0
    if dtype is not None:
        pairs = [(each, TorchRunner(network, target)) for each, network in zip(networks, plain, strict=True)]
        differences = [
            _difference(each, exact, TorchRunner(network, target, dtype), workers)
            for (each, exact), network in zip(pairs, plain, strict=True)
        ]
        difference = float(np.max(differences))
        if not difference <= HALF_TOLERANCE:
            notes.append(
                f"{_name(dtype)} is not used: its probabilities differ from float32's by up to {difference:.2g}, more "
                f"than {HALF_TOLERANCE:g}."
            )
            dtype, difference = None, 0.0
    runners = tuple(TorchRunner(network, target, dtype) for network in plain)
    if options.compile and target.type != "cuda":
        for runner, each in zip(runners, networks, strict=True):
            size = max(options.batch_size, 1)
            runner.compile(np.resize(each.sample, (size, *each.shape)), workers)
            notes += [runner.note] if runner.note else []
    precision = _name(dtype or torch.float32)
    return LoadedBackend(TORCH, runners, workers, tuple(dict.fromkeys(notes)), precision, difference, device)


def compare_backends(
    trained: TrainedNetwork, backends: Mapping[str, ExportBackend], workers: TileWorkers, keep_runners: bool = True
) -> tuple[Trials, dict[str, Runner]]:
    """Compare backends with torch on the network's sample, and export the graphs that are not cached.

    Returns:
        The trial of each backend and of torch; and the runners of those that can be used, if they are to be kept:
        each holds the memory of its largest map.

    Raises:
        InputError: if the weights are missing, truncated or from another network.
    """
    network = _module(trained)
    eager = TorchRunner(network, torch.device("cpu"))
    trials: Trials = {TORCH: Trial(_seconds(eager, trained.sample, workers))}
    runners: dict[str, Runner] = {TORCH: eager}
    for name, backend in backends.items():
        try:
            with exported_graph(trained.graph_folder(name), partial(_export, backend, network, trained)) as folder:
                runner = backend.runner(folder, workers.count)
            trials[name] = _trial(trained, eager, runner, workers)
        except Exception as error:  # an exporter or a runtime may raise anything
            trials[name] = Trial(0.0, problem=f"it cannot run this network ({first_line(error)})")
            continue
        if keep_runners and not trials[name].problem:
            runners[name] = runner
        del runner
    return trials, runners


def _trial(trained: TrainedNetwork, eager: Runner, runner: Runner, workers: TileWorkers) -> Trial:
    difference = _difference(trained, eager, runner, workers)
    if not difference <= TOLERANCE:
        return Trial(
            0.0, problem=f"its probabilities differ from torch's by up to {difference:.2g}, more than {TOLERANCE:g}"
        )
    return Trial(_seconds(runner, trained.sample, workers), difference)


def _difference(trained: TrainedNetwork, one: Runner, other: Runner, workers: TileWorkers) -> float:
    """Return the largest difference between the probabilities of two runners on the sample; NaN if one has NaN.

    For features of cells, the largest difference relative to the largest feature.
    """
    card = trained.card
    logits = [workers.map(run, trained.sample) for run in (one, other)]
    if trained.cell_px:
        return float(np.abs(logits[0] - logits[1]).max() / max(float(np.abs(logits[0]).max()), 1e-6))
    ours, theirs = (output_layers(each / np.float32(card.temperature), card.legend.overlapping) for each in logits)
    return float(np.abs(ours - theirs).max())


def _export(backend: ExportBackend, network: nn.Module, trained: TrainedNetwork, folder: Path) -> None:
    plain: nn.Module = copy.deepcopy(network)
    plain = plain.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with torch.no_grad():
        backend.export(plain, torch.zeros(1, *trained.shape), folder)


def _seconds(runner: Callable[..., Any], images: Float32[ndarray, "n b t t"], workers: TileWorkers) -> float:
    """Return the shortest of two run times, after a warm-up."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        workers.map(runner, images)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
