"""OpenVINO runs the network, from a graph that it makes of torch's own export."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

NEEDS = ("openvino",)
GRAPH = "graph.xml"


def export(network: nn.Module, image: Float32[Tensor, "1 b t t"], folder: Path) -> None:
    """Write graph.xml and graph.bin: the network for single images of the shape of `image`, from pixels to logits."""
    import openvino  # noqa: PLC0415  (an extra)
    from openvino.frontend import FrontEndManager  # noqa: PLC0415
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder  # noqa: PLC0415

    # Not openvino.convert_model: it does the same and reports on it over the network.
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(torch.export.export(network, (image,)))
    model = frontend.convert(frontend.load(decoder))
    model.reshape(list(image.shape))
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)


class Streams:
    """Computes `workers` tiles at a time from graph.xml, each on one core, in float32."""

    def __init__(self, folder: Path, workers: int) -> None:
        import openvino  # noqa: PLC0415  (an extra)

        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the folder may vanish
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": workers,
            # Otherwise bfloat16 where the processor has it, which is off by more than a hundredth.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(core.read_model(folder / GRAPH), "CPU", settings)
        self._queue = openvino.AsyncInferQueue(compiled, workers)
        self._queue.set_callback(_keep)

    def __call__(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "n o t t"]:
        """Return the logits of every tile."""
        done: list[Any] = [None] * len(images)
        for place, image in enumerate(images[:, None].unbind()):
            self._queue.start_async({0: image.numpy()}, (done, place))
        self._queue.wait_all()
        return torch.cat(done)


def _keep(request: Any, where: tuple[list[Any], int]) -> None:
    """Put what a request computed into its place. The request's own memory is used again for another tile."""
    done, place = where
    done[place] = torch.from_numpy(request.get_output_tensor(0).data.copy())
