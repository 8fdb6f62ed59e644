"""A trained network that maps pixels to probabilities of classes."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy import ndarray
from torch import Tensor

from tilth.card import WEIGHTS, ModelCard, read_card
from tilth.learn.checkpoint import load_weights
from tilth.learn.device import find_device, layout, repeatable
from tilth.learn.feed import Scaling
from tilth.learn.networks import Network, build


class Predictor:
    """The best network of a run. Equal batches give equal probabilities, to the bit, on one machine.

    The call takes images as they are and gives K probabilities a pixel.
    """

    def __init__(self, card: ModelCard, network: Network, device: str = "auto") -> None:
        self.card = card
        self.device = torch.device(find_device(device))
        self._scaling = Scaling(card.mean, card.std)
        self._network = network.to(self.device, memory_format=layout(self.device)).eval()  # type: ignore[call-overload]

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "Predictor":
        """Read card.json and model.safetensors of a run folder. No pretrained weights are looked up.

        Raises:
            InputError: when `run` is no finished run, or its weights are truncated or of another network.
            SettingError: for a device that this machine does not have.
        """
        card = read_card(run)
        network = build(card.model, len(card.band_names), card.legend.outputs, pretrained=False)
        load_weights(run / WEIGHTS, network)
        return cls(card, network, device)

    def __call__(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None = None
    ) -> Float32[ndarray, "n k h w"]:
        """Return the probability of each class of the legend, in float32; over the classes they add up to 1.

        `batch` is in the images' own units, of any height and width. Pixels that are not `valid` have no image: the
        network is given the mean in their place, as in training. (Without `valid`, the caller fills them with it.)
        """
        scaled = self._scaling(batch)
        images = torch.from_numpy(scaled if valid is None else np.where(valid[:, None], scaled, np.float32(0)))
        with torch.inference_mode(), repeatable(self.device):
            logits = self._network(images.to(self.device, memory_format=layout(self.device)))
            return probabilities(logits.float()).numpy(force=True)


def probabilities(logits: Float32[Tensor, "n o h w"]) -> Float32[Tensor, "n k h w"]:
    """Return the probability of each class: softmax, or (1 - p, p) from the sigmoid p of a single output."""
    if logits.shape[1] > 1:
        return torch.softmax(logits, dim=1)
    first = torch.sigmoid(logits)
    return torch.cat([1 - first, first], dim=1)
