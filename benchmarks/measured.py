"""Run a script in a process of its own, and measure peak memory."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class NotRunnableError(Exception):
    """A contestant cannot run. The message is the last line of its error output, or what is missing."""


def run_script(script: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """Run a script of this folder and return its last line of output, parsed as JSON.

    Raises:
        NotRunnableError: if it exits with an error.
    """
    done = subprocess.run(
        [python, str(HERE / script), *arguments], capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NotRunnableError(said[-1])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def is_importable(module: str, python: str = sys.executable) -> bool:
    """Return whether an interpreter, by default this one, can import a module."""
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False, env=_environment())
    return done.returncode == 0


def fastest_backend() -> str:
    """Return the inference backend for a CPU that is usually the fastest of those installed."""
    modules = {"openvino": "openvino", "onnx": "onnxruntime"}
    return next((name for name, module in modules.items() if is_importable(module)), "torch")


def peak_mb() -> float:
    """Return the peak resident memory of this process or of its children, in MB (10^6 bytes)."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _RUSAGE_UNIT
    return max(_own_peak(), children) / 1e6


_RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024


def _own_peak() -> float:
    # ru_maxrss starts at the parent's value after a fork; VmHWM counts this program alone.
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RUSAGE_UNIT
    return next(1024 * float(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _environment() -> dict[str, str]:
    quiet = {"PYTHONWARNINGS": "ignore", "GEOAI_DISABLE_PROGRESS": "1"}
    return {**os.environ, **quiet}
