"""PyTorch runs the network."""

from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from geograft.learn.backends.graphs import quiet
from geograft.learn.backends.workers import Workers
from geograft.learn.device import autocast, in_short, layout


class Eager:
    """A network on a device, as it is or compiled.

    Attributes:
        note: why it is not compiled though that was asked for; empty otherwise.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device, self.note = device, ""
        self._network: Any = network.to(device, memory_format=layout(device)).eval()  # type: ignore[call-overload]

    def __call__(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "n o t t"]:
        """Return the logits of scaled images on the device."""
        with torch.inference_mode(), autocast(self._device):
            logits: Tensor = self._network(images.contiguous(memory_format=layout(self._device)))
            return logits.float()

    def compile(self, images: Float32[Tensor, "n b t t"], workers: Workers) -> None:
        """Compile the network for batches like `images`; where torch cannot, leave it as it is and say so in `note`.

        Takes a minute or two.
        """
        plain = self._network
        self._network = torch.compile(plain, dynamic=False)
        try:
            with quiet():
                workers.each(self, images)
        except Exception as error:  # whatever a compiler, its toolchain or its driver may raise
            self._network = plain
            self.note = f"torch cannot compile the network here ({in_short(error)}); it runs as it is"
