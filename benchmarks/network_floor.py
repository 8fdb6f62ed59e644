"""Print the floor of a map's and a training's time: operations and bytes of the default network by its size.

    python benchmarks/network_floor.py [--encoder efficientnet_b0] [--window 640] [--tile 224] [--batch 8] [--machine]

Counted on torch's meta device, which computes nothing: multiplications and additions of convolutions and products
(`torch.utils.flop_counter`), and the bytes that every operator reads and writes if no two are fused. --machine also
measures the peaks of one core of this machine, in processor seconds: a product of matrices and a copy.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from geograft.config import ModelConfig
from geograft.networks.network import Network, build

VIEWS = ("view", "expand", "permute", "transpose", "slice", "select", "t", "detach", "alias", "_unsafe_view", "split")


class TrafficMode(TorchDispatchMode):
    """Adds up the bytes that operators read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, and count its tensors."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return result


@dataclass(frozen=True)
class Cost:
    """What one call costs."""

    flop: float
    bytes: float


def cost_of(call: Callable[[], object]) -> Cost:
    """Return the operations and bytes of a call on meta tensors."""
    with FlopCounterMode(display=False) as flops:
        call()
    with TrafficMode() as traffic:
        call()
    return Cost(flops.get_total_flops(), traffic.bytes)


def prediction_cost(network: Network, window_px: int, dtype: torch.dtype) -> Cost:
    """Return the cost of the logits of one window."""
    network = network.to(dtype).eval()
    image = torch.empty(1, 3, window_px, window_px, device="meta", dtype=dtype)
    with torch.no_grad():
        return cost_of(lambda: network(image))


def step_cost(network: Network, tile_px: int, batch: int) -> Cost:
    """Return the cost of the forward and backward passes of a batch, in float32.

    The backward pass counts as two forward passes: torch's counter takes grouped convolutions for dense ones there.
    """
    network = network.train()
    images = torch.empty(batch, 3, tile_px, tile_px, device="meta")

    def step() -> None:
        logits: Any = network(images)
        tensors = [each for each in tree_leaves(logits) if isinstance(each, Tensor)]
        torch.autograd.backward([each.sum() for each in tensors])

    return Cost(3 * cost_of(lambda: network(images)).flop, cost_of(step).bytes)


def default_network(encoder: str) -> Network:
    """Return the default network on the meta device."""
    return build(ModelConfig(encoder=encoder, weights="none"), 3, 1).to("meta")


def processor_seconds(call: Callable[[], object], repeats: int = 9) -> float:
    """Return the least processor seconds of a call, after one more: other load on the machine only adds to them."""
    call()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def machine_peaks() -> tuple[float, float]:
    """Return the operations per second of a product of float32 matrices, and the bytes per second of a copy."""
    torch.set_num_threads(1)
    size = 1024
    one, source = torch.randn(size, size), torch.empty(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    product, copy = (processor_seconds(call) for call in (lambda: one @ one, lambda: target.copy_(source)))
    return 2 * size**3 / product, 2 * source.numel() / copy


def achieved(encoder: str) -> tuple[float, float]:
    """Return the operations per second of torch on one core: of a window of 320 pixels, and of a step of two tiles."""
    torch.set_num_threads(1)
    network = build(ModelConfig(encoder=encoder, weights="none"), 3, 1).to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 320, 320).contiguous(memory_format=torch.channels_last)
    tiles = torch.randn(2, 3, 160, 160).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        network.zero_grad()
        outputs = [each for each in tree_leaves(network(tiles)) if isinstance(each, Tensor)]
        torch.autograd.backward([each.sum() for each in outputs])

    network.eval()
    with torch.inference_mode():
        predicting = processor_seconds(lambda: network(image), 5)
    network.train()
    training = processor_seconds(step, 3)
    window, whole = prediction_cost(default_network(encoder), 320, torch.float32), default_network(encoder)
    return window.flop / predicting, step_cost(whole, 160, 2).flop / training


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="efficientnet_b0")
    parser.add_argument("--window", type=int, default=640, help="pixels (default 640)")
    parser.add_argument("--tile", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--batch", type=int, default=8, help="tiles per training step (default 8)")
    parser.add_argument("--machine", action="store_true", help="also measure this machine's peaks")
    given = parser.parse_args()
    useful = (1 - 1 / 8) ** 2
    for dtype in (torch.float32, torch.bfloat16):
        cost, pixels = prediction_cost(default_network(given.encoder), given.window, dtype), given.window**2
        print(
            f"{given.encoder}, a window of {given.window} pixels, {str(dtype)[6:]}: {cost.flop / pixels / 1e3:.2f} "
            f"kFLOP and {cost.bytes / pixels / 1e3:.2f} kB per pixel; per pixel of a map, with an overlap of 1/8, "
            f"{cost.flop / pixels / useful / 1e3:.2f} kFLOP and {cost.bytes / pixels / useful / 1e3:.2f} kB"
        )
    step = step_cost(default_network(given.encoder), given.tile, given.batch)
    print(
        f"a training step of {given.batch} tiles of {given.tile} pixels, float32: {step.flop / 1e9:.1f} GFLOP and "
        f"{step.bytes / 1e9:.2f} GB, {math.ceil(step.flop / given.batch / 1e6):,} MFLOP per tile"
    )
    if given.machine:
        flops, bandwidth = machine_peaks()
        predicting, training = achieved(given.encoder)
        print(
            f"one core: {flops / 1e9:.0f} GFLOP/s in a product of float32 matrices, a copy {bandwidth / 1e9:.1f} GB/s; "
            f"torch predicts at {predicting / 1e9:.0f} GFLOP/s ({predicting / flops:.2f} of the product) and trains at "
            f"{training / 1e9:.0f} GFLOP/s ({training / flops:.2f})"
        )


if __name__ == "__main__":
    main()
