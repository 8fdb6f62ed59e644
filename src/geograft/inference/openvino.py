"""The OpenVINO backend, which runs a graph converted from torch's export."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from jaxtyping import Float32
from numpy import ndarray

NEEDS = ("openvino",)
EXPORT_NEEDS: tuple[str, ...] = ()
GRAPH = "graph.xml"


def export(network: Any, image: Any, folder: Path) -> None:
    """Write graph.xml and graph.bin, the torch network from scaled pixels to logits for images like `image`."""
    import openvino  # noqa: PLC0415  (an extra)
    import torch  # noqa: PLC0415  (only to export)
    from openvino.frontend import FrontEndManager  # noqa: PLC0415
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder  # noqa: PLC0415

    # openvino.convert_model does the same, but sends telemetry.
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(torch.export.export(network, (image,)))
    model = frontend.convert(frontend.load(decoder))
    model.reshape(list(image.shape))
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)


class Streams:
    """Computes the logits of a tile by graph.xml, on one core, in float32. Up to `workers` threads may call at once."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        # In a thread of its own, which ends: compiling leaves its thread with an alternate signal stack that is
        # unmapped with the compiled model, and a signal handler that runs there later crashes.
        with ThreadPoolExecutor(1) as thread:
            for request in thread.submit(_compile, folder, workers).result():
                self._free.put(request)

    def __call__(self, image: Float32[ndarray, "1 b t t"]) -> Float32[ndarray, "1 o h w"]:
        """Return the logits of one tile."""
        request = self._free.get()
        try:
            # The result is a copy, because the request reuses its output memory.
            logits: Float32[ndarray, "1 o h w"] = request.infer({0: image}, share_inputs=True)[0]
            return logits
        finally:
            self._free.put(request)


def _compile(folder: Path, workers: int) -> list[Any]:
    """Return `workers` inference requests of a graph."""
    import openvino  # noqa: PLC0415  (an extra)

    # Initialises the table of element types: two threads that reach it first at once would deadlock.
    openvino.Type.f32.to_dtype()
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the folder may be temporary
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": workers,
        "INFERENCE_NUM_THREADS": workers,
        # The default is bfloat16 on processors that support it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(folder / GRAPH), "CPU", settings)
    return [compiled.create_infer_request() for _ in range(workers)]
