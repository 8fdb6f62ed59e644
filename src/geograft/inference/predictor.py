"""Predict class probabilities with trained networks: one run, or an ensemble of runs with TTA."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray
from torch import Tensor

from geograft.card import WEIGHTS, ModelCard, ensemble_card, read_card, read_cards
from geograft.files import file_digest, json_digest
from geograft.inference.backends import Runner, TileWorkers, TrainedNetwork, backend_device, choose_backend
from geograft.inference.probability import (
    FlipRotation,
    flip_rotate,
    flip_rotations,
    output_layers,
    pairwise_mean,
    probabilities,
    undo_flip_rotate,
)
from geograft.networks.device import deterministic_algorithms, find_device, memory_format_for
from geograft.networks.network import Network, build
from geograft.training.checkpoint import load_weights
from geograft.training.loader import Scaling

Tta: TypeAlias = Literal[1, 2, 4, 8]
PixelBatch: TypeAlias = tuple[Shaped[ndarray, "n b t t"], Bool[ndarray, "n t t"]]
"""Unscaled tiles, and which of their pixels are valid."""


def read_network(run: Path, card: ModelCard) -> Network:
    """Return the best network of a run folder, on the CPU. No pretrained weights are downloaded.

    Raises:
        InputError: if the weights are missing, truncated or from another network.
    """
    network = build(card.model, len(card.band_names), card.legend.outputs, pretrained=False)
    load_weights(run / WEIGHTS, network)
    return network


class Predictor:
    """The best network of a run, from unscaled images to K probabilities per pixel.

    On one machine, equal batches give equal probabilities to the bit.
    """

    def __init__(self, card: ModelCard, network: Network, device: str = "auto") -> None:
        self.card = card
        self.device = torch.device(find_device(device))
        self._scaling = Scaling(card.mean, card.std)
        self._network = network.to(self.device, memory_format=memory_format_for(self.device)).eval()  # type: ignore[call-overload]

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "Predictor":
        """Read card.json and model.safetensors of a run folder. No pretrained weights are downloaded.

        Raises:
            InputError: if `run` is not a finished run, or its weights are truncated or from another network.
            SettingError: for a device that this machine does not have.
        """
        card = read_card(run)
        return cls(card, read_network(run, card), device)

    def __call__(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None = None
    ) -> Float32[ndarray, "n k h w"]:
        """Return the probability of each class of the legend, in float32. They sum to 1 unless classes overlap.

        `batch` is not yet scaled and of any height and width. Pixels that are not `valid`, and NaN values in valid
        ones, are replaced by the band's mean, as in training; without `valid` the caller does that. The logits are
        divided by the card's temperature.
        """
        logits = self._logits(batch, valid) / self.card.temperature
        return probabilities(logits, self.card.legend.overlapping).numpy(force=True)

    def logits(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None = None
    ) -> Float32[ndarray, "n o h w"]:
        """Return the logits of the same images in float32, not divided by the temperature."""
        return self._logits(batch, valid).numpy(force=True)

    def _logits(
        self, batch: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"] | None
    ) -> Float32[Tensor, "n o h w"]:
        scaled = self._scaling(batch)
        usable = ~np.isnan(scaled) if valid is None else valid[:, None] & ~np.isnan(scaled)
        images = torch.from_numpy(np.where(usable, scaled, np.float32(0)))
        with torch.inference_mode(), deterministic_algorithms(self.device):
            logits: Tensor = self._network(images.to(self.device, memory_format=memory_format_for(self.device)))
            return logits.float()


@dataclass(frozen=True)
class EnsembleMember:
    """One network of an ensemble, with its scaling and temperature."""

    scaling: Scaling
    temperature: float
    runner: Runner


class PredictorOptions(TypedDict, total=False):
    """Options of `EnsemblePredictor.load`. `config.PredictConfig` describes the settings of the same names."""

    device: str
    backend: str
    batch_size: int
    tta: Tta
    compile: bool
    spread: bool
    """Whether to add the standard deviation over the runs as last layer."""
    sample: PixelBatch
    """The batch to compare backends on, ideally the map's first; by default noise with the training's statistics."""


class EnsemblePredictor:
    """The mean prediction over runs and TTA transforms of each tile, computed by the chosen backend.

    On a CPU, equal tiles give equal layers to the bit, at any place in a batch and for any order of the runs.

    Attributes:
        card: the card of the ensemble; see `geograft.card.ensemble_card`.
        layers: the number of layers that the call returns.
        backend: the backend of the networks: torch, onnx or openvino.
        notes: remarks for the user, one line each.
    """

    backend = "torch"
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        card: ModelCard,
        members: Sequence[EnsembleMember],
        workers: TileWorkers,
        *,
        tta: Tta = 1,
        spread: bool = False,
    ) -> None:
        self.card = card
        self.layers = card.legend.outputs + spread
        self._members, self._transforms, self._spread = tuple(members), flip_rotations(tta), spread
        self._workers = workers

    @classmethod
    def load(cls, runs: Sequence[Path], **options: Unpack[PredictorOptions]) -> "EnsemblePredictor":
        """Load runs and choose a backend, for tiles of the largest size among the runs.

        Takes seconds for each run and backend whose graph is not cached in the run folder yet.

        Raises:
            InputError: if one of `runs` is not a finished run, or differs from the first in classes, bands or dtype.
            SettingError: for a device that this machine does not have, or a backend that is not installed.
        """
        cards = read_cards(runs)
        joint = ensemble_card(cards)
        backend = options.get("backend", "auto")
        device = backend_device(backend, options.get("device", "auto"))
        workers = TileWorkers(torch.device(device), options.get("batch_size", 8))
        sample = _tensors(*(options.get("sample") or _noise(joint, options.get("batch_size", 8))))
        networks = [
            TrainedNetwork(run, card, read_network(run, card), _scaled(*sample, _scaling(card)))
            for run, card in zip(runs, cards, strict=True)
        ]
        if len(networks) > 1:
            # A floating-point sum depends on its order, which must not be that of the command line.
            networks.sort(key=_digests)
        choice = choose_backend(networks, workers, backend, options.get("compile", False))
        members = [
            EnsembleMember(_scaling(network.card), network.card.temperature, runner)
            for network, runner in zip(networks, choice.runners, strict=True)
        ]
        predictor = cls(joint, members, workers, tta=options.get("tta", 1), spread=options.get("spread", False))
        predictor.backend, predictor.notes = choice.backend, choice.notes
        return predictor

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> Float32[ndarray, "n layers t t"]:
        """Return the layers of square tiles, each from 0 to 1.

        They are the probability of the positive class if binary, else of each class. With `spread`, the last layer is
        the standard deviation of the probability over the runs, for the class where it is largest. `pixels` are not
        yet scaled, in the images' dtype; where not `valid`, they are replaced by the band's mean.
        """
        return self._workers.map(self._predict, *_tensors(pixels, valid)).numpy()

    def _predict(
        self, images: Float32[Tensor, "n b t t"], valid: Bool[Tensor, "n 1 t t"]
    ) -> Float32[Tensor, "n layers t t"]:
        with torch.inference_mode():
            if not self._spread:
                return pairwise_mean(self._members, lambda member: self._layers(member, images, valid))
            by_run = [self._layers(member, images, valid) for member in self._members]
            mean = pairwise_mean(by_run, lambda layers: layers)
            variance = pairwise_mean(by_run, lambda layers: (layers - mean).square())
            return torch.cat([mean, variance.sqrt().amax(1, keepdim=True)], dim=1)

    def _layers(
        self, member: EnsembleMember, images: Float32[Tensor, "n b t t"], valid: Bool[Tensor, "n 1 t t"]
    ) -> Float32[Tensor, "n o t t"]:
        """Return the layers of one run, the mean over all TTA transforms."""
        scaled = _scaled(images, valid, member.scaling)

        def predict(transform: FlipRotation) -> Tensor:
            logits = member.runner(flip_rotate(scaled, transform))
            layers = output_layers(logits / member.temperature, self.card.legend.overlapping)
            return undo_flip_rotate(layers, transform)

        return pairwise_mean(self._transforms, predict)


def _digests(trained: TrainedNetwork) -> tuple[str, str]:
    """Return digests of the weights and the card of a network: equal only for networks that predict the same."""
    return file_digest(trained.folder / WEIGHTS), json_digest(trained.card.content)


def _noise(card: ModelCard, count: int) -> PixelBatch:
    """Return tiles with the training's mean and standard deviation: half 8 x 8 patches, half pixel noise."""
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
    # NaN: an index without a value in a valid pixel. It is replaced by the mean.
    return torch.where(valid & ~images.isnan(), (images - mean) / std, 0)
