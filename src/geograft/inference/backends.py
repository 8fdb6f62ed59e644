"""Which backend runs a map's networks: what is installed, what agrees with torch, what is fastest.

Where tiles are computed: on a CPU each by itself, several at a time; on a GPU in whole batches.

PyTorch runs the network.
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
from geograft.inference.graphs import exported, quiet
from geograft.inference.probability import probabilities
from geograft.networks.device import autocast, find_device, in_short, layout, repeatable
from geograft.networks.network import Network


class Workers:
    """A device, with as many threads as torch may use cores of a CPU, at most `batch_size`, each for one core.

    Attributes:
        device: the device.
        count: how many threads.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device = device
        self.count = min(batch_size, torch.get_num_threads()) if device.type == "cpu" else 1
        # Torch's number of threads is each thread's own.
        self._pool = ThreadPoolExecutor(self.count, "tiles", torch.set_num_threads, (1,))

    def each(self, one: Callable[..., Tensor], *batches: Tensor) -> Float32[Tensor, "n k t t"]:
        """Return what `one` makes of the tiles of `batches`, in their order, on the CPU.

        On a CPU `one` is given each tile as a batch of one, on a GPU all tiles together.
        """
        if self.device.type == "cpu":
            return torch.cat(list(self._pool.map(one, *(batch[:, None].unbind() for batch in batches))))
        with repeatable(self.device):
            return one(*(self._moved(batch) for batch in batches)).cpu()

    def _moved(self, batch: Tensor) -> Tensor:
        """Return `batch` on the device. An NVIDIA GPU fetches it from pinned memory while the CPU goes on."""
        pinned = batch.pin_memory() if self.device.type == "cuda" else batch
        return pinned.to(self.device, non_blocking=True)


class Eager:
    """A network on a device, as it is or compiled.

    Attributes:
        note: why it is not compiled though that was asked for; empty otherwise.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device, self.note = device, ""
        self._network: Any = network.to(device, memory_format=layout(device)).eval()  # type: ignore[call-overload]

    def __call__(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "n o t t"]:
        """Return the logits of scaled images on the device."""
        with torch.inference_mode(), autocast(self._device):
            logits: Tensor = self._network(images.contiguous(memory_format=layout(self._device)))
            return logits.float()

    def compile(self, images: Float32[Tensor, "n b t t"], workers: Workers) -> None:
        """Compile the network for batches like `images`; where torch cannot, leave it as it is and say so in `note`.

        Takes a minute or two.
        """
        plain = self._network
        self._network = torch.compile(plain, dynamic=False)
        try:
            with quiet():
                workers.each(self, images)
        except Exception as error:  # whatever a compiler, its toolchain or its driver may raise
            self._network = plain
            self.note = f"torch cannot compile the network here ({in_short(error)}); it runs as it is"


TOLERANCE = 1e-3
"""Largest difference from torch's probabilities at which another backend is used."""

Runner: TypeAlias = Callable[[Tensor], Tensor]
"""Scaled images (n, b, t, t) on the device -> logits (n, o, t, t) there, in float32. On a CPU n is 1."""


@dataclass(frozen=True)
class _Backend:
    title: str
    needs: tuple[str, ...]
    """Modules that must be there."""
    export: Callable[[torch.nn.Module, Tensor, Path], None]
    """Write the graph for single images of the shape given into a folder."""
    runner: Callable[[Path, int], Runner]
    """Run the graph in a folder, for so many threads."""


OTHERS: Mapping[str, _Backend] = {
    "openvino": _Backend("OpenVINO", openvino.NEEDS, openvino.export, openvino.Streams),
    "onnx": _Backend("ONNX Runtime", onnx.NEEDS, onnx.export, onnx.runner),
}


@dataclass(frozen=True)
class Trained:
    """A network to run."""

    folder: Path
    """Of its run: exported graphs are kept there."""
    card: ModelCard
    network: Network
    sample: Float32[Tensor, "n b t t"]
    """The batch that backends are compared on, scaled."""


@dataclass(frozen=True)
class Choice:
    """What runs the networks."""

    backend: str
    runners: tuple[Runner, ...]
    """One a network, in their order."""
    notes: tuple[str, ...]
    """What the user should know, a line each."""


class UnfitError(Exception):
    """A backend cannot run a network; the message says why."""


def device_for(backend: str, device: str) -> str:
    """Return the device that `backend` runs on, of those that `device` allows. ONNX Runtime and OpenVINO: the CPU.

    Raises:
        SettingError: for a device that this machine does not have or the backend does not run on, and for a backend
            that is not installed.
    """
    if backend not in OTHERS:
        return find_device(device)
    if device not in ("auto", "cpu"):
        raise SettingError(f"backend = {backend!r} runs on the CPU, not on {device}. Use device cpu or backend torch.")
    if not _installed(backend):
        title = OTHERS[backend].title
        raise SettingError(
            f"backend = {backend!r}: {title} is not installed. Run pip install 'geograft[{backend}]', "
            "or use backend auto or torch."
        )
    return "cpu"


def choose(networks: Sequence[Trained], workers: Workers, backend: str, compiled: bool) -> Choice:
    """Return what runs `networks` for `workers`; `backend` itself where it agrees with torch on their samples.

    With "auto" on a CPU, the fastest on the first network's sample of all that are installed and agree; on a GPU
    torch. Takes seconds for each network and backend when their graphs must be exported first.
    """
    device = workers.device
    eager = tuple(Eager(each.network, device) for each in networks)
    if compiled and backend not in OTHERS:
        for runner, each in zip(eager, networks, strict=True):
            runner.compile(each.sample, workers)
    on_torch = Choice("torch", eager, tuple(dict.fromkeys(runner.note for runner in eager if runner.note)))
    if device.type != "cpu" or backend == "torch":
        return on_torch
    if backend == "auto":
        return _fastest(networks, on_torch, workers)
    return _instead(backend, networks, on_torch, workers)


def _fastest(networks: Sequence[Trained], on_torch: Choice, workers: Workers) -> Choice:
    """Return the fastest backend, tried on the first network alone, one after another: none waits in memory."""
    best, sample = on_torch, networks[0].sample
    notes: tuple[str, ...] = ()
    names = [name for name in OTHERS if _installed(name)]
    least = _seconds(on_torch.runners[0], sample, workers) if names else 0.0
    for name in names:
        tried = _instead(name, networks[:1], on_torch, workers)
        notes += tried.notes
        if tried.backend == name and (seconds := _seconds(tried.runners[0], sample, workers)) < least:
            best, least = tried, seconds
    if best is not on_torch and len(networks) > 1:
        best = _instead(best.backend, networks, on_torch, workers)
    return replace(best, notes=tuple(dict.fromkeys(best.notes + notes)))


def _instead(name: str, networks: Sequence[Trained], on_torch: Choice, workers: Workers) -> Choice:
    """Return backend `name`; with a note, torch, where it cannot run one of the networks or disagrees."""
    try:
        pairs = zip(networks, on_torch.runners, strict=False)
        return Choice(name, tuple(_agreeing(name, network, eager, workers) for network, eager in pairs), ())
    except UnfitError as error:
        note = f"{OTHERS[name].title} is not used: {error}."
        return replace(on_torch, notes=(*on_torch.notes, note))


def _agreeing(name: str, trained: Trained, eager: Runner, workers: Workers) -> Runner:
    """Return the runner of backend `name`, compared with torch's.

    Raises:
        UnfitError: when it cannot be made or run, or its probabilities are off by more than TOLERANCE.
    """
    backend, (_, *shape) = OTHERS[name], trained.sample.shape
    try:
        export = partial(_export, backend, trained.network, torch.zeros(1, *shape))
        with exported(trained.folder, name, _key(trained, shape, backend.needs), export) as folder:
            runner = backend.runner(folder, workers.count)
        logits = [workers.each(run, trained.sample) for run in (eager, runner)]
    except Exception as error:  # whatever an exporter or a runtime may raise
        raise UnfitError(f"it cannot run this network ({in_short(error)})") from error
    card = trained.card
    ours, theirs = (probabilities(each / card.temperature, card.legend.overlapping) for each in logits)
    off = float((ours - theirs).abs().max())
    if not off <= TOLERANCE:
        raise UnfitError(f"its probabilities differ from torch's by up to {off:.2g}, and {TOLERANCE:g} is allowed")
    return runner


def _export(backend: _Backend, network: Network, image: Tensor, folder: Path) -> None:
    plain = copy.deepcopy(network).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with torch.no_grad():
        backend.export(plain, image, folder)


def _key(trained: Trained, shape: Sequence[int], libraries: Sequence[str]) -> dict[str, Any]:
    """Return everything that decides what a graph computes."""
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
    except PackageNotFoundError:  # installed under another name
        return ""


def _seconds(runner: Runner, images: Tensor, workers: Workers) -> float:
    """Return the shortest time of three for one batch."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        workers.each(runner, images)
        times.append(time.perf_counter() - started)
    return min(times)


def _installed(name: str) -> bool:
    return all(find_spec(module) for module in OTHERS[name].needs)
