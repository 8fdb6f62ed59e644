"""Trained networks that map pixels to probabilities of classes: one as it is, or several as a map needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray
from torch import Tensor

from geograft.card import WEIGHTS, ModelCard, read_card
from geograft.errors import InputError
from geograft.inference.backends import Runner, Trained, Workers, choose, device_for
from geograft.inference.probability import Turn, layers_of, mean_over, probabilities, turned, turned_back, turns
from geograft.networks.device import find_device, layout, repeatable
from geograft.networks.network import Network, build
from geograft.training.checkpoint import load_weights
from geograft.training.loader import Scaling

ALIKE = ("classes", "number of bands", "number format", "indices")
"""What all runs of an ensemble must have in common."""

Tta: TypeAlias = Literal[1, 2, 4, 8]
Batch: TypeAlias = tuple[Shaped[ndarray, "n b t t"], Bool[ndarray, "n t t"]]
"""Tiles as they are, and which of their pixels are valid."""


def read_network(run: Path, card: ModelCard) -> Network:
    """Return the best network of a run folder, on the CPU. No pretrained weights are looked up.

    Raises:
        InputError: when the weights are missing, truncated or of another network.
    """
    network = build(card.model, len(card.band_names), card.legend.outputs, pretrained=False)
    load_weights(run / WEIGHTS, network)
    return network


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
        return cls(card, read_network(run, card), device)

    def __call__(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None = None
    ) -> Float32[ndarray, "n k h w"]:
        """Return the probability of each class of the legend, in float32.

        Over the classes they add up to 1, unless these overlap.

        `batch` is in the images' own units, of any height and width. Pixels that are not `valid` have no image: the
        network is given the mean in their place, as in training. (Without `valid`, the caller fills them with it.)
        So it is where a band of a valid pixel is NaN. The card's temperature divides the logits.
        """
        logits = self._logits(batch, valid) / self.card.temperature
        return probabilities(logits, self.card.legend.overlapping).numpy(force=True)

    def logits(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None = None
    ) -> Float32[ndarray, "n o h w"]:
        """Return what the network puts out, in float32, for the same images; the temperature has no part in it."""
        return self._logits(batch, valid).numpy(force=True)

    def _logits(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None
    ) -> Float32[Tensor, "n o h w"]:
        scaled = self._scaling(batch)
        known = ~np.isnan(scaled) if valid is None else valid[:, None] & ~np.isnan(scaled)
        images = torch.from_numpy(np.where(known, scaled, np.float32(0)))
        with torch.inference_mode(), repeatable(self.device):
            logits: Tensor = self._network(images.to(self.device, memory_format=layout(self.device)))
            return logits.float()


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, with what is its own."""

    scaling: Scaling
    temperature: float
    run: Runner


class Options(TypedDict, total=False):
    """How a mapper runs. The settings of the same names in `config.PredictConfig` explain most of them."""

    device: str
    backend: str
    batch_size: int
    tta: Tta
    compile: bool
    spread: bool
    """Whether the last layer is the standard deviation over the runs."""
    sample: Batch
    """The batch that backends are compared on, best the map's first; without it, noise like the training's images."""


class Mapper:
    """What maps are made with: the mean over runs and over turns of each tile, computed by the backend that suits.

    On a CPU equal tiles give equal layers, to the bit, wherever in a batch they are and whatever is beside them.

    Attributes:
        card: of the first run.
        layers: how many layers the call returns.
        backend: what runs the networks: torch, onnx or openvino.
        notes: what the user should know, a line each.
    """

    backend = "torch"
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        card: ModelCard,
        members: Sequence[Member],
        workers: Workers,
        *,
        tta: Tta = 1,
        spread: bool = False,
    ) -> None:
        self.card = card
        self.layers = card.legend.outputs + spread
        self._members, self._turns, self._spread = tuple(members), turns(tta), spread
        self._workers = workers

    @classmethod
    def load(cls, runs: Sequence[Path], **options: Unpack[Options]) -> "Mapper":
        """Read the run folders and make their networks ready for tiles of the first run's size.

        Takes seconds for each run and backend whose graph the run folder does not hold yet.

        Raises:
            InputError: when one of `runs` is no finished run or differs from the first in classes, bands or number
                format.
            SettingError: for a device that this machine does not have, or a backend that is not installed.
        """
        cards = [read_card(run) for run in runs]
        _check_alike(runs, cards)
        backend = options.get("backend", "auto")
        device = device_for(backend, options.get("device", "auto"))
        workers = Workers(torch.device(device), options.get("batch_size", 8))
        sample = _tensors(*(options.get("sample") or _noise(cards[0], options.get("batch_size", 8))))
        trained = [
            Trained(run, card, read_network(run, card), _scaled(*sample, _scaling(card)))
            for run, card in zip(runs, cards, strict=True)
        ]
        choice = choose(trained, workers, backend, options.get("compile", False))
        members = [
            Member(_scaling(card), card.temperature, runner) for card, runner in zip(cards, choice.runners, strict=True)
        ]
        mapper = cls(cards[0], members, workers, tta=options.get("tta", 1), spread=options.get("spread", False))
        mapper.backend, mapper.notes = choice.backend, choice.notes
        return mapper

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> Float32[ndarray, "n layers t t"]:
        """Return the layers of square tiles, each from 0 to 1.

        They are the probability of class 1 for two classes, else of each class; with `spread`, last, the standard
        deviation of the probability over the runs, the largest of all classes. `pixels` are in the images' own units
        and number format. The network is given the mean of each band where they are not `valid`.
        """
        return self._workers.each(self._mapped, *_tensors(pixels, valid)).numpy()

    def _mapped(
        self, images: Float32[Tensor, "n b t t"], valid: Bool[Tensor, "n 1 t t"]
    ) -> Float32[Tensor, "n layers t t"]:
        with torch.inference_mode():
            if not self._spread:
                return mean_over(self._members, lambda member: self._layers(member, images, valid))
            each = [self._layers(member, images, valid) for member in self._members]
            mean = mean_over(each, lambda layers: layers)
            variance = mean_over(each, lambda layers: (layers - mean).square())
            return torch.cat([mean, variance.sqrt().amax(1, keepdim=True)], dim=1)

    def _layers(
        self, member: Member, images: Float32[Tensor, "n b t t"], valid: Bool[Tensor, "n 1 t t"]
    ) -> Float32[Tensor, "n o t t"]:
        """Return what one run says, the mean over all turns."""
        scaled = _scaled(images, valid, member.scaling)

        def upright(turn: Turn) -> Tensor:
            logits = member.run(turned(scaled, turn))
            return turned_back(layers_of(logits / member.temperature, self.card.legend.overlapping), turn)

        return mean_over(self._turns, upright)


def _noise(card: ModelCard, count: int) -> Batch:
    """Return tiles with the mean and standard deviation of training: patches of 8 x 8 pixels and as much fine noise."""
    rng, size = np.random.default_rng(0), card.tile_px
    shape, patches = (count, len(card.band_names), size, size), -(-size // 8)
    coarse = rng.standard_normal((*shape[:2], patches, patches), np.float32).repeat(8, 2).repeat(8, 3)
    noise = (coarse[..., :size, :size] + rng.standard_normal(shape, np.float32)) / np.float32(np.sqrt(2))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    return noise * std + mean, np.ones((count, size, size), bool)


def _tensors(
    pixels: Shaped[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]
) -> tuple[Float32[Tensor, "n b h w"], Bool[Tensor, "n 1 h w"]]:
    return torch.from_numpy(pixels.astype(np.float32, order="C")), torch.from_numpy(np.array(valid[:, None]))


def _scaling(card: ModelCard) -> Scaling:
    return Scaling(card.mean, card.std)


def _scaled(
    images: Float32[Tensor, "n b h w"], valid: Bool[Tensor, "n 1 h w"], scaling: Scaling
) -> Float32[Tensor, "n b h w"]:
    mean, std = (images.new_tensor(values)[:, None, None] for values in (scaling.mean, scaling.std))
    # NaN: an index that has no value in a valid pixel. The network sees its mean.
    return torch.where(valid & ~images.isnan(), (images - mean) / std, 0)


def _check_alike(runs: Sequence[Path], cards: Sequence[ModelCard]) -> None:
    first = _alike(cards[0])
    for run, card in zip(runs, cards, strict=True):
        for name, value, other in zip(ALIKE, first, _alike(card), strict=True):
            if value != other:
                raise InputError(
                    f"{run} cannot be averaged with {runs[0]}: {name} {other}, there {value}. "
                    "Give runs that were trained on the same classes and kind of images."
                )


def _alike(card: ModelCard) -> tuple[str, ...]:
    names = [f"{value} {name}" for value, name in zip(card.legend.values, card.legend.names, strict=True)]
    indices = ", ".join(index.formula for index in card.indices)
    kind = " (overlapping)" if card.legend.overlapping else ""
    return ", ".join(names) + kind, str(len(card.band_names)), card.dtype, indices or "none"
