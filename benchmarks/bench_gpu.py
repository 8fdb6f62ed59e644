"""What Geograft does on one NVIDIA GPU, in at most six minutes and without a network.

    python benchmarks/bench_gpu.py [--device cuda] [--only STEP ...] [--folder build/bench/gpu] [--minutes 6]
    python benchmarks/bench_gpu.py --device cpu --small        rehearse it on a machine without a GPU

Each step runs in processes of its own with a time limit, and drives the installed command as a user would. Every line
is written at once to the terminal and to FOLDER/gpu.log, so that an interrupted benchmark leaves what it measured. The
exit status is 1 if a step failed or ran out of time. On a machine without a GPU it says so and measures nothing.

This script imports the standard library only; `gpu_steps.py` has the steps.
"""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

STEPS_SCRIPT = Path(__file__).with_name("gpu_steps.py")
NO_GPU = 3
"""Exit status of the first step where torch finds no GPU."""


@dataclass(frozen=True)
class Step:
    """One step of the benchmark."""

    name: str
    title: str
    seconds: float
    """Time limit."""


STEPS = (
    Step("versions", "versions and imports", 60),
    Step("data", "tile set and rasters", 60),
    Step("twice", "two trainings with the same seed: the same bits?", 75),
    Step("resume", "a training killed and resumed: the same bits?", 75),
    Step("map-speed", "speed of maps, beside the network alone", 75),
    Step("train-speed", "speed of training, beside the network alone", 90),
    Step("train-parts", "augmentation on the GPU, waits in a step, checkpointing, compilation", 90),
    Step("ensemble", "three runs one after the other, and stacked in one", 40),
    Step("same-map", "map and IoU, beside those of the CPU", 60),
    Step("memory", "a process limited to a fraction of the GPU's memory", 60),
    Step("devices", "two GPUs asked of a machine with one; two processes over gloo", 45),
)
"""In the order of what matters most; later ones are dropped when the time is up."""


class Log:
    """Prints lines and writes them to a file, at once."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._began = file, time.monotonic()

    def __call__(self, line: str) -> None:
        """Write a line with the seconds since the start."""
        text = f"{time.monotonic() - self._began:6.1f} s  {line}"
        print(text, flush=True)
        self._file.write(text + "\n")
        self._file.flush()


def run_limited(command: Sequence[str], seconds: float, log: Callable[[str], None]) -> int | None:
    """Run a command and log its lines as they come; return its exit status, or None if it ran out of time.

    A command that runs out of time is killed with all processes that it started.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        end = time.monotonic() + seconds
        while (line := lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
            log(f"  {line}")
        return process.wait(timeout=5)
    except (queue.Empty, subprocess.TimeoutExpired):
        return None
    finally:
        _kill_group(process)
        reader.join()


def _read_lines(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    """Put the lines of a process into a queue, then None."""
    with stream:
        for line in stream:
            lines.put(line.rstrip())
    lines.put(None)


def _kill_group(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_steps(
    steps: Sequence[Step], command: Callable[[Step], Sequence[str]], end: float, log: Callable[[str], None]
) -> list[str]:
    """Run the steps until the time is up; return the names of those that failed, ran out of time or were dropped."""
    faults = []
    for step in steps:
        left = end - time.monotonic()
        if left < 1:
            log(f"{step.name}: dropped, the time is up")
            faults.append(step.name)
            continue
        log(f"{step.name}: {step.title}")
        limit = min(step.seconds, left)
        status = run_limited(command(step), limit, log)
        if status == NO_GPU and step.name == "versions":
            log("skipped: PyTorch finds no such GPU here. Give --device cpu --small to rehearse.")
            return []
        if status != 0:
            log(f"{step.name}: {'out of time' if status is None else f'failed with exit status {status}'}")
            faults.append(step.name)
    return faults


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default cuda")
    parser.add_argument("--small", action="store_true", help="tiny rasters and trainings, to rehearse")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--folder", type=Path, default=Path("build/bench/gpu"), help="for rasters, runs and the log")
    parser.add_argument("--minutes", type=float, default=6.0, help="time limit (default 6)")
    return parser.parse_args(given)


def main() -> int:
    """Run the steps and return the exit status."""
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    options = ["--device", given.device, "--folder", str(given.folder), *(["--small"] if given.small else [])]

    def command(step: Step) -> Sequence[str]:
        return [sys.executable, str(STEPS_SCRIPT), step.name, *options]

    end = time.monotonic() + 60 * given.minutes
    with (given.folder / "gpu.log").open("w", encoding="utf-8") as file:
        log = Log(file)
        chosen = [step for step in STEPS if step.name in given.only]
        faults = run_steps(chosen, command, end, log)
        log(f"failed or dropped: {', '.join(faults)}" if faults else "done")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
