"""Predict class probabilities with trained networks: one run, or an ensemble of runs with TTA.

Torch is imported only if a backend needs it: with exported graphs that were compared with torch before, NumPy and the
backend's own library suffice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, Unpack

import numpy as np
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray

from geograft.card import ModelCard, ensemble_card, read_again, read_cards, unfinished_notes
from geograft.files import json_digest
from geograft.inference.backends import load_backend
from geograft.inference.probability import (
    FlipRotation,
    flip_rotate,
    flip_rotations,
    output_layers,
    pairwise_mean,
    undo_flip_rotate,
)
from geograft.inference.runners import BackendOptions, Runner, TileWorkers, TrainedNetwork

if TYPE_CHECKING:
    from geograft.inference.device_predictor import DevicePredictor

Tta: TypeAlias = Literal[1, 2, 4, 8]
Layers: TypeAlias = Float32[ndarray, "n layers t t"]
PixelBatch: TypeAlias = tuple[Shaped[ndarray, "n b t t"], Bool[ndarray, "n t t"]]
"""Unscaled tiles, and which of their pixels are valid."""


@dataclass(frozen=True)
class EnsembleMember:
    """One network of an ensemble, with the statistics of its training images and its temperature."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float
    runner: Runner


class PredictorOptions(TypedDict, total=False):
    """Options of `EnsemblePredictor.load`. `config.InferenceConfig` describes the settings of the same names."""

    device: str
    backend: str
    batch_size: int
    compare: bool
    """Whether "auto" may export graphs and compare backends; otherwise it uses torch unless that was done before."""
    window_px: int
    """Size of the windows; by default that of the ensemble's card."""
    tta: Tta
    compile: bool | None
    spread: bool
    """Whether to add the standard deviation of the probabilities as last layer: over the runs."""
    spread_views: bool
    """Whether that standard deviation is over the TTA views of each run, too."""
    cards: Sequence[ModelCard]
    """Cards of the runs, instead of those in their folders."""
    temperature: float
    """Temperature of all runs, instead of each run's own."""
    sample: PixelBatch
    """Windows to compare backends on, ideally the map's first; by default noise with the training's statistics."""


class EnsemblePredictor:
    """The mean prediction over runs and TTA transforms of each tile, computed by the chosen backend.

    On a CPU, equal tiles give equal layers to the bit, at any place in a batch and for any order of the runs.

    Attributes:
        card: the card of the ensemble; see `geograft.card.ensemble_card`.
        layers: the number of layers that the call returns.
        backend: the backend of the networks: torch, onnx or openvino.
        precision: float32, or the half precision of a GPU.
        difference: the largest difference of the probabilities from torch's in float32, on the sample; 0 for torch
            in float32.
        notes: remarks for the user, one line each.
        on_device: the same on an NVIDIA GPU, for callers that take layers there; else None.
    """

    on_device: "DevicePredictor | None" = None
    backend = "torch"
    precision = "float32"
    difference = 0.0
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        card: ModelCard,
        members: Sequence[EnsembleMember],
        workers: TileWorkers,
        *,
        tta: Tta = 1,
        spread: bool = False,
        spread_views: bool = False,
    ) -> None:
        self.card = card
        self.layers = card.legend.outputs + spread
        self._members, self._transforms = tuple(members), flip_rotations(tta)
        self._spread, self._spread_views = spread, spread_views
        self._workers = workers

    @classmethod
    def load(cls, runs: Sequence[Path], **options: Unpack[PredictorOptions]) -> "EnsemblePredictor":
        """Load runs, which may be trained at the same time, and choose a backend.

        Takes seconds for each run and backend that was not used on this machine before; imports torch only then.

        Raises:
            InputError: if one of `runs` is not a finished run, or differs from the first in classes, bands or dtype.
            SettingError: for a device that this machine does not have, or a backend that is not installed.
        """
        return read_again(lambda: cls._load(runs, options))

    @classmethod
    def _load(cls, runs: Sequence[Path], options: PredictorOptions) -> "EnsemblePredictor":
        cards = tuple(options.get("cards") or read_cards(runs))
        joint = ensemble_card(cards)
        window_px = options.get("window_px") or joint.window[0]
        pixels, valid = options.get("sample") or typical_tile(joint, window_px)
        networks = [
            TrainedNetwork(run, card, scaled_pixels(pixels, valid, card.mean, card.std))
            for run, card in zip(runs, cards, strict=True)
        ]
        if len(networks) > 1:
            # A floating-point sum depends on its order, which must not be that of the command line.
            networks.sort(key=_digests)
        names = ("backend", "device", "compile", "batch_size", "compare")
        chosen = {name: value for name, value in options.items() if name in names}
        choice = load_backend(networks, BackendOptions(**chosen))  # type: ignore[arg-type]
        members = [
            EnsembleMember(each.card.mean, each.card.std, options.get("temperature", each.card.temperature), runner)
            for each, runner in zip(networks, choice.runners, strict=True)
        ]
        predictor = cls(
            joint,
            members,
            choice.workers,
            tta=options.get("tta", 1),
            spread=options.get("spread", False),
            spread_views=options.get("spread_views", False),
        )
        predictor.backend, predictor.precision = choice.backend, choice.precision
        predictor.notes = (*unfinished_notes(cards), *choice.notes)
        predictor.difference = choice.difference
        if choice.device == "cuda":
            batch = max(1, options.get("batch_size", 1))
            typical = np.resize(pixels, (batch, *pixels.shape[1:])), np.resize(valid, (batch, *valid.shape[1:]))
            predictor.notes += predictor.move_to(choice.device, *typical, compiled=options.get("compile"))
        return predictor

    def move_to(
        self, device: str, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"], *, compiled: bool | None
    ) -> tuple[str, ...]:
        """Compute everything on `device` from now on, where the networks are already. Returns remarks for the user.

        `pixels` are a batch of typical size; see `DevicePredictor.warm_up`.
        """
        import torch  # noqa: PLC0415  (loaded already)

        from geograft.inference.device_predictor import DeviceMember, DevicePredictor  # noqa: PLC0415  (imports torch)

        place = torch.device(device)
        self.on_device = DevicePredictor(
            [DeviceMember.of(m.runner, m.mean, m.std, m.temperature, place) for m in self._members],  # type: ignore[arg-type]
            place,
            transforms=self._transforms,
            overlapping=self.card.legend.overlapping,
            spread=("views" if self._spread_views else "runs") if self._spread else "none",
        )
        return self.on_device.warm_up(pixels, valid, compiled)

    def __call__(self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]) -> Layers:
        """Return the layers of square tiles, each from 0 to 1.

        They are the probability of the positive class if binary, else of each class. With `spread`, the last layer is
        the standard deviation of the probability over the runs, for the class where it is largest. `pixels` are not
        yet scaled, in the images' dtype; where not `valid`, they are replaced by the band's mean.
        """
        if self.on_device is not None:
            return self.on_device(pixels, valid)
        return self._workers.map(self._predict, pixels, valid)

    def _predict(self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]) -> Layers:
        def of_run(member: EnsembleMember) -> Layers:
            return pairwise_mean(self._transforms, lambda transform: self._view(member, transform, pixels, valid))

        if not self._spread:
            return pairwise_mean(self._members, of_run)
        if self._spread_views:
            views = [self._view(run, each, pixels, valid) for run in self._members for each in self._transforms]
        else:
            views = [of_run(member) for member in self._members]
        mean = pairwise_mean(views, lambda layers: layers)
        variance = pairwise_mean(views, lambda layers: np.square(layers - mean))
        return np.concatenate([mean, np.sqrt(variance).max(axis=1, keepdims=True)], axis=1)

    def _view(
        self,
        member: EnsembleMember,
        transform: FlipRotation,
        pixels: Shaped[ndarray, "n b t t"],
        valid: Bool[ndarray, "n t t"],
    ) -> Layers:
        """Return the layers that one run predicts for transformed tiles, transformed back."""
        images = scaled_pixels(flip_rotate(pixels, transform), flip_rotate(valid, transform), member.mean, member.std)
        logits = member.runner(images) / np.float32(member.temperature)
        return undo_flip_rotate(output_layers(logits, self.card.legend.overlapping), transform)


def _digests(trained: TrainedNetwork) -> tuple[str, str]:
    """Return digests of the weights and the card of a network: equal only for networks that predict the same."""
    return trained.weights_digest, json_digest(trained.card.content)


def typical_tile(card: ModelCard, size: int) -> PixelBatch:
    """Return a tile with the training's mean and standard deviation: half 8 x 8 patches, half pixel noise."""
    rng = np.random.default_rng(0)
    shape, patches = (1, len(card.band_names), size, size), -(-size // 8)
    coarse = rng.standard_normal((*shape[:2], patches, patches), np.float32).repeat(8, 2).repeat(8, 3)
    noise = (coarse[..., :size, :size] + rng.standard_normal(shape, np.float32)) / np.float32(np.sqrt(2))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    return noise * std + mean, np.ones((1, size, size), bool)


def scaled_pixels(
    pixels: Shaped[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"], means: Sequence[float], stds: Sequence[float]
) -> Float32[ndarray, "n b h w"]:
    """Return the network's input, C-contiguous: (pixel - mean) / std, and 0 where a pixel is invalid or NaN."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (means, stds))
    scaled = np.empty(pixels.shape, np.float32)
    np.subtract(pixels.astype(np.float32, copy=False), mean, out=scaled)
    np.divide(scaled, std, out=scaled)
    if not valid.all():
        scaled[np.broadcast_to(~valid[:, None], scaled.shape)] = 0
    if pixels.dtype.kind == "f":
        # NaN: an index without a value in a valid pixel. It is replaced by the mean.
        scaled[np.isnan(scaled)] = 0
    return scaled
