"""One way to make a map of a raster, in a process of its own: `python contestants.py NAME JOB.json` prints a result.

Every contestant is given the same run, raster, tile, overlap and batch, and ends with a class map in a GeoTIFF. What
it imports does not count; loading the weights does. With `probabilities`, the probability of class 1 is saved too, as
a .npy file, and the time does not count.
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
from tiling import cropped_map, eager, load_network, plain_loop, write_map

Work: TypeAlias = Callable[[], ndarray | None]
"""Makes the map; returns the probabilities where the job asks for them."""


@dataclass(frozen=True)
class Job:
    """What a contestant is to do."""

    run: Path
    raster: Path
    out: Path
    overlap: float
    batch: int = 8
    probabilities: Path | None = None
    batches: int = 0
    """For a backend alone: how many batches it is given."""
    before: int = 0
    """For a whole image: how many mirrored pixels come before the first one."""

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Return the job that a file holds."""
        content = json.loads(path.read_text(encoding="utf-8"))
        paths = {name: Path(content[name]) for name in ("run", "raster", "out", "probabilities") if content[name]}
        return cls(**content | paths)

    def write(self, path: Path) -> Path:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")
        return path


def plain(job: Job) -> Work:
    """Return the loop that a newcomer writes."""

    def work() -> ndarray:
        card, network = load_network(job.run)
        probability = plain_loop(eager(card, network), job.raster, card.tile_px, job.overlap, job.batch)
        write_map((probability >= card.threshold).astype(np.uint8), job.raster, job.out)
        return probability

    return work


def geograft_with(backend: str, **settings: Any) -> Callable[[Job], Work]:
    """Return Geograft with one of its backends."""

    def contestant(job: Job) -> Work:
        import_backend(backend)
        from geograft import PredictConfig, predict
        from geograft.cli import set_gdal_options

        set_gdal_options()
        kind = "float16" if job.probabilities else "none"
        config = PredictConfig(
            **{"overlap": job.overlap, "batch_size": job.batch, "backend": backend, "probabilities": kind} | settings  # type: ignore[arg-type]
        )

        def work() -> ndarray | None:
            made = predict(job.run, (job.raster,), job.out, config).maps[0]
            return _second_band(job.out.with_name(f"{job.out.stem}.probabilities.tif")) if made.probabilities else None

        return work

    return contestant


def alone(backend: str) -> Callable[[Job], Work]:
    """Return a backend by itself: `job.batches` calls on tiles that are in memory already."""

    def contestant(job: Job) -> Work:
        import_backend(backend)
        from geograft.inference.predictor import EnsemblePredictor

        mapper = EnsemblePredictor.load(
            [job.run], device="auto", backend=backend, batch_size=job.batch, tta=1, spread=False, compile=False
        )
        size = mapper.card.tile_px
        with rasterio.open(job.raster) as source:
            image = source.read(window=((0, size), (0, size + 8 * job.batch)))
        tiles = np.stack([image[:, :, 8 * i : 8 * i + size] for i in range(job.batch)])
        valid = np.ones((job.batch, size, size), bool)
        mapper(tiles, valid)

        def work() -> None:
            for _ in range(job.batches):
                mapper(tiles, valid)

        return work

    return contestant


def cropped(overlapping: bool) -> Callable[[Job], Work]:
    """Return the rule that keeps the centres of tiles; without overlap, whole tiles side by side."""

    def contestant(job: Job) -> Work:
        def work() -> ndarray:
            card, network = load_network(job.run)
            stride = round(card.tile_px * (1 - job.overlap)) if overlapping else card.tile_px
            return cropped_map(eager(card, network), _pixels(job.raster), card.tile_px, stride)

        return work

    return contestant


def whole(job: Job) -> Work:
    """Return the prediction of the whole image at once."""

    def work() -> ndarray:
        around = (job.before, job.before)
        image = np.pad(_pixels(job.raster), ((0, 0), around, around), mode="symmetric")
        inner = slice(job.before, -job.before or None)
        probability: ndarray = eager(*load_network(job.run))(image[None])[0, inner, inner]
        return probability

    return work


def peer(name: str) -> Callable[[Job], Work]:
    """Return another package's tiled inference."""

    def contestant(job: Job) -> Work:
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

CONTESTANTS: dict[str, Callable[[Job], Work]] = {
    "plain": plain,
    **{f"geograft-{backend}": geograft_with(backend) for backend in BACKENDS},
    **{f"alone-{backend}": alone(backend) for backend in BACKENDS},
    **{f"peer-{name}": peer(name) for name in PEERS},
    "side by side": cropped(overlapping=False),
    "centres": cropped(overlapping=True),
    "whole": whole,
}


def import_backend(backend: str) -> None:
    """Import what a backend needs, so that it is not counted."""
    import_module(BACKENDS[backend])
    import_module("geograft.commands.predict")


def tiling(name: str, tile: int, overlap: float) -> Tiling:
    """Return where a contestant's tiles begin and end to count."""
    stride = tile if name == "side by side" else round(tile * (1 - overlap))
    if name in ("side by side", "centres"):
        return Tiling.of(0, stride, stride)
    before = reach(name, tile, overlap)
    return (
        Tiling.of(-before, tile - before, stride)
        if name.startswith("geograft")
        else Tiling.of(0, tile - 2 * before, stride)
    )


def reach(name: str, tile: int, overlap: float) -> int:
    """Return how many pixels before the raster's first one a contestant's first tile begins."""
    if name.startswith("geograft") or name == "centres":
        return (tile - round(tile * (1 - overlap))) // 2
    return PEERS[name.removeprefix("peer-")].trimmed if name.startswith("peer") else 0


def _pixels(raster: Path) -> ndarray:
    with rasterio.open(raster) as source:
        pixels: ndarray = source.read()
        return pixels


def _second_band(path: Path) -> ndarray:
    with rasterio.open(path) as source:
        band: ndarray = source.read(2).astype(np.float32)
        return band


def main() -> None:
    """Do one job and print what it took as JSON."""
    name, job = sys.argv[1], Job.read(Path(sys.argv[2]))
    work = CONTESTANTS[name](job)
    start = time.perf_counter()
    probability = work()
    seconds = time.perf_counter() - start
    if job.probabilities and probability is not None:
        np.save(job.probabilities, probability)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
