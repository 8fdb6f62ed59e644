"""Training beside another process: how threads should wait for each other, and how many there should be.

    python benchmarks/bench_threads.py [--steps 20] [--rounds 3] [--write]

Steps of the default network on random tiles, each setting in a process of its own, alone and beside one process that
keeps a core busy. A thread that has finished its part of a parallel loop spins before it sleeps; while it spins, the
thread that it waits for may not get a core. Settings alternate; the table has medians over the rounds. --write puts it
into docs/training.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine
import page

SETTINGS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
READ_BY_OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def time_steps(steps: int) -> float:
    """Return the mean seconds of an optimizer step of the default network, after three steps of warm-up."""
    import torch

    from geograft.config import ModelConfig
    from geograft.networks.network import build

    torch.manual_seed(0)
    network = build(ModelConfig(weights="none"), 3, 1).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(8, 3, 160, 160).contiguous(memory_format=torch.channels_last)
    label = (torch.rand(8, 1, 160, 160) < 0.2).float()

    def step() -> None:
        optimizer.zero_grad()
        output = network(images)
        logits = output[0] if isinstance(output, tuple) else output
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        optimizer.step()

    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def measure(settings: dict[str, str], busy: bool, steps: int) -> float:
    """Return the seconds of a step with environment variables, beside a busy process if `busy`."""
    clean = {name: value for name, value in os.environ.items() if name not in READ_BY_OPENMP}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, "--child", "--steps", str(steps)]
        done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout.splitlines()[-1]))
    finally:
        if other is not None:
            other.kill()
            other.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(time_steps(given.steps)))
        return
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(given.rounds):
        for name, settings in SETTINGS.items():
            for busy in (False, True):
                found.setdefault((name, busy), []).append(measure(settings, busy, given.steps))
                print(f"{name}, {'busy' if busy else 'alone'}: {found[name, busy][-1]:.3f} s", flush=True)
    medians = {key: statistics.median(values) for key, values in found.items()}
    reference = medians[next(iter(SETTINGS)), False]
    rows = [
        [
            name,
            f"{medians[name, False]:.3f}",
            f"{medians[name, True]:.3f}",
            f"{medians[name, False] / reference:.2f}",
            f"{medians[name, True] / reference:.2f}",
        ]
        for name in SETTINGS
    ]
    head = ["", "s per step, alone", "beside a busy process", "relative to the default alone", "beside a busy process"]
    content = f"{machine.describe(('torch',))}\n\n{page.table(head, rows)}"
    print(content)
    if given.write:
        page.write_section("threads", content, Path(page.TRAINING))


if __name__ == "__main__":
    main()
