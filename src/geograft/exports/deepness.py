"""ONNX files for Deepness, the plugin that runs models in QGIS: what it passes to a model, expects back and reads.

It divides all pixels by 255, whatever their dtype, needs a fixed size, and passes no mask. Several outputs are several
heads: overlapping classes have one each. It applies one threshold to all.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Bool, Float32
from numpy import ndarray
from torch import Tensor, nn

from geograft.card import ModelCard
from geograft.errors import SettingError
from geograft.exports.onnx import onnx_model, open_session
from geograft.exports.program import (
    IMAGE,
    PROBABILITIES,
    GraphRunner,
    PixelModel,
    export_program,
    nan_where_invalid,
)

DIVISOR = 255.0
"""The plugin divides pixels by it."""
STEPS = 100
"""The plugin shows thresholds with two decimals."""


class PluginModel(nn.Module):
    """A model of pixels behind the plugin: pixels divided by 255 in, one output per head."""

    def __init__(self, model: PixelModel, card: ModelCard) -> None:
        super().__init__()
        self.model = model
        self.heads = card.legend.outputs if card.legend.overlapping else 1
        dtype = np.dtype(card.dtype)
        # Whole numbers of up to 16 bits are restored exactly.
        self.whole = dtype.kind in "iu" and dtype.itemsize <= 2

    def forward(self, image: Float32[Tensor, "n b h w"]) -> tuple[Tensor, ...]:
        """Return the probabilities: of all classes, or one tensor per overlapping class."""
        pixels = image * DIVISOR
        probabilities = self.model(pixels.round() if self.whole else pixels)
        return tuple(probabilities.chunk(self.heads, dim=1))


def plugin_threshold(card: ModelCard, chosen: float | None) -> float:
    """Return the plugin's threshold for a run; 0, which disables it, for classes that exclude each other.

    Raises:
        SettingError: if overlapping classes have different thresholds and none is `chosen`; if one is chosen for
            classes that exclude each other.
    """
    if not card.used_thresholds:
        if chosen is not None:
            raise SettingError(f"--threshold {chosen:g}: {card.name} maps the most probable class. Omit it.")
        return 0.0
    if chosen is None and len(set(card.used_thresholds)) > 1:
        names = (f"{name} {t:.3f}" for name, t in zip(card.legend.names, card.used_thresholds, strict=True))
        raise SettingError(
            f"Deepness applies one threshold to all classes, but those of {card.name} differ: {', '.join(names)}. "
            "Give one with --threshold, or use --for onnx."
        )
    return card.used_thresholds[0] if chosen is None else chosen


def plugin_metadata(card: ModelCard, window_px: int, threshold: float) -> dict[str, str]:
    """Return the metadata that the plugin reads, as strings of JSON."""
    size, overlap = card.window
    names = card.legend.names
    heads = [{"0": name} for name in names] if card.legend.overlapping else dict(enumerate(names))
    entries = {
        "model_type": "Segmentor",
        "class_names": heads,
        "tile_size": window_px,
        "tiles_overlap": round(100 * overlap / size),
        "seg_thresh": threshold,
        "seg_small_segment": 0,
        "geograft_card": card.content,
    }
    resolution = {} if card.resolution_m is None else {"resolution": 100 * card.resolution_m}
    return {name: json.dumps(value) for name, value in (entries | resolution).items()}


def plugin_notes(card: ModelCard, threshold: float) -> tuple[str, ...]:
    """Return what the plugin does otherwise than a map of the run, one line each."""
    notes = ["Deepness passes no mask: pixels without data are predicted from the values stored there."]
    if card.resolution_m is None:
        notes.append("the run has no pixel size: set that of the training images in the plugin.")
    shown = round(threshold * STEPS) / STEPS
    if shown != threshold:
        notes.append(f"Deepness shows thresholds with two decimals: {shown:.2f} for {threshold:.4f}.")
    return tuple(notes)


def plugin_model(model: PixelModel, card: ModelCard, window_px: int) -> onnx.ModelProto:
    """Return the model for the plugin, for windows of `window_px` pixels.

    Raises:
        Exception: anything, if torch cannot export the model.
    """
    wrapped = PluginModel(model, card)
    program = export_program(wrapped, card.bands, (window_px, window_px), None)
    outputs = [f"{PROBABILITIES}_{number}" for number in range(wrapped.heads)] if wrapped.heads > 1 else [PROBABILITIES]
    return onnx_model(program, [IMAGE], outputs)


def open_plugin_model(path: Path) -> GraphRunner:
    """Return a runner of a file that passes pixels as the plugin does. Pixels that are not valid are passed as NaN."""
    session = open_session(path)

    def predict(pixels: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]) -> Float32[ndarray, "n o h w"]:
        heads: Sequence[ndarray] = session.run(None, {IMAGE: plugin_pixels(nan_where_invalid(pixels, valid))})
        return np.concatenate(heads, axis=1)

    return predict


def plugin_pixels(pixels: ndarray) -> Float32[ndarray, "n b h w"]:
    """Return pixels as the plugin passes them to a model."""
    return (pixels * (1.0 / DIVISOR)).astype(np.float32)
