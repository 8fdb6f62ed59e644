"""8-bit integers: static quantisation of an ONNX model by ONNX Runtime, and what it gains and loses."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from geograft.card import ModelCard
from geograft.exports.program import IMAGE, VALID, GraphRunner
from geograft.labels import Label
from geograft.metrics.confusion import ConfusionScheme

MIN_SPEEDUP = 1.2
"""Speed relative to float32 below which a quantised file is not kept."""
MAX_IOU_LOSS = 0.005
"""IoU that a quantised file may lose on the validation tiles."""
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "LeakyRelu", "Clip", "MaxPool")
"""What is quantised. Scaling, resizing and the sigmoid stay in float32."""
ROUNDS = 9
"""Number of times that each file is timed; the median counts."""

Image: TypeAlias = tuple[Float32[ndarray, "1 b h w"], Bool[ndarray, "1 h w"]]
"""Raw pixels of an image whose sides are multiples of the stride, and which of them are valid."""
LabelledImage: TypeAlias = tuple[Image, Label]
"""An image and the label of its upper left part."""


@dataclass(frozen=True)
class QuantizationTrial:
    """What a quantised file gains and loses, measured on this machine."""

    speedup: float
    """Speed relative to float32."""
    iou_before: float
    """IoU in float32 on the validation tiles."""
    iou_after: float

    @property
    def accepted(self) -> bool:
        """Whether the file is fast and accurate enough. An undefined IoU is not."""
        return self.speedup >= MIN_SPEEDUP and self.iou_before - self.iou_after <= MAX_IOU_LOSS

    def __str__(self) -> str:
        """Return the measurement in words."""
        return (
            f"{self.speedup:.2f} times as fast as float32 on this machine, IoU {self.iou_after:.3f} instead of "
            f"{self.iou_before:.3f} on the validation tiles"
        )


def quantize(model: Any, images: Sequence[Image], folder: Path) -> Any:
    """Return an ONNX model with 8-bit weights and activations, calibrated on images; it needs both inputs.

    Writes temporary files into `folder`.

    Raises:
        Exception: anything, if ONNX Runtime cannot quantise the model.
    """
    import onnx  # noqa: PLC0415  (an extra)
    from onnxruntime import quantization  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    source, prepared, quantized = (folder / f"{name}.onnx" for name in ("source", "prepared", "quantized"))
    onnx.save(model, source)
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        quantized,
        _CalibrationImages(images),
        op_types_to_quantize=list(OPERATORS),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(quantized)


class _CalibrationImages:
    """Feeds images to ONNX Runtime's calibration (its `CalibrationDataReader`)."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images: Iterator[Image] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Return the inputs of the next image; None after the last."""
        image = next(self._images, None)
        return None if image is None else {IMAGE: image[0], VALID: image[1]}


def try_quantized(
    before: GraphRunner, after: GraphRunner, card: ModelCard, tiles: Sequence[LabelledImage]
) -> QuantizationTrial:
    """Compare a quantised file with float32 on labelled validation tiles."""
    ious = [_iou(runner, card, tiles) for runner in (before, after)]
    return QuantizationTrial(_speedup(before, after, tiles[0][0]), *ious)


def _iou(runner: GraphRunner, card: ModelCard, tiles: Sequence[LabelledImage]) -> float:
    scheme = ConfusionScheme.from_legend(card.legend)
    total = scheme.zeros()
    for image, label in tiles:
        height, width = label.shape[-2:]
        layers = runner(*image)[0, :, :height, :width]
        probabilities = np.concatenate([1 - layers, layers]) if card.legend.binary else layers
        predicted = scheme.apply_thresholds(probabilities, card.output_thresholds)
        total += scheme.confusion(scheme.to_classes(label), predicted)
    return float(scheme.headline(total)["iou"])


def _speedup(before: GraphRunner, after: GraphRunner, image: Image) -> float:
    """Return how many times as fast `after` is, timed in turn with `before`."""
    times = [(_seconds(before, image), _seconds(after, image)) for _ in range(ROUNDS + 1)]
    return median(first for first, _ in times[1:]) / median(second for _, second in times[1:])


def _seconds(runner: Callable[..., Any], image: Image) -> float:
    """Return the processor time of a call, which other processes hardly affect; files run on the calling thread."""
    started = time.thread_time()
    runner(*image)
    return time.thread_time() - started
