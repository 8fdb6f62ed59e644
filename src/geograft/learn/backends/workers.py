"""Where tiles are computed: on a CPU each by itself, several at a time; on a GPU in whole batches."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float32
from torch import Tensor

from geograft.learn.device import repeatable


class Workers:
    """A device, with as many threads as torch may use cores of a CPU, at most `batch_size`, each for one core.

    Attributes:
        device: the device.
        count: how many threads.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device = device
        self.count = min(batch_size, torch.get_num_threads()) if device.type == "cpu" else 1
        # Torch's number of threads is each thread's own.
        self._pool = ThreadPoolExecutor(self.count, "tiles", torch.set_num_threads, (1,))

    def each(self, one: Callable[..., Tensor], *batches: Tensor) -> Float32[Tensor, "n k t t"]:
        """Return what `one` makes of the tiles of `batches`, in their order, on the CPU.

        On a CPU `one` is given each tile as a batch of one, on a GPU all tiles together.
        """
        if self.device.type == "cpu":
            return torch.cat(list(self._pool.map(one, *(batch[:, None].unbind() for batch in batches))))
        with repeatable(self.device):
            return one(*(self._moved(batch) for batch in batches)).cpu()

    def _moved(self, batch: Tensor) -> Tensor:
        """Return `batch` on the device. An NVIDIA GPU fetches it from pinned memory while the CPU goes on."""
        pinned = batch.pin_memory() if self.device.type == "cuda" else batch
        return pinned.to(self.device, non_blocking=True)
