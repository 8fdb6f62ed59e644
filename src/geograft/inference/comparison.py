"""Compare backends in a process of its own, which takes torch and the exporters away with it.

Torch and an export leave about a gigabyte behind that a map does not need: its process reads graphs only.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from geograft.inference.graphs import is_intact
from geograft.inference.runners import EXPORT_BACKENDS, TileWorkers, TrainedNetwork, Trials
from geograft.runs import export_cache

CHILD = "from geograft.inference.comparison import _compare_as_child; _compare_as_child()"


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
