"""What backends share: networks by their runs, the threads that run them, and what was found about them."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Shaped
from numpy import ndarray
from pydantic.dataclasses import dataclass as validated

from geograft.card import WEIGHTS, ModelCard, check_weights
from geograft.inference.graphs import OpenVINORunner, export_onnx, export_openvino, graph_folder, onnx_runner
from geograft.runs import run_file_digest

Runner: TypeAlias = Callable[[Float32[ndarray, "n b t t"]], Float32[ndarray, "n o h w"]]
"""Function from scaled images to float32 logits, or to the features of cells. On a CPU n is 1."""
TORCH = "torch"
MAX_THREADS = 64
"""More threads predict no faster, because tiles are read by one thread."""


class TileWorkers:
    """Runs functions on tiles: on a CPU one by one on `count` threads; without threads all tiles of a batch together.

    Attributes:
        count: the number of threads; 0 for whole batches, on a GPU.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "tiles") if count else None

    def map(
        self, function: Callable[..., Float32[ndarray, "..."]], *batches: Shaped[ndarray, "n ..."]
    ) -> Float32[ndarray, "..."]:
        """Return the results of `function` for the tiles of `batches`, in their order."""
        if self._pool is None:
            return function(*batches)
        tiles = ([batch[i : i + 1] for i in range(len(batch))] for batch in batches)
        return np.concatenate(list(self._pool.map(function, *tiles)))


@dataclass(frozen=True)
class ExportBackend:
    """A library that runs exported graphs."""

    title: str
    needs: tuple[str, ...]
    """Modules that it needs, to export and to run."""
    export: Callable[[Any, Any, Path], None]
    """Writes the graph of a torch network for single images of the given shape into a folder."""
    runner: Callable[[Path, int], Runner]
    """Creates a runner of the graph in a folder, for a number of threads."""


EXPORT_BACKENDS: Mapping[str, ExportBackend] = {
    "openvino": ExportBackend("OpenVINO", ("openvino",), export_openvino, OpenVINORunner),
    "onnx": ExportBackend("ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), export_onnx, onnx_runner),
}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network to predict with, by its run."""

    run: Path
    card: ModelCard
    sample: Float32[ndarray, "n b t t"]
    """Scaled windows to compare backends on."""
    cell_px: int = 0
    """Side of square cells to compute the encoder's features of; 0 to compute the logits of pixels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Bands, height and width of the windows."""
        return self.sample.shape[1:]

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights, which are those of the card."""
        digest = run_file_digest(self.run, WEIGHTS)
        check_weights(self.run, self.card, digest)
        return digest

    def graph_key(self, backend: str) -> dict[str, Any]:
        """Return everything that affects what a graph computes."""
        libraries = (*("geograft", "torch", "timm"), *(EXPORT_BACKENDS[backend].needs if backend != TORCH else ()))
        return {
            "weights": self.weights_digest,
            "model": asdict(self.card.model),
            "outputs": self.card.legend.outputs,
            "shape": list(self.shape),
            **({"cell_px": self.cell_px} if self.cell_px else {}),
            "versions": {library: library_version(library) for library in libraries},
        }

    def graph_folder(self, backend: str) -> Path:
        """Return the path of the cached graph of a backend."""
        return graph_folder(self.run, backend, self.graph_key(backend))


@validated(frozen=True)
class Trial:
    """What a comparison of one backend with torch found, on this machine."""

    seconds: float
    """Time for the sample; 0 if it cannot be used."""
    difference: float = 0.0
    """Largest difference of its probabilities from torch's."""
    problem: str = ""
    """Why it cannot be used; empty if it can."""


Trials: TypeAlias = dict[str, Trial]
"""Trials by the name of the backend; "torch" is always among them."""


@dataclass(frozen=True)
class BackendOptions:
    """The settings of a backend; `config.InferenceConfig` describes them."""

    backend: str = "auto"
    device: str = "auto"
    compile: bool | None = None
    """None: on a GPU networks are captured as CUDA graphs, and not compiled."""
    batch_size: int = 0
    """Windows per batch; 0 if it depends on their size."""
    compare: bool = True
    """Whether "auto" exports graphs and compares backends, which takes seconds; else it uses torch where no comparison
    is remembered."""


@dataclass(frozen=True)
class LoadedBackend:
    """The chosen backend with its networks."""

    backend: str
    runners: tuple[Runner, ...]
    """One per network, in their order."""
    workers: TileWorkers
    notes: tuple[str, ...] = ()
    """Remarks for the user, one line each."""
    precision: str = "float32"
    difference: float = 0.0
    """Largest difference of the probabilities from torch's in float32, on the samples."""
    device: str = "cpu"


def library_version(library: str) -> str:
    """Return the version of an installed library; empty if it is not installed as a distribution of that name."""
    try:
        return version(library)
    except PackageNotFoundError:  # installed as a distribution of another name
        return ""
