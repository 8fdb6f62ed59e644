"""A sample of the logits of labelled pixels, as maps have them: what temperature and thresholds are fitted to."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray
from scipy.special import expit, softmax

from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.legend import IGNORE
from geograft.mapping.held_out import predict_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.sums import PROBABILITY_STEPS
from geograft.metrics.calibration import STEPS, class_reliability_counts, probability_counts
from geograft.metrics.confusion import ConfusionScheme

MAX_PIXELS = 500_000
"""Maximum number of pixels to fit the temperature to. Larger sets are subsampled with a fixed seed."""
MAX_GROUPS = 1000
"""Maximum number of groups of tiles with histograms of their own, of 16 kB for each threshold."""
SEED = 0


@dataclass(frozen=True)
class LogitSample:
    """Logits of a sample of the labelled pixels. Overlapping classes give a binary label per pixel and class."""

    logits: Float32[ndarray, "n o"]
    label: UInt8[ndarray, " n"]
    group_counts: Int64[ndarray, "groups thresholds 2 1001"]
    """Probability histograms of all labelled pixels at temperature 1, for the positive or each overlapping class: of
    each tile, or of up to MAX_GROUPS groups of consecutive tiles."""

    @property
    def counts(self) -> Int64[ndarray, "thresholds 2 1001"]:
        """The histograms of all tiles."""
        total: Int64[ndarray, "thresholds 2 1001"] = self.group_counts.sum(axis=0)
        return total

    def probabilities(self, temperature: float) -> Float32[ndarray, "k n"]:
        """Return the class probabilities of the sample."""
        if self.logits.shape[1] == 1:
            positive = expit(self.logits[:, 0] / np.float32(temperature))
            return np.stack([1 - positive, positive])
        return np.ascontiguousarray(softmax(self.logits / np.float32(temperature), axis=1).T)

    def reliability(self, temperature: float) -> Float64[ndarray, "15 3"]:
        """Return the counts of the reliability diagram."""
        return class_reliability_counts(self.probabilities(temperature), self.label)


def sample_logits(model: RunModel, tile_set: TileSet) -> LogitSample:
    """Return a uniform random sample of the logits of the labelled pixels of validation tiles.

    Costs a map of these tiles. Deterministic.

    Raises:
        InputError: if there are none, or an image cannot be read.
    """
    legend = model.card.legend
    tiles = len(tile_set.split("val"))
    labelled = sum(tile.valid * tile.window.height * tile.window.width for tile in tile_set.split("val"))
    labelled *= legend.outputs if legend.overlapping else 1
    fraction = min(1.0, MAX_PIXELS / max(labelled, 1))
    layers, groups = legend.outputs if legend.binary or legend.overlapping else 0, min(tiles, MAX_GROUPS)
    counts = np.zeros((groups, layers, 2, STEPS + 1), np.int64)
    logits, labels = [], []
    for number, (probabilities, label) in labelled_probabilities(model, tile_set):
        if layers:  # overlapping classes have a number each
            group = number // layers * groups // tiles
            counts[group, number % layers] += probability_counts(probabilities[:, -1], label == 1)
        chosen = np.random.default_rng((SEED, number)).random(len(label)) < fraction
        logits.append(_logits(probabilities[chosen]))
        labels.append(label[chosen])
    if not sum(map(len, labels)):
        raise InputError(f"{tile_set.title} has no labelled validation pixels. Run prepare again with --val above 0.")
    return LogitSample(np.concatenate(logits), np.concatenate(labels), counts)


def labelled_probabilities(
    model: RunModel, tile_set: TileSet
) -> Iterator[tuple[int, tuple[Float32[ndarray, "n k"], UInt8[ndarray, " n"]]]]:
    """Yield the probabilities and labels of the labelled pixels of each validation tile, with a number of its own.

    Pixels in several tiles occur once. Overlapping classes are yielded one by one: (1 - p, p) and labels of 0 and 1.
    """
    scheme = ConfusionScheme.from_legend(model.card.legend)
    samples = tile_set.samples("val", unique_pixels=True)
    layers = scheme.classes if scheme.overlapping else 1
    for tile in predict_tiles(model, tile_set, samples.tiles, "calibrating"):
        label = scheme.to_classes(samples[tile.index][1])
        for layer in range(layers):
            truth, p = (label[layer], tile.probabilities[layer]) if scheme.overlapping else (label, tile.probabilities)
            both = np.stack([1 - p, p]) if scheme.overlapping else p
            known = truth != IGNORE
            yield tile.index * layers + layer, (np.ascontiguousarray(both[:, known].T), truth[known])


def _logits(probabilities: Float32[ndarray, "n k"]) -> Float32[ndarray, "n o"]:
    """Return the logits of blended probabilities, which are known to 1 / PROBABILITY_STEPS: one output for two classes.

    >>> _logits(np.array([[0.5, 0.5], [0.2, 0.8]], np.float32)).round(3).tolist()
    [[0.0], [1.3860000371932983]]
    """
    least = np.float32(0.5 / PROBABILITY_STEPS)
    logs = np.log(np.clip(probabilities, least, None))
    logits: Float32[ndarray, "n o"] = logs[:, 1:] - logs[:, :1] if probabilities.shape[1] == 2 else logs
    return logits
