"""Exported graphs: how ONNX Runtime and OpenVINO write and run them, and their cache.

RUN/exported/BACKEND-KEY has the files of a graph and their digests. The key is a digest of everything that affects what
the graph computes. A graph is written to a temporary folder and then renamed; one with wrong digests is exported again.
If the folder is not writable, the graph stays in the temporary folder until it has been read. The graphs of a bundle
are in the user's cache folder (`geograft.runs.export_cache`).
"""

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import Float32
from numpy import ndarray

from geograft.files import file_digest, json_digest, write_json
from geograft.runs import export_cache

DIGESTS = "digests.json"


def graph_folder(run: Path, backend: str, key: Mapping[str, Any]) -> Path:
    """Return the folder in which a graph is cached."""
    return export_cache(run) / f"{backend}-{json_digest(key)[:16]}"


@contextmanager
def exported_graph(cached: Path, export: Callable[[Path], None]) -> Iterator[Path]:
    """Provide the folder of a graph: `cached` if it is intact, else a new one written by `export` and then cached."""
    if is_intact(cached):
        yield cached
        return
    with _scratch(cached.parent) as scratch:
        content = Path(scratch) / "graph"
        content.mkdir()
        with suppress_warnings():
            export(content)
        write_json(content / DIGESTS, {file.name: file_digest(file) for file in sorted(content.iterdir())})
        yield _move_to_cache(content, cached)


def is_intact(folder: Path) -> bool:
    """Return whether a folder has all files of a graph with the right digests."""
    try:
        digests = json.loads((folder / DIGESTS).read_bytes())
        return len(digests) > 0 and all(file_digest(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def _scratch(folder: Path) -> "TemporaryDirectory[str]":
    """Return a new temporary folder in `folder`, so that it can be renamed, or elsewhere if that is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".", dir=folder)
    except OSError:
        return TemporaryDirectory()


def _move_to_cache(content: Path, cached: Path) -> Path:
    """Move a graph into the cache and return its path; it stays in place if that fails."""
    try:
        if cached.exists():
            shutil.rmtree(cached)
        return content.rename(cached)
    except OSError:  # another job was first, or the disk is full
        return content


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Silence the warnings and log lines of exporters and compilers, which do not help the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


ONNX_GRAPH = "graph.onnx"


def export_onnx(network: Any, image: Any, folder: Path) -> None:
    """Write graph.onnx, the torch network from scaled pixels to logits for single images of the shape of `image`."""
    import torch  # noqa: PLC0415  (only to export)

    torch.onnx.export(
        network,
        (image,),
        folder / ONNX_GRAPH,
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def onnx_runner(folder: Path, _workers: int) -> Callable[[Float32[ndarray, "1 b t t"]], Float32[ndarray, "1 o h w"]]:
    """Return a thread-safe function that computes the logits of one tile by graph.onnx, on the calling thread."""
    import onnxruntime  # noqa: PLC0415  (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Read into memory: the folder may be temporary.
    session = onnxruntime.InferenceSession(
        (folder / ONNX_GRAPH).read_bytes(), options, providers=["CPUExecutionProvider"]
    )

    def one(image: Float32[ndarray, "1 b t t"]) -> Float32[ndarray, "1 o h w"]:
        logits: Float32[ndarray, "1 o h w"] = session.run(None, {"image": image})[0]
        return logits

    return one


OPENVINO_GRAPH = "graph.xml"


def export_openvino(network: Any, image: Any, folder: Path) -> None:
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
    openvino.save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)


class OpenVINORunner:
    """Computes the logits of a tile by graph.xml, on one core, in float32. Up to `workers` threads may call at once."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        # In a thread of its own, which ends: compiling leaves its thread with an alternate signal stack that is
        # unmapped with the compiled model, and a signal handler that runs there later crashes.
        with ThreadPoolExecutor(1) as thread:
            for request in thread.submit(_compile_openvino, folder, workers).result():
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


def _compile_openvino(folder: Path, workers: int) -> list[Any]:
    """Return `workers` inference requests of a graph."""
    import openvino  # noqa: PLC0415  (an extra)

    # Initialises the table of element types: two threads that reach it first at once would deadlock.
    openvino.Type.f32.to_dtype()
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the folder may be temporary
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        # Otherwise the threads of several processes are bound to the same first cores, and wait for each other.
        "ENABLE_CPU_PINNING": False,
        "NUM_STREAMS": workers,
        "INFERENCE_NUM_THREADS": workers,
        # The default is bfloat16 on processors that support it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(folder / OPENVINO_GRAPH), "CPU", settings)
    return [compiled.create_infer_request() for _ in range(workers)]
