"""OpenVINO files from raw pixels to probabilities: FILE.xml, with the weights in FILE.bin next to it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
from jaxtyping import Bool, Float32
from numpy import ndarray

from geograft.exports.program import GraphRunner, nan_where_invalid

SECTION = "geograft"
"""Section of the metadata (rt_info) in the .xml file."""


def write_openvino(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    """Write an ONNX model as path.xml and path.bin, with metadata, in float32."""
    import openvino  # noqa: PLC0415  (an extra)

    converted = openvino.Core().read_model(model.SerializeToString())
    for name, value in metadata.items():
        converted.set_rt_info(value, [SECTION, name])
    openvino.save_model(converted, path, compress_to_fp16=False)


def open_openvino(path: Path) -> GraphRunner:
    """Return a runner of a file. Pixels that are not valid are passed as NaN."""
    # In a thread of its own, which ends: compiling changes the signal stack of its thread.
    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(_compile, path).result()

    def predict(pixels: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]) -> Float32[ndarray, "n o h w"]:
        probabilities: ndarray = compiled(nan_where_invalid(pixels, valid))[0]
        return probabilities

    return predict


def _compile(path: Path) -> Any:
    import openvino  # noqa: PLC0415  (an extra)

    openvino.Type.f32.to_dtype()  # initialises a table, as in geograft.inference.openvino
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is renamed later
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(path), "CPU", settings)
