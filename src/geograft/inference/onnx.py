"""The ONNX Runtime backend, which runs a graph exported by torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float32
from numpy import ndarray

NEEDS = ("onnxruntime",)
EXPORT_NEEDS = ("onnx", "onnxscript")
GRAPH = "graph.onnx"


def export(network: Any, image: Any, folder: Path) -> None:
    """Write graph.onnx, the torch network from scaled pixels to logits for single images of the shape of `image`."""
    import torch  # noqa: PLC0415  (only to export)

    torch.onnx.export(
        network,
        (image,),
        folder / GRAPH,
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def runner(folder: Path, _workers: int) -> Callable[[Float32[ndarray, "1 b t t"]], Float32[ndarray, "1 o h w"]]:
    """Return a thread-safe function that computes the logits of one tile by graph.onnx, on the calling thread."""
    import onnxruntime  # noqa: PLC0415  (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Read into memory: the folder may be temporary.
    session = onnxruntime.InferenceSession((folder / GRAPH).read_bytes(), options, providers=["CPUExecutionProvider"])

    def one(image: Float32[ndarray, "1 b t t"]) -> Float32[ndarray, "1 o h w"]:
        logits: Float32[ndarray, "1 o h w"] = session.run(None, {"image": image})[0]
        return logits

    return one
