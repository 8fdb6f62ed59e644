"""Compare ways to compute a training step of the default network on one core, and write the table of docs/speed.md.

    python benchmarks/step_options.py [--encoder tf_efficientnet_lite0] [--tile 224] [--batch 8] [--compile] [--write]

Memory format, optimizer, activation checkpointing and, with --compile, torch.compile, which takes minutes before it is
timed. All alternate in one process, in processor seconds; the ratios are medians over the rounds. The memory is what a
forward pass leaves for the backward pass, from torch's profiler. Reading is that of tiles of 8 bits in memory by
Geograft's data loader, flipped and scaled: what a thread of its own could save at most.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from geograft.config import ModelConfig, TrainConfig
from geograft.legend import Legend
from geograft.networks.network import Network, build
from geograft.training.loader import Scaling, TileLoader, TrainingData
from machine import describe
from page import table, write_section

REFERENCE = "channels last, as `geograft train`"


@dataclass(frozen=True)
class Options:
    """How a step is computed."""

    memory_format: torch.memory_format = torch.channels_last
    fused: bool = False
    checkpointing: bool = False
    compiled: bool = False


OPTIONS = {
    REFERENCE: Options(),
    "contiguous": Options(memory_format=torch.contiguous_format),
    "fused AdamW": Options(fused=True),
    "activation checkpointing": Options(checkpointing=True),
    "torch.compile": Options(compiled=True),
}


def make_step(network: Network, tiles: Tensor, options: Options) -> Callable[[], float]:
    """Return a function that takes a training step and returns its processor seconds."""
    network = copy.deepcopy(network).to(memory_format=options.memory_format).train()  # type: ignore[call-overload]
    network.set_deep_supervision(enabled=True)
    network.set_checkpointing(options.checkpointing)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, fused=options.fused or None)
    images = tiles.contiguous(memory_format=options.memory_format)
    model = torch.compile(network) if options.compiled else network

    def step() -> float:
        began = time.process_time()
        optimizer.zero_grad()
        outputs = [each for each in tree_leaves(model(images)) if isinstance(each, Tensor)]
        torch.autograd.backward([each.mean() for each in outputs])
        optimizer.step()
        return time.process_time() - began

    return step


def kept_mb(network: Network, tiles: Tensor, options: Options) -> float:
    """Return the MB (10^6 bytes) that a forward pass leaves in memory for the backward pass."""
    network = copy.deepcopy(network).to(memory_format=options.memory_format).train()  # type: ignore[call-overload]
    network.set_deep_supervision(enabled=True)
    network.set_checkpointing(options.checkpointing)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        outputs = network(tiles.contiguous(memory_format=options.memory_format))
    del outputs
    return sum(event.self_cpu_memory_usage for event in found.events()) / 1e6


def reading_seconds(tile_px: int, batch: int) -> float:
    """Return the processor seconds in which the data loader makes a batch."""
    rng = np.random.default_rng(0)
    shape = (batch, 3, tile_px, tile_px)
    images, labels = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 2, (batch, tile_px, tile_px), np.uint8)
    data = TrainingData(
        list(zip(images, labels, strict=True)), [], Legend(("a", "b")), Scaling((127.0,) * 3, (70.0,) * 3)
    )
    loader = TileLoader(data, TrainConfig(batch_size=batch, workers=0), torch.device("cpu"))
    times = []
    for epoch in range(9):
        began = time.process_time()
        next(loader.train(epoch))
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


def measure(given: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table."""
    torch.manual_seed(0)
    network = build(ModelConfig(encoder=given.encoder, weights="none"), 3, 1)
    for stage in network.stages[:2]:
        # As with pretrained weights.
        stage.requires_grad_(requires_grad=False)
    network.frozen = 2
    tiles = torch.randn(given.batch, 3, given.tile, given.tile)
    chosen = {name: each for name, each in OPTIONS.items() if given.compile or not each.compiled}
    steps = {name: make_step(network, tiles, each) for name, each in chosen.items()}
    first = {name: _wall_seconds(step) for name, step in steps.items()}
    kept = {name: f"{kept_mb(network, tiles, each):,.0f}" for name, each in chosen.items() if not each.compiled}
    rounds = [{name: step() for name, step in steps.items()} for _ in range(given.rounds)]
    rows = []
    for name in steps:
        ratios = [each[name] / each[REFERENCE] for each in rounds]
        seconds = statistics.median(each[name] for each in rounds)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        extra = f"{first[name] - seconds:.0f}" if chosen[name].compiled else ""
        rows.append(
            [
                name,
                f"{seconds:.3f}",
                f"{statistics.median(ratios):.3f}",
                spread,
                kept.get(name, ""),
                extra,
            ]
        )
    reference = statistics.median(each[REFERENCE] for each in rounds)
    reading = reading_seconds(given.tile, given.batch)
    return [
        *rows,
        ["reading the batch, not included above", f"{reading:.3f}", f"{reading / reference:.3f}", "", "", ""],
    ]


def _wall_seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    """Print the table, and write it into the page if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--tile", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--batch", type=int, default=8, help="tiles per step (default 8)")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--write", action="store_true", help="update docs/speed.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(given)
    columns = ["", "processor seconds", "ratio", "least to largest", "kept for backward, MB", "compilation, s"]
    text = (
        f"{given.encoder}, two stages frozen; {given.batch} tiles of {given.tile} pixels; one thread; medians of "
        f"{given.rounds} rounds. {describe(('torch', 'timm'))}\n\n{table(columns, rows)}"
    )
    print(text)
    if given.write:
        write_section("step options", text)


if __name__ == "__main__":
    main()
