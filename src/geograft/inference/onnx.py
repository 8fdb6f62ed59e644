"""The ONNX Runtime backend, which runs a graph exported by torch."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor, nn

NEEDS = ("onnxruntime", "onnx", "onnxscript")
GRAPH = "graph.onnx"


def export(network: nn.Module, image: Float32[Tensor, "1 b t t"], folder: Path) -> None:
    """Write graph.onnx, the network from scaled pixels to logits for single images of the shape of `image`."""
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


def runner(folder: Path, _workers: int) -> Callable[[Tensor], Tensor]:
    """Return a thread-safe function that computes the logits of one tile by graph.onnx, on the calling thread."""
    import onnxruntime  # noqa: PLC0415  (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Read into memory: the folder may be temporary.
    session = onnxruntime.InferenceSession((folder / GRAPH).read_bytes(), options, providers=["CPUExecutionProvider"])

    def one(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

    return one
