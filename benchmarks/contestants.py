"""Make one map in a process of its own and print its cost: `python contestants.py NAME JOB.json`.

Every contestant gets the same run, raster, tile size, overlap and batch size, and writes a class map as GeoTIFF.
Imports are not timed; loading the weights is. With `probabilities`, the probability of class 1 is also saved as a .npy
file, and the time is not used.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rasterio
import torch
from numpy import ndarray

from measured import peak_mb
from peers import PEERS
from seams import Tiling
from tiling import cropped_map, eager_predictor, load_network, plain_loop, write_map

Work: TypeAlias = Callable[[], ndarray | None]
"""Makes the map; returns the probabilities if the job asks for them."""


@dataclass(frozen=True)
class MapJob:
    """The input and output of one map."""

    run: Path
    raster: Path
    out: Path
    overlap: float
    batch: int = 8
    probabilities: Path | None = None
    batches: int = 0
    """For a backend alone: the number of batches."""
    padding: int = 0
    """For a whole image: mirrored pixels before the first row and column."""
    window_px: int = 0
    """For Geograft: the size of its windows; 0: that of the training tiles."""

    @classmethod
    def read(cls, path: Path) -> "MapJob":
        """Read a job from a JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        paths = {name: Path(content[name]) for name in ("run", "raster", "out", "probabilities") if content[name]}
        return cls(**content | paths)

    def write(self, path: Path) -> Path:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")
        return path


def plain_contestant(job: MapJob) -> Work:
    """Return the plain PyTorch loop."""

    def work() -> ndarray:
        card, network = load_network(job.run)
        probability = plain_loop(eager_predictor(card, network), job.raster, card.tile_px, job.overlap, job.batch)
        write_map((probability >= card.threshold).astype(np.uint8), job.raster, job.out)
        return probability

    return work


def geograft_contestant(backend: str, **settings: Any) -> Callable[[MapJob], Work]:
    """Return Geograft's own prediction with one of its backends."""

    def contestant(job: MapJob) -> Work:
        import_backend(backend)
        from geograft import PredictConfig, predict
        from geograft.card import read_card
        from geograft.cli import set_gdal_options

        set_gdal_options()
        kind = "float16" if job.probabilities else "none"
        window_px = job.window_px or read_card(job.run).tile_px
        tiles = {"window_px": window_px, "overlap": job.overlap, "batch_size": job.batch}
        config = PredictConfig(**tiles | {"backend": backend, "probabilities": kind} | settings)

        def work() -> ndarray | None:
            made = predict(job.run, (job.raster,), job.out, config).maps[0]
            return _second_band(job.out.with_name(f"{job.out.stem}.probabilities.tif")) if made.probabilities else None

        return work

    return contestant


def backend_contestant(backend: str) -> Callable[[MapJob], Work]:
    """Return a backend alone: `job.batches` calls on tiles in memory."""

    def contestant(job: MapJob) -> Work:
        import_backend(backend)
        from geograft.card import read_card
        from geograft.inference.predictor import EnsemblePredictor

        size = read_card(job.run).tile_px
        predictor = EnsemblePredictor.load([job.run], backend=backend, batch_size=job.batch, window_px=size)
        with rasterio.open(job.raster) as source:
            image = source.read(window=((0, size), (0, size + 8 * job.batch)))
        tiles = np.stack([image[:, :, 8 * i : 8 * i + size] for i in range(job.batch)])
        valid = np.ones((job.batch, size, size), bool)
        predictor(tiles, valid)

        def work() -> None:
            for _ in range(job.batches):
                predictor(tiles, valid)

        return work

    return contestant


def centre_contestant(overlapping: bool) -> Callable[[MapJob], Work]:
    """Return the rule that keeps the centre of each tile; without overlap, whole tiles side by side."""

    def contestant(job: MapJob) -> Work:
        def work() -> ndarray:
            card, network = load_network(job.run)
            stride = round(card.tile_px * (1 - job.overlap)) if overlapping else card.tile_px
            return cropped_map(eager_predictor(card, network), _pixels(job.raster), card.tile_px, stride)

        return work

    return contestant


def whole_contestant(job: MapJob) -> Work:
    """Return the prediction of the whole image in one pass."""

    def work() -> ndarray:
        padding = (job.padding, job.padding)
        image = np.pad(_pixels(job.raster), ((0, 0), padding, padding), mode="symmetric")
        inner = slice(job.padding, -job.padding or None)
        probability: ndarray = eager_predictor(*load_network(job.run))(image[None])[0, inner, inner]
        return probability

    return work


def peer_contestant(name: str) -> Callable[[MapJob], Work]:
    """Return another package's tiled inference."""

    def contestant(job: MapJob) -> Work:
        infer = PEERS[name].load()

        def work() -> ndarray:
            card, network = load_network(job.run)
            probability = infer(card, network, job.raster, job.out, job.overlap, job.batch)
            write_map((probability >= card.threshold).astype(np.uint8), job.raster, job.out)
            return probability

        return work

    return contestant


BACKENDS = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
"""Geograft's backends, and the library that each needs."""

CONTESTANTS: dict[str, Callable[[MapJob], Work]] = {
    "plain": plain_contestant,
    **{f"geograft-{backend}": geograft_contestant(backend) for backend in BACKENDS},
    **{f"backend-{backend}": backend_contestant(backend) for backend in BACKENDS},
    **{f"peer-{name}": peer_contestant(name) for name in PEERS},
    "side by side": centre_contestant(overlapping=False),
    "centres": centre_contestant(overlapping=True),
    "whole": whole_contestant,
}


def import_backend(backend: str) -> None:
    """Import what a backend needs, so that the import is not timed."""
    import_module(BACKENDS[backend])
    import_module("geograft.commands.predict")


def contestant_tiling(name: str, tile: int, overlap: float) -> Tiling:
    """Return where the pixels that a contestant keeps of each tile begin and end."""
    stride = tile if name == "side by side" else round(tile * (1 - overlap))
    if name in ("side by side", "centres"):
        return Tiling.of(0, stride, stride)
    before = first_tile_offset(name, tile, overlap)
    return (
        Tiling.of(-before, tile - before, stride)
        if name.startswith("geograft")
        else Tiling.of(0, tile - 2 * before, stride)
    )


def first_tile_offset(name: str, tile: int, overlap: float) -> int:
    """Return how many pixels before the raster's first one a contestant's first tile begins."""
    if name.startswith("geograft") or name == "centres":
        return (tile - round(tile * (1 - overlap))) // 2
    return PEERS[name.removeprefix("peer-")].trimmed_px if name.startswith("peer") else 0


def _pixels(raster: Path) -> ndarray:
    with rasterio.open(raster) as source:
        pixels: ndarray = source.read()
        return pixels


def _second_band(path: Path) -> ndarray:
    with rasterio.open(path) as source:
        band: ndarray = source.read(2).astype(np.float32)
        return band


def main() -> None:
    """Run one job and print its time and memory as JSON."""
    name, job = sys.argv[1], MapJob.read(Path(sys.argv[2]))
    work = CONTESTANTS[name](job)
    start = time.perf_counter()
    probability = work()
    seconds = time.perf_counter() - start
    if job.probabilities and probability is not None:
        np.save(job.probabilities, probability)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
