"""Compare ways to compute a training step of the default network on one core: memory format and optimizer.

    python benchmarks/step_options.py [--encoder tf_efficientnet_lite0] [--tile 160] [--batch 8] [--compile]

All alternate in one process, in processor seconds; the ratios are medians over the rounds. --compile adds
torch.compile, which takes minutes before it is timed.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.utils._pytree import tree_leaves

from geograft.config import ModelConfig
from geograft.networks.network import Network, build


def make_step(
    network: Network, tiles: Tensor, memory_format: torch.memory_format, fused: bool, compiled: bool = False
) -> Callable[[], float]:
    """Return a function that takes a training step and returns its processor seconds."""
    network = copy.deepcopy(network).to(memory_format=memory_format).train()
    optimizer, images = AdamW(network.parameters(), fused=fused or None), tiles.contiguous(memory_format=memory_format)
    model = torch.compile(network) if compiled else network

    def step() -> float:
        began = time.process_time()
        optimizer.zero_grad()
        outputs = [each for each in tree_leaves(model(images)) if isinstance(each, Tensor)]
        torch.autograd.backward([each.mean() for each in outputs])
        optimizer.step()
        return time.process_time() - began

    return step


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--tile", type=int, default=160, help="pixels (default 160)")
    parser.add_argument("--batch", type=int, default=8, help="tiles per step (default 8)")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(ModelConfig(encoder=given.encoder, weights="none"), 3, 1)
    tiles = torch.randn(given.batch, 3, given.tile, given.tile)
    last, first = torch.channels_last, torch.contiguous_format
    steps = {
        "channels last": make_step(network, tiles, last, fused=False),
        "contiguous": make_step(network, tiles, first, fused=False),
        "channels last, fused AdamW": make_step(network, tiles, last, fused=True),
    }
    if given.compile:
        steps["channels last, compiled"] = make_step(network, tiles, last, fused=False, compiled=True)
    for step in steps.values():
        step()
    rounds = [{name: step() for name, step in steps.items()} for _ in range(given.rounds)]
    reference = "channels last"
    for name in steps:
        ratio = statistics.median(each[name] / each[reference] for each in rounds)
        seconds = statistics.median(each[name] for each in rounds)
        print(f"{name}: {seconds:.3f} processor seconds per step, {ratio:.3f} of {reference}")


if __name__ == "__main__":
    main()
