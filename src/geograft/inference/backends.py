"""Choose the backend that runs networks in prediction: PyTorch, ONNX Runtime or OpenVINO.

A backend must be installed and agree with PyTorch on a sample; the fastest of these is chosen. On a CPU, tiles are
computed one by one on several threads, on a GPU in whole batches. What a comparison found is remembered beside the
exported graphs, for this machine: RUN/exported/trials-KEY.json. With that file and the graph, torch is not even
imported. Comparisons run in a process of their own: torch and an export leave about a gigabyte behind that a map does
not need.
"""

import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from ctypes.util import find_library
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from geograft.cores import usable_cores
from geograft.errors import OutputError, SettingError
from geograft.files import json_digest, write_json
from geograft.inference.graphs import is_intact
from geograft.inference.runners import (
    EXPORT_BACKENDS,
    MAX_THREADS,
    TORCH,
    BackendOptions,
    LoadedBackend,
    Runner,
    TileWorkers,
    TrainedNetwork,
    Trial,
    Trials,
    library_version,
)
from geograft.runs import export_cache


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
        if options.backend == "auto" and not options.compare:
            return _load_remembered(networks, workers)
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
    return usable_cores()


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


def _load_remembered(networks: Sequence[TrainedNetwork], workers: TileWorkers) -> LoadedBackend:
    """Load the backend that an earlier comparison would choose; torch if one of the networks was not compared."""
    names = [name for name in EXPORT_BACKENDS if _installed(name)]
    for network in networks:
        trials = _read_trials(_trials_path(network, workers))
        if not any(name in trials and is_intact(network.graph_folder(name)) for name in names):
            return LoadedBackend(TORCH, tuple(_load_runner(each, TORCH, workers) for each in networks), workers)
    return _load_on_cpu(networks, "auto", workers)


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

    Runners of trials in this process are put into `measured`, by the network's number and the backend.
    """
    network = networks[number]
    path = _trials_path(network, workers)
    trials = _read_trials(path)
    # A backend that could not be used is tried again: the reason may have been a full disk.
    missing = [n for n in names if n not in trials or trials[n].problem or not is_intact(network.graph_folder(n))]
    if missing or TORCH not in trials:
        found = compare_in_child(network, missing, workers.count)
        if found is None:
            from geograft.inference.torch_networks import compare_backends  # noqa: PLC0415  (imports torch)

            found, runners = compare_backends(network, {name: EXPORT_BACKENDS[name] for name in missing}, workers)
            measured |= {(number, name): runner for name, runner in runners.items()}
        trials |= found
        _write_trials(path, trials)
    return trials


def _trials_path(network: TrainedNetwork, workers: TileWorkers) -> Path:
    return export_cache(network.run) / f"trials-{json_digest(_trial_key(network, workers))[:16]}.json"


def _trial_key(network: TrainedNetwork, workers: TileWorkers) -> dict[str, Any]:
    libraries = [library for backend in EXPORT_BACKENDS.values() for library in backend.needs]
    return {
        "graph": network.graph_key(TORCH),
        "versions": {library: library_version(library) for library in libraries},
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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: asdict(trial) for name, trial in trials.items()})


def _installed(name: str) -> bool:
    return all(find_spec(module) for module in EXPORT_BACKENDS[name].needs)


CHILD = "from geograft.inference.backends import _compare_as_child; _compare_as_child()"


def compare_in_child(network: TrainedNetwork, names: Sequence[str], threads: int) -> Trials | None:
    """Return the trials of a network by backends and torch, with graphs cached.

    Takes as long as importing torch, plus the comparison. Nothing is printed.

    Returns:
        None where a child process is of no use: torch is loaded already, graphs cannot be cached, or the child fails.
        The reason shows when the caller compares in its own process.
    """
    if "torch" in sys.modules or not _can_start_python() or not _can_cache(network.run):
        return None
    # -P: a torch.py in the user's working directory is not torch.
    command = [sys.executable, "-P", "-c", CHILD]
    task = pickle.dumps((network, tuple(names), threads))
    # One arena of glibc for all threads: what one frees, another uses. A tenth less memory, and no slower.
    variables = {"MALLOC_ARENA_MAX": "1"} | os.environ
    done = subprocess.run(
        command, input=task, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, env=variables
    )
    try:
        trials = TypeAdapter(Trials).validate_json(done.stdout)
    except ValidationError:
        return None
    cached = all(
        trial.problem or is_intact(network.graph_folder(name)) for name, trial in trials.items() if name in names
    )
    return trials if cached else None


def _can_start_python() -> bool:
    """Return whether `sys.executable` is Python; in a program that embeds Python it may be that program."""
    return Path(sys.executable or "").stem.startswith("python")


def _can_cache(run: Path) -> bool:
    cache = export_cache(run)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _compare_as_child() -> None:
    """Compare the backends of the task on stdin and print the trials as JSON."""
    from geograft.inference.torch_networks import compare_backends  # noqa: PLC0415  (imports torch)

    printed = os.dup(1)
    os.dup2(2, 1)  # libraries may print
    network, names, threads = pickle.load(sys.stdin.buffer)  # written by the parent process
    backends = {name: EXPORT_BACKENDS[name] for name in names}
    trials, _ = compare_backends(network, backends, TileWorkers(threads), keep_runners=False)
    with open(printed, "wb") as file:  # noqa: PTH123  (a descriptor)
        file.write(TypeAdapter(Trials).dump_json(trials))
