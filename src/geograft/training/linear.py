"""Fit the linear classifier of a frozen encoder in seconds: logistic regression on a sample of labelled pixels.

The sample has about as many pixels of each class from each tile, and each stands for the pixels of its class there that
were not drawn. The maps of the encoder are cached by tile, so that with more labels only the fit is repeated.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from platformdirs import user_cache_path
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from geograft.config import TrainConfig
from geograft.errors import InputError
from geograft.labels import image_mask
from geograft.losses.segmentation import LabelTensor, Targets, build_loss_config, class_index, segmentation_loss
from geograft.metrics.confusion import ConfusionScheme
from geograft.networks.bodies import LinearClassifier, pixel_features
from geograft.networks.device import deterministic_algorithms, find_device, memory_format_for
from geograft.networks.network import Network, pad_to_multiple
from geograft.progress import track
from geograft.training.augment import TrainingTile
from geograft.training.checkpoint import EpochTotals, RunFolder, TrainingProgress, load_state, run_identity
from geograft.training.history import Epoch, History
from geograft.training.loader import Scaling, Tiles, TrainingData
from geograft.training.sampling import generator
from geograft.training.step import confusion, overlapping_confusion

MAX_TILES = 256
"""Maximum number of tiles, chosen at random, that are fitted to, and that are scored."""
MAX_PIXELS = 20_000
"""Approximate maximum number of pixels in the sample."""
PENALTY = 0.1
"""L2 penalty of standardised features with a single tile. It falls with the square root of the number of tiles, because
the pixels of a tile are alike. Chosen on two data sets (LOG.md)."""
BALANCE = 0.5
"""Power of the inverse frequency of a class that its pixels weigh: 0 for their number, 1 for equal classes."""
MAX_STEPS = 300
CACHE = "features"
"""Folder of the maps of tiles in the user's cache folder."""
CACHE_BYTES = 2**29
HALF_MAX = torch.finfo(torch.half).max
DIGEST_BYTES = 32


def fit_linear(
    network: Network, data: TrainingData, config: TrainConfig, folder: RunFolder, resume: bool = False
) -> History:
    """Fit the linear classifier of `network` in place, write the run's files to `folder` and return its one epoch.

    Of `config`, the seed and the device count. With `resume`, a run that is in `folder` is read instead. At most
    MAX_TILES tiles of each split are used. On one machine, the weights are the same with every call.

    Raises:
        InputError: if no pixel of the training tiles is labelled, or a tile cannot be read.
        SettingError: if the device is not available, or the run in `folder` has other data or settings.
        OutputError: if a file cannot be written.
    """
    device, identity = torch.device(find_device(config.device)), run_identity(config, data)
    if resume:
        return load_state(folder.path, {"network": network}, identity, epochs=1).history
    began, body = time.monotonic(), _body(network)
    network.to(device, memory_format=memory_format_for(device)).eval()  # type: ignore[call-overload]
    with deterministic_algorithms(device), torch.no_grad():
        maps = CachedMaps(body)
        sample = draw_sample(data, config.seed, maps)
        weight, bias = fit_logistic(sample)
        body.set_weights(weight.to(device), bias.to(device))
        fitted = time.monotonic() - began
        train, val = (_score(tiles, data, config, maps) for tiles in (data.train, data.val))
        maps.prune()
    scheme = ConfusionScheme.from_legend(data.legend)
    row = Epoch(
        epoch=1,
        train_loss=train.mean_loss,
        **{f"train_{name}": value for name, value in scheme.headline(train.confusion).items()},
        val_loss=val.mean_loss,
        **{f"val_{name}": value for name, value in scheme.headline(val.confusion).items()},
        lr=float("nan"),
        seconds=time.monotonic() - began,
        tiles_per_second=min(len(data.train), MAX_TILES) / max(fitted, 1e-9),
    )
    progress = TrainingProgress(EpochTotals(scheme.zeros()), epoch=1, history=History((row,)))
    folder.write_epoch(network, {"network": network}, progress, identity)
    return progress.history


def _body(network: Network) -> LinearClassifier:
    assert isinstance(network.body, LinearClassifier)
    return network.body


def scaled_tile(tile: TrainingTile, scaling: Scaling) -> Float32[Tensor, "1 b h w"]:
    """Return the image of a tile as a network takes it: scaled, and 0 where there is no image data."""
    image, label = tile
    return torch.from_numpy(np.where(image_mask(image, label), scaling(image.astype(np.float32)), np.float32(0)))[None]


# ---------------------------------------------------------------------------------------------------------------- maps


class CachedMaps:
    """The maps of a frozen encoder, rounded to half precision, cached by the content of its weights and of the image.

    The cache is a folder of at most CACHE_BYTES after `prune`, from which the maps that were not used for the longest
    time are dropped first. A file that is damaged is computed again; where nothing can be written, nothing is cached.
    """

    def __init__(self, body: LinearClassifier, folder: Path | None = None) -> None:
        self._body, self.computed = body, 0
        self._folder = folder or user_cache_path("geograft", appauthor=False) / CACHE
        self._device = next(body.parameters()).device
        # Another version or device rounds differently.
        self._encoder = hashlib.sha256(f"{torch.__version__} {self._device.type}".encode())
        for name, tensor in body.encoder.state_dict().items():
            self._encoder.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())

    def __call__(self, image: Float32[Tensor, "1 b h w"]) -> tuple[Tensor, list[Tensor]]:
        """Return a scaled image, padded to the network's stride, and its maps from fine to coarse, on the device.

        Images are encoded one by one: in a batch, the last bits would depend on the others.
        """
        path = self._folder / self._name(image)
        padded = pad_to_multiple(image.to(self._device, memory_format=memory_format_for(self._device)), self._stride)
        maps = _read_maps(path)
        if not maps:
            self.computed += 1
            with torch.no_grad():
                maps = [each.clamp(-HALF_MAX, HALF_MAX).half().cpu().contiguous() for each in self._body.maps(padded)]
            _write_maps(path, maps)
        return padded, [each.to(self._device).float() for each in maps]

    def logits(self, image: Float32[Tensor, "1 b h w"]) -> Float32[Tensor, "1 o h w"]:
        """Return the logits of a scaled image with the classifier as it is."""
        padded, maps = self(image)
        height, width = image.shape[2:]
        return self._body.logits(padded, maps)[..., :height, :width]

    def prune(self, max_bytes: int = CACHE_BYTES) -> None:
        """Delete the files that were not used for the longest time, until the rest has at most `max_bytes`."""
        with suppress(OSError):
            states = [(file.stat(), file) for file in self._folder.iterdir()]
            kept = 0
            for state, file in sorted(states, key=lambda pair: pair[0].st_mtime_ns, reverse=True):
                kept += state.st_size
                if kept > max_bytes:
                    file.unlink(missing_ok=True)

    @property
    def _stride(self) -> int:
        return self._body.stride

    def _name(self, image: Tensor) -> str:
        digest = self._encoder.copy()
        digest.update(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _read_maps(path: Path) -> list[Tensor]:
    """Return the maps in a file; empty if it is missing or damaged."""
    try:
        content = path.read_bytes()
        digest, maps = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(maps).digest() != digest:
            return []
        os.utime(path)
    except OSError:
        return []
    found: dict[str, Tensor] = load(maps)
    return [found[str(i)] for i in range(len(found))]


def _write_maps(path: Path, maps: Sequence[Tensor]) -> None:
    content = save({str(i): each for i, each in enumerate(maps)})
    part = path.with_name(f".{path.name}-{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(hashlib.sha256(content).digest() + content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- the fit


@dataclass(frozen=True)
class PixelSample:
    """Labelled pixels with their features."""

    features: Float32[Tensor, "n d"]
    targets: Float32[Tensor, "n o"]
    """Fraction of the class of each output; 0 where unknown."""
    known: Bool[Tensor, "n v"]
    """Which targets are known: one column for exclusive classes, else one per output."""
    weight: Float32[Tensor, " n"]
    """The number of labelled pixels that each stands for."""
    exclusive: bool
    """Whether the targets of a pixel sum to 1 (softmax), or each output has a sigmoid of its own."""
    tiles: int
    """Number of tiles that the pixels come from."""


def draw_sample(data: TrainingData, seed: int, maps: CachedMaps) -> PixelSample:
    """Return about as many pixels of each class from each training tile, MAX_PIXELS in all, with their features.

    Raises:
        InputError: if no pixel is labelled.
    """
    chosen = _choose_tiles(len(data.train), seed)
    quota = max(1, MAX_PIXELS // (max(1, len(chosen)) * (len(data.legend.names) + data.legend.overlapping)))
    parts = []
    for index in track(chosen, len(chosen), "features", "tiles"):
        tile = data.train[index]
        label = torch.from_numpy(np.array(tile[1]))[None]
        pixels, counts = _draw_pixels(label, quota, data.legend.overlapping, generator(seed, index))
        if len(pixels):
            image, found = maps(scaled_tile(tile, data.scaling))
            drawn = pixel_features(image[0], found, pixels.to(image.device)).cpu()
            often = 1.0 if data.tile_weights is None else float(data.tile_weights[index])
            targets = Targets.from_label(label, data.legend.outputs, data.legend.overlapping)
            rows, cols = pixels.T
            parts.append(
                (drawn, targets.fraction[0, :, rows, cols].T, targets.valid[0, :, rows, cols].T, often * counts)
            )
    if not parts:
        raise InputError("No pixel of the training tiles is labelled. Label some, and prepare the tile set again.")
    exclusive = data.legend.outputs > 1 and not data.legend.overlapping
    features, targets_of, known, weight = (torch.cat(each) for each in zip(*parts, strict=True))
    return PixelSample(features, targets_of, known, weight, exclusive, len(parts))


def _choose_tiles(count: int, seed: int) -> list[int]:
    """Return the positions of at most MAX_TILES tiles, in order."""
    return sorted(generator(seed).permutation(count)[:MAX_TILES].tolist())


def _draw_pixels(
    label: LabelTensor, quota: int, overlapping: bool, rng: np.random.Generator
) -> tuple[Int64[Tensor, "m 2"], Float32[Tensor, " m"]]:
    """Return at most `quota` pixels of each class of one tile, and how many each stands for.

    A pixel of overlapping classes counts as one of the class with the largest fraction, or of none.
    """
    index = _largest_class(label) if overlapping else class_index(label)
    known = label != 255 if label.dtype == torch.uint8 else label.isfinite().any(dim=1)
    drawn, counts = [torch.zeros(0, 2, dtype=torch.long)], [torch.zeros(0)]
    for value in np.unique(index[known].numpy()).tolist():
        pixels = ((index == value) & known)[0].nonzero()
        if value == 255 and not overlapping:
            continue
        some = np.sort(rng.permutation(len(pixels))[:quota])
        drawn.append(pixels[torch.from_numpy(some)])
        counts.append(torch.full((len(some),), len(pixels) / len(some)))
    return torch.cat(drawn), torch.cat(counts)


def _largest_class(fractions: Float32[Tensor, "1 o h w"]) -> Tensor:
    """Return the class with the largest fraction, one more than the last where none has at least one half."""
    largest, index = fractions.nan_to_num(0.0).max(dim=1)
    return index.masked_fill(largest < 0.5, fractions.shape[1])


def fit_logistic(sample: PixelSample) -> tuple[Float32[Tensor, "o d"], Float32[Tensor, " o"]]:
    """Return weight and bias of the logistic regression of a sample, with an L2 penalty of the weights.

    Features are standardised, which is undone in the result. Classes are balanced by the square root of their inverse
    frequency. Minimised by L-BFGS (Liu and Nocedal 1989, doi:10.1007/BF01589116) in float64.
    """
    weight, features = sample.weight.double(), sample.features.double()
    mean = weight @ features / weight.sum()
    std = (weight @ (features - mean) ** 2 / weight.sum()).sqrt()
    std[std < 1e-6] = 1.0  # a constant feature gets no weight
    rows, balanced = (features - mean) / std, _balanced_weights(sample)
    targets, penalty = sample.targets.double(), PENALTY / sample.tiles**0.5
    coefficients = torch.zeros(rows.shape[1] + 1, targets.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS(
        [coefficients],
        max_iter=MAX_STEPS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            logits = rows @ coefficients[:-1] + coefficients[-1]
            value: Tensor = penalty / 2 * coefficients[:-1].square().sum()
            value = value + _cross_entropy(logits, targets, balanced, sample.exclusive)
            torch.autograd.backward(value)
        detached: Tensor = value.detach()
        return detached

    optimizer.step(loss)
    found = coefficients.detach()
    scaled = found[:-1].T / std
    return scaled.float(), (found[-1] - scaled @ mean).float()


def _balanced_weights(sample: PixelSample) -> Float[Tensor, "n v"]:
    """Return the weight of each known target, rarer classes raised; they sum to 1 over the sample, for each output."""
    weight, targets = sample.weight.double()[:, None] * sample.known, sample.targets.double()
    classes = targets if sample.exclusive else torch.stack([targets, 1 - targets])
    total = weight.sum(dim=0).clamp(min=1e-12)
    frequency = ((weight * classes).sum(dim=-2, keepdim=True) / total).clamp(min=1e-12)
    raised = (classes * frequency**-BALANCE).sum(dim=1, keepdim=True) if sample.exclusive else None
    factor = (classes * frequency**-BALANCE).sum(dim=0) if raised is None else raised
    weight = weight * factor
    return weight / weight.sum(dim=0).clamp(min=1e-12)


def _cross_entropy(
    logits: Float[Tensor, "n o"], targets: Float[Tensor, "n o"], weight: Float[Tensor, "n v"], exclusive: bool
) -> Float[Tensor, ""]:
    if exclusive:
        return -(weight[:, 0] * (targets * log_softmax(logits, dim=1)).sum(dim=1)).sum()
    return binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")


# -------------------------------------------------------------------------------------------------------------- scores


def _score(tiles: Tiles, data: TrainingData, config: TrainConfig, maps: CachedMaps) -> EpochTotals:
    """Return loss and confusion over at most MAX_TILES tiles of a split."""
    scheme = ConfusionScheme.from_legend(data.legend)
    loss_config = build_loss_config(config, data.legend, data.class_fractions, data.labelled_fractions)
    totals = EpochTotals(scheme.zeros())
    for logits, label in _predictions(tiles, data.scaling, config.seed, maps):
        counts = (
            overlapping_confusion(logits, label) if scheme.overlapping else confusion(logits, label, scheme.classes)
        )
        totals.add(segmentation_loss(logits, label, loss_config).item(), counts.numpy())
    return totals


def _predictions(
    tiles: Tiles, scaling: Scaling, seed: int, maps: CachedMaps
) -> Iterator[tuple[Float32[Tensor, "1 o h w"], LabelTensor]]:
    for index in _choose_tiles(len(tiles), seed):
        tile = tiles[index]
        yield maps.logits(scaled_tile(tile, scaling)).cpu(), torch.from_numpy(np.array(tile[1]))[None]
