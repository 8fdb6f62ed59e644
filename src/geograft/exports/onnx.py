"""ONNX and OpenVINO files from raw pixels to probabilities. OpenVINO's are converted from ONNX models."""

import copy
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import torch
from jaxtyping import Bool, Float32
from numpy import ndarray
from torch.export import ExportedProgram

from geograft.card import ModelCard
from geograft.exports.program import IMAGE, VALID, GraphRunner, nan_where_invalid

OPSET, IR_VERSION = 18, 9
"""What ONNX Runtime 1.17 reads, the last version that QGIS's plugins support, and all later ones."""


def onnx_model(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return a program as an ONNX model with the given names of inputs and outputs.

    Raises:
        Exception: anything, if torch cannot translate the program.
    """
    translated = torch.onnx.export(
        program,
        (),
        input_names=list(inputs),
        output_names=list(outputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert translated is not None
    model = translated.model_proto
    model.ir_version = IR_VERSION
    return model


def card_metadata(card: ModelCard, stride: int) -> dict[str, str]:
    """Return what a program needs to know of a model to use it, as strings of JSON."""
    size, overlap = card.window
    entries = {
        "class_names": card.legend.names,
        "thresholds": card.used_thresholds,
        "band_names": card.band_names[: card.bands],
        "resolution_m": card.resolution_m,
        "stride_px": stride,
        "window_px": size,
        "overlap_px": overlap,
        "geograft_card": card.content,
    }
    return {name: json.dumps(value) for name, value in entries.items()}


def write_onnx(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    """Write a model with metadata; a mask among its inputs becomes optional."""
    model = copy.deepcopy(model)
    for mask in model.graph.input:
        if mask.name == VALID:
            _make_optional(model.graph, mask)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _make_optional(graph: onnx.GraphProto, mask: onnx.ValueInfoProto) -> None:
    """Give a mask a default, in place: one pixel, true, which is broadcast. An input with an initializer is optional.

    The sides of the mask get names of their own and inferred shapes are removed: with the names of the image's sides,
    ONNX Runtime would reuse the memory of the default for tensors of the image's size.
    """
    sides = mask.type.tensor_type.shape.dim
    for side in sides:
        side.dim_param = f"{mask.name} {side.dim_param}"
    del graph.value_info[:]
    graph.initializer.append(onnx.helper.make_tensor(mask.name, onnx.TensorProto.BOOL, [1] * len(sides), [True]))


def open_session(path: Path) -> Any:
    """Return a session of ONNX Runtime that computes on the calling thread."""
    import onnxruntime  # noqa: PLC0415  (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def open_onnx(path: Path) -> GraphRunner:
    """Return a runner of a file. Pixels that are not valid are passed as NaN unless the file has a mask."""
    session = open_session(path)
    has_mask = any(each.name == VALID for each in session.get_overridable_initializers())

    def predict(pixels: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]) -> Float32[ndarray, "n o h w"]:
        inputs = {IMAGE: pixels, VALID: valid} if has_mask else {IMAGE: nan_where_invalid(pixels, valid)}
        probabilities: ndarray = session.run(None, inputs)[0]
        return probabilities

    return predict


SECTION = "geograft"
"""Section of the metadata (rt_info) in the .xml file."""


def write_openvino(model: onnx.ModelProto, metadata: Mapping[str, str], path: Path) -> None:
    """Write an ONNX model for OpenVINO, in float32: path.xml with metadata, and the weights in path.bin next to it."""
    import openvino  # noqa: PLC0415  (an extra)

    converted = openvino.Core().read_model(model.SerializeToString())
    for name, value in metadata.items():
        converted.set_rt_info(value, [SECTION, name])
    openvino.save_model(converted, path, compress_to_fp16=False)


def open_openvino(path: Path) -> GraphRunner:
    """Return a runner of a file. Pixels that are not valid are passed as NaN."""
    # In a thread of its own, which ends: compiling changes the signal stack of its thread.
    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(_compile_openvino, path).result()

    def predict(pixels: Float32[ndarray, "n b h w"], valid: Bool[ndarray, "n h w"]) -> Float32[ndarray, "n o h w"]:
        probabilities: ndarray = compiled(nan_where_invalid(pixels, valid))[0]
        return probabilities

    return predict


def _compile_openvino(path: Path) -> Any:
    import openvino  # noqa: PLC0415  (an extra)

    openvino.Type.f32.to_dtype()  # initialises a table, as in geograft.inference.graphs
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is renamed later
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(path), "CPU", settings)
