"""Choose the backend that runs networks in prediction: PyTorch, ONNX Runtime or OpenVINO.

A backend must be installed and agree with PyTorch on a sample; the fastest of these is chosen. On a CPU, tiles are
computed one by one on several threads, on a GPU in whole batches. What a comparison found is remembered in the run
folder, for this machine: RUN/exported/trials-KEY.json. With that file and the graph, torch is not even imported.
"""

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Shaped
from numpy import ndarray
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from geograft.card import WEIGHTS, ModelCard
from geograft.errors import OutputError, SettingError
from geograft.files import file_digest, json_digest, write_json
from geograft.inference import onnx, openvino
from geograft.inference.graphs import FOLDER, graph_folder, is_intact

Runner: TypeAlias = Callable[[Float32[ndarray, "n b t t"]], Float32[ndarray, "n o h w"]]
"""Function from scaled images to float32 logits, or to the features of cells. On a CPU n is 1."""
TORCH = "torch"
MAX_THREADS = 64
"""More threads predict no faster, because tiles are read by one thread."""


class TileWorkers:
    """Runs functions on tiles: on a CPU one by one on `count` threads; without threads all tiles of a batch together.

    Attributes:
        count: the number of threads; 0 for whole batches, on a GPU.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "tiles") if count else None

    def map(
        self, function: Callable[..., Float32[ndarray, "..."]], *batches: Shaped[ndarray, "n ..."]
    ) -> Float32[ndarray, "..."]:
        """Return the results of `function` for the tiles of `batches`, in their order."""
        if self._pool is None:
            return function(*batches)
        tiles = ([batch[i : i + 1] for i in range(len(batch))] for batch in batches)
        return np.concatenate(list(self._pool.map(function, *tiles)))


@dataclass(frozen=True)
class ExportBackend:
    """A library that runs exported graphs."""

    title: str
    needs: tuple[str, ...]
    """Modules that it needs, to export and to run."""
    export: Callable[[Any, Any, Path], None]
    """Writes the graph of a torch network for single images of the given shape into a folder."""
    runner: Callable[[Path, int], Runner]
    """Creates a runner of the graph in a folder, for a number of threads."""


EXPORT_BACKENDS: Mapping[str, ExportBackend] = {
    "openvino": ExportBackend("OpenVINO", openvino.NEEDS + openvino.EXPORT_NEEDS, openvino.export, openvino.Streams),
    "onnx": ExportBackend("ONNX Runtime", onnx.NEEDS + onnx.EXPORT_NEEDS, onnx.export, onnx.runner),
}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to predict with, by its run folder, which caches exported graphs."""

    folder: Path
    card: ModelCard
    sample: Float32[ndarray, "n b t t"]
    """Scaled windows to compare backends on."""
    cell_px: int = 0
    """Side of square cells to compute the encoder's features of; 0 to compute the logits of pixels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Bands, height and width of the windows."""
        return self.sample.shape[1:]

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return file_digest(self.folder / WEIGHTS)

    def graph_key(self, backend: str) -> dict[str, Any]:
        """Return everything that affects what a graph computes."""
        libraries = (*("geograft", "torch", "timm"), *(EXPORT_BACKENDS[backend].needs if backend != TORCH else ()))
        return {
            "weights": self.weights_digest,
            "model": asdict(self.card.model),
            "outputs": self.card.legend.outputs,
            "shape": list(self.shape),
            **({"cell_px": self.cell_px} if self.cell_px else {}),
            "versions": {library: _version(library) for library in libraries},
        }

    def graph_folder(self, backend: str) -> Path:
        """Return the path of the cached graph of a backend."""
        return graph_folder(self.folder, backend, self.graph_key(backend))


@validated(frozen=True)
class Trial:
    """What a comparison of one backend with torch found, on this machine."""

    seconds: float
    """Time for the sample; 0 if it cannot be used."""
    difference: float = 0.0
    """Largest difference of its probabilities from torch's."""
    problem: str = ""
    """Why it cannot be used; empty if it can."""


Trials: TypeAlias = dict[str, Trial]
"""Trials by the name of the backend; "torch" is always among them."""


@dataclass(frozen=True)
class BackendOptions:
    """The settings of a backend; `config.InferenceConfig` describes them."""

    backend: str = "auto"
    device: str = "auto"
    compile: bool = False
    batch_size: int = 0
    """Windows per batch; 0 if it depends on their size."""


@dataclass(frozen=True)
class LoadedBackend:
    """The chosen backend with its networks."""

    backend: str
    runners: tuple[Runner, ...]
    """One per network, in their order."""
    workers: TileWorkers
    notes: tuple[str, ...] = ()
    """Remarks for the user, one line each."""
    precision: str = "float32"
    difference: float = 0.0
    """Largest difference of the probabilities from torch's in float32, on the samples."""


def load_backend(networks: Sequence[TrainedNetwork], options: BackendOptions) -> LoadedBackend:
    """Load `networks` with the chosen backend: the requested one if it agrees with torch on their samples, else torch.

    "auto" means torch on a GPU. On a CPU it is the backend that is fastest on the first network's sample, of those that
    are installed and agree. Takes seconds for each network and backend that was not compared on this machine before.

    Raises:
        InputError: if weights are missing, truncated or from another network.
        SettingError: for a device that this machine does not have or the backend does not support, and for a backend
            that is not installed.
    """
    device = backend_device(options.backend, options.device)
    threads = min(options.batch_size or MAX_THREADS, cpu_threads()) if device == "cpu" else 0
    workers = TileWorkers(threads)
    if device == "cpu" and options.backend != TORCH and not (options.compile and options.backend == "auto"):
        return _load_on_cpu(networks, options.backend, workers)
    from geograft.inference.torch_networks import load_on_torch  # noqa: PLC0415  (imports torch)

    return load_on_torch(networks, device, workers, options)


def backend_device(backend: str, device: str) -> str:
    """Return the device to run `backend` on, given the `device` setting. ONNX Runtime and OpenVINO use the CPU.

    Raises:
        SettingError: for a device that this machine does not have or the backend does not support, and for a backend
            that is not installed.
    """
    if backend not in EXPORT_BACKENDS:
        if device == "cpu" or (device == "auto" and not may_have_gpu()):
            return "cpu"
        from geograft.networks.device import find_device  # noqa: PLC0415  (imports torch)

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


def may_have_gpu() -> bool:
    """Return whether torch may find a GPU here: a driver of one, or Apple's hardware. Does not import torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
    if sys.platform == "linux":
        drivers = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
        return any(os.path.exists(path) for path in drivers)  # noqa: PTH110  (no other use of a path)
    return sys.platform == "darwin" or find_library("nvcuda") is not None


def cpu_threads() -> int:
    """Return the number of threads for tiles: torch's, or without torch OMP_NUM_THREADS, or the number of cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if first.isdigit() and int(first):
        return int(first)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load_on_cpu(networks: Sequence[TrainedNetwork], backend: str, workers: TileWorkers) -> LoadedBackend:
    names = [backend] if backend != "auto" else [name for name in EXPORT_BACKENDS if _installed(name)]
    measured: dict[tuple[int, str], Runner] = {}
    first = _trials(networks, 0, names, workers, measured)
    usable = [name for name in names if not first[name].problem]
    notes = [_note(name, first[name]) for name in names if first[name].problem]
    chosen = min((*usable, TORCH), key=lambda name: first[name].seconds) if backend == "auto" else (*usable, TORCH)[0]
    differences = [first[chosen].difference]
    for number in range(1, len(networks)):
        if chosen == TORCH:
            break
        trial = _trials(networks, number, [chosen], workers, measured)[chosen]
        differences.append(trial.difference)
        if trial.problem:
            notes.append(_note(chosen, trial))
            chosen, differences = TORCH, [0.0]
    runners = tuple(
        measured[number, chosen] if (number, chosen) in measured else _load_runner(network, chosen, workers)
        for number, network in enumerate(networks)
    )
    return LoadedBackend(chosen, runners, workers, tuple(dict.fromkeys(notes)), difference=max(differences))


def _note(name: str, trial: Trial) -> str:
    return f"{EXPORT_BACKENDS[name].title} is not used: {trial.problem}."


def _load_runner(network: TrainedNetwork, backend: str, workers: TileWorkers) -> Runner:
    if backend != TORCH:
        return EXPORT_BACKENDS[backend].runner(network.graph_folder(backend), workers.count)
    from geograft.inference.torch_networks import torch_runner  # noqa: PLC0415  (imports torch)

    return torch_runner(network)


def _trials(
    networks: Sequence[TrainedNetwork],
    number: int,
    names: Sequence[str],
    workers: TileWorkers,
    measured: dict[tuple[int, str], Runner],
) -> Trials:
    """Return the trials of a network by each of `names` and torch: those remembered, or else new ones.

    Runners of new trials are put into `measured`, by the network's number and the backend.
    """
    network = networks[number]
    path = network.folder / FOLDER / f"trials-{json_digest(_trial_key(network, workers))[:16]}.json"
    trials = _read_trials(path)
    # A backend that could not be used is tried again: the reason may have been a full disk.
    missing = [n for n in names if n not in trials or trials[n].problem or not is_intact(network.graph_folder(n))]
    if missing or TORCH not in trials:
        from geograft.inference.torch_networks import compare_backends  # noqa: PLC0415  (imports torch)

        found, runners = compare_backends(network, {name: EXPORT_BACKENDS[name] for name in missing}, workers)
        trials |= found
        measured |= {(number, name): runner for name, runner in runners.items()}
        _write_trials(path, trials)
    return trials


def _trial_key(network: TrainedNetwork, workers: TileWorkers) -> dict[str, Any]:
    libraries = [library for backend in EXPORT_BACKENDS.values() for library in backend.needs]
    return {
        "graph": network.graph_key(TORCH),
        "versions": {library: _version(library) for library in libraries},
        "machine": [platform.system(), platform.machine(), _processor()],
        "threads": workers.count,
    }


def _processor() -> str:
    """Return the processor's name and instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags")))
    return "; ".join(dict.fromkeys(told))


def _read_trials(path: Path) -> Trials:
    """Return the trials of a file; none if it does not exist or is damaged."""
    try:
        return TypeAdapter(Trials).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}


def _write_trials(path: Path, trials: Trials) -> None:
    # In a run folder that cannot be written to, the next command compares again.
    with suppress(OSError, OutputError):
        path.parent.mkdir(exist_ok=True)
        write_json(path, {name: asdict(trial) for name, trial in trials.items()})


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # installed as a distribution of another name
        return ""


def _installed(name: str) -> bool:
    return all(find_spec(module) for module in EXPORT_BACKENDS[name].needs)
