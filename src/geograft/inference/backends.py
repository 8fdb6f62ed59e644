"""Choose the backend that runs networks in prediction: PyTorch, ONNX Runtime or OpenVINO.

A backend must be installed and agree with PyTorch on a sample batch; the fastest of these is chosen. On a CPU, tiles
are computed one by one on several threads, on a GPU in whole batches.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from geograft.card import WEIGHTS, ModelCard
from geograft.errors import SettingError
from geograft.files import file_digest
from geograft.inference import onnx, openvino
from geograft.inference.graphs import exported_graph, suppress_warnings
from geograft.inference.probability import probabilities
from geograft.networks.device import autocast, deterministic_algorithms, find_device, memory_format_for, short_message
from geograft.networks.network import Network


class TileWorkers:
    """Runs functions on tiles: on a CPU with one single-core thread per core of torch, at most `batch_size`.

    Attributes:
        device: the device.
        count: the number of threads.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device = device
        self.count = min(batch_size, torch.get_num_threads()) if device.type == "cpu" else 1
        # Torch's number of threads is a setting of each thread.
        self._pool = ThreadPoolExecutor(self.count, "tiles", torch.set_num_threads, (1,))

    def map(self, function: Callable[..., Tensor], *batches: Tensor) -> Float32[Tensor, "n k t t"]:
        """Return the results of `function` for the tiles of `batches`, in their order, on the CPU.

        On a CPU, `function` gets each tile as a batch of one, on a GPU all tiles together.
        """
        if self.device.type == "cpu":
            return torch.cat(list(self._pool.map(function, *(batch[:, None].unbind() for batch in batches))))
        with deterministic_algorithms(self.device):
            return function(*(self._to_device(batch) for batch in batches)).cpu()

    def _to_device(self, batch: Tensor) -> Tensor:
        """Return `batch` on the device. The copy to an NVIDIA GPU is asynchronous, from pinned memory."""
        pinned = batch.pin_memory() if self.device.type == "cuda" else batch
        return pinned.to(self.device, non_blocking=True)


class TorchRunner:
    """A network on a device, optionally compiled.

    Attributes:
        note: the reason if compiling failed, else empty.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device, self.note = device, ""
        self._network: Any = network.to(device, memory_format=memory_format_for(device)).eval()  # type: ignore[call-overload]

    def __call__(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "n o t t"]:
        """Return the logits of scaled images on the device."""
        with torch.inference_mode(), autocast(self._device):
            logits: Tensor = self._network(images.contiguous(memory_format=memory_format_for(self._device)))
            return logits.float()

    def compile(self, images: Float32[Tensor, "n b t t"], workers: TileWorkers) -> None:
        """Compile the network for batches like `images`; if torch cannot, set `note` and keep the uncompiled network.

        Takes a minute or two.
        """
        plain = self._network
        self._network = torch.compile(plain, dynamic=False)
        try:
            with suppress_warnings():
                workers.map(self, images)
        except Exception as error:  # a compiler, its toolchain or its driver may raise anything
            self._network = plain
            self.note = f"torch cannot compile the network here ({short_message(error)}); it runs without compiling"


TOLERANCE = 1e-3
"""Largest allowed difference of a backend's probabilities from torch's."""

Runner: TypeAlias = Callable[[Tensor], Tensor]
"""Function from scaled images (n, b, t, t) to float32 logits (n, o, t, t) on the same device. On a CPU n is 1."""


@dataclass(frozen=True)
class _Backend:
    title: str
    needs: tuple[str, ...]
    """Modules that it needs."""
    export: Callable[[torch.nn.Module, Tensor, Path], None]
    """Writes the graph for single images of the given shape into a folder."""
    runner: Callable[[Path, int], Runner]
    """Creates a runner of the graph in a folder, for a number of threads."""


EXPORT_BACKENDS: Mapping[str, _Backend] = {
    "openvino": _Backend("OpenVINO", openvino.NEEDS, openvino.export, openvino.Streams),
    "onnx": _Backend("ONNX Runtime", onnx.NEEDS, onnx.export, onnx.runner),
}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to predict with."""

    folder: Path
    """Its run folder, which caches exported graphs."""
    card: ModelCard
    network: Network
    sample: Float32[Tensor, "n b t t"]
    """The scaled batch to compare backends on."""


@dataclass(frozen=True)
class BackendChoice:
    """The chosen backend."""

    backend: str
    runners: tuple[Runner, ...]
    """One per network, in their order."""
    notes: tuple[str, ...]
    """Remarks for the user, one line each."""


class BackendError(Exception):
    """A backend cannot run a network; the message gives the reason."""


def backend_device(backend: str, device: str) -> str:
    """Return the device to run `backend` on, given the `device` setting. ONNX Runtime and OpenVINO use the CPU.

    Raises:
        SettingError: for a device that this machine does not have or the backend does not support, and for a backend
            that is not installed.
    """
    if backend not in EXPORT_BACKENDS:
        return find_device(device)
    if device not in ("auto", "cpu"):
        raise SettingError(f"backend = {backend!r} runs on the CPU, not on {device}. Use device cpu or backend torch.")
    if not _installed(backend):
        title = EXPORT_BACKENDS[backend].title
        raise SettingError(
            f"backend = {backend!r}: {title} is not installed. Run pip install 'geograft[{backend}]', "
            "or use backend auto or torch."
        )
    return "cpu"


def choose_backend(
    networks: Sequence[TrainedNetwork], workers: TileWorkers, backend: str, compiled: bool
) -> BackendChoice:
    """Return the backend to run `networks` with: `backend` itself if it agrees with torch on their samples, else torch.

    "auto" means torch on a GPU. On a CPU it is the backend that is fastest on the first network's sample, of those that
    are installed and agree. Takes seconds for each network and backend whose graph must be exported first.
    """
    device = workers.device
    eager = tuple(TorchRunner(each.network, device) for each in networks)
    if compiled and backend not in EXPORT_BACKENDS:
        for runner, each in zip(eager, networks, strict=True):
            runner.compile(each.sample, workers)
    on_torch = BackendChoice("torch", eager, tuple(dict.fromkeys(runner.note for runner in eager if runner.note)))
    if device.type != "cpu" or backend == "torch":
        return on_torch
    if backend == "auto":
        return _fastest(networks, on_torch, workers)
    return _with_backend(backend, networks, on_torch, workers)


def _fastest(networks: Sequence[TrainedNetwork], on_torch: BackendChoice, workers: TileWorkers) -> BackendChoice:
    """Return the fastest backend for the first network. They are timed one after another, to save memory."""
    best, sample = on_torch, networks[0].sample
    notes: tuple[str, ...] = ()
    names = [name for name in EXPORT_BACKENDS if _installed(name)]
    best_seconds = _seconds(on_torch.runners[0], sample, workers) if names else 0.0
    for name in names:
        candidate = _with_backend(name, networks[:1], on_torch, workers)
        notes += candidate.notes
        if candidate.backend == name and (seconds := _seconds(candidate.runners[0], sample, workers)) < best_seconds:
            best, best_seconds = candidate, seconds
    if best is not on_torch and len(networks) > 1:
        best = _with_backend(best.backend, networks, on_torch, workers)
    return replace(best, notes=tuple(dict.fromkeys(best.notes + notes)))


def _with_backend(
    name: str, networks: Sequence[TrainedNetwork], on_torch: BackendChoice, workers: TileWorkers
) -> BackendChoice:
    """Return backend `name`, or torch with a note if it cannot run one of the networks or disagrees with torch."""
    try:
        pairs = zip(networks, on_torch.runners, strict=False)
        return BackendChoice(
            name, tuple(_checked_runner(name, network, eager, workers) for network, eager in pairs), ()
        )
    except BackendError as error:
        note = f"{EXPORT_BACKENDS[name].title} is not used: {error}."
        return replace(on_torch, notes=(*on_torch.notes, note))


def _checked_runner(name: str, trained: TrainedNetwork, eager: Runner, workers: TileWorkers) -> Runner:
    """Return the runner of backend `name` after comparing it with torch's.

    Raises:
        BackendError: if it cannot be created or run, or its probabilities differ by more than TOLERANCE.
    """
    backend, (_, *shape) = EXPORT_BACKENDS[name], trained.sample.shape
    try:
        export = partial(_export, backend, trained.network, torch.zeros(1, *shape))
        with exported_graph(trained.folder, name, _key(trained, shape, backend.needs), export) as folder:
            runner = backend.runner(folder, workers.count)
        logits = [workers.map(run, trained.sample) for run in (eager, runner)]
    except Exception as error:  # an exporter or a runtime may raise anything
        raise BackendError(f"it cannot run this network ({short_message(error)})") from error
    card = trained.card
    ours, theirs = (probabilities(each / card.temperature, card.legend.overlapping) for each in logits)
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise BackendError(f"its probabilities differ from torch's by up to {difference:.2g}, more than {TOLERANCE:g}")
    return runner


def _export(backend: _Backend, network: Network, image: Tensor, folder: Path) -> None:
    plain = copy.deepcopy(network).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with torch.no_grad():
        backend.export(plain, image, folder)


def _key(trained: TrainedNetwork, shape: Sequence[int], libraries: Sequence[str]) -> dict[str, Any]:
    """Return everything that affects what a graph computes."""
    return {
        "weights": file_digest(trained.folder / WEIGHTS),
        "model": asdict(trained.card.model),
        "outputs": trained.card.legend.outputs,
        "shape": list(shape),
        "versions": {library: _version(library) for library in ("geograft", "torch", "timm", *libraries)},
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # installed as a distribution of another name
        return ""


def _seconds(runner: Runner, images: Tensor, workers: TileWorkers) -> float:
    """Return the shortest of three run times for one batch."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        workers.map(runner, images)
        times.append(time.perf_counter() - started)
    return min(times)


def _installed(name: str) -> bool:
    return all(find_spec(module) for module in EXPORT_BACKENDS[name].needs)
