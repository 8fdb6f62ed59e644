"""Each tile computed by itself, several at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float32
from torch import Tensor


class TileByTile:
    """Runs `one` for each tile of a batch in a pool of threads, and returns the results in the tiles' order."""

    def __init__(self, one: Callable[[Tensor], Tensor], workers: int) -> None:
        self._one = one
        # Torch's number of threads is each thread's own: with one, a worker keeps to its core.
        self._pool = ThreadPoolExecutor(workers, "tiles", torch.set_num_threads, (1,))

    def __call__(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "n o t t"]:
        """Return the logits of every tile."""
        return torch.cat(list(self._pool.map(self._one, images[:, None].unbind())))


def workers_for(batch_size: int) -> int:
    """Return how many tiles are computed at a time: as many as torch may use cores, at most a batch."""
    return min(batch_size, torch.get_num_threads())
