"""Compare the time to load a training tile with the time of a training step on it.

    python benchmarks/bench_tiles.py [--pixels 2048] [--batches 6]

Writes a scene of noise (the worst case for compression) as a tiled, compressed GeoTIFF with polygons and prepares it
with 224-pixel tiles at half overlap. Then takes batches of 8 from the data loader and trains on them: the
EfficientNet-B0 U-Net from random weights, with flips and rotations, in float32. Loading and training alternate, so that
other load on the machine affects both. Prints milliseconds per tile of both and their ratio, and exits with 1 if the
ratio is above the limit.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import geopandas
import numpy as np
import rasterio
import torch
from affine import Affine
from shapely import Polygon, box

from geograft.commands.prepare import prepare
from geograft.config import ModelConfig, PrepareConfig, TrainConfig
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import TileSet
from geograft.losses.segmentation import LossConfig, segmentation_loss
from geograft.networks.device import find_device, memory_format_for
from geograft.networks.network import build
from geograft.training.loader import Scaling, TileLoader, TrainingData
from geograft.training.optim import build_optimizer

LIMIT = 0.1
CRS = "EPSG:32612"
TRANSFORM = Affine(0.1, 0, 528000, 0, -0.1, 4979000)
CONFIG = TrainConfig(batch_size=8, workers=0)

Result = TypeVar("Result")


def noise_scene(path: Path, size: int) -> Path:
    """Write `size` x `size` pixels of three bands of noise as a tiled, deflated GeoTIFF and return its path."""
    profile = {"driver": "GTiff", "count": 3, "height": size, "width": size, "dtype": "uint8", "compress": "deflate"}
    profile |= {"crs": CRS, "transform": TRANSFORM, "tiled": True, "blockxsize": 256, "blockysize": 256}
    pixels = np.random.default_rng(0).integers(1, 255, (3, size, size), dtype=np.uint8)
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)
    return path


def squares(path: Path, size: int) -> Path:
    """Write a square of 40 pixels for every 100 x 100 pixels and return the layer's path."""
    corners = [(row, col) for row in range(30, size - 50, 100) for col in range(30, size - 50, 100)]
    layer = geopandas.GeoDataFrame(geometry=[square(row, col) for row, col in corners], crs=CRS)
    layer.to_file(path)
    return path


def square(row: int, col: int) -> Polygon:
    """Return the outline of 40 x 40 pixels in map coordinates."""
    (left, top), (right, bottom) = TRANSFORM * (col, row), TRANSFORM * (col + 40, row + 40)
    return box(left, bottom, right, top)


def tile_set(folder: Path, size: int) -> TileSet:
    """Return a tile set of a scene of noise."""
    source = VectorSource((noise_scene(folder / "scene.tif", size),), squares(folder / "squares.gpkg", size))
    return prepare(source, folder / "tiles", PrepareConfig(split="block"))


def training_step(bands: int, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return what takes one step on a batch: forward, loss, backward, Adam."""
    network = build(ModelConfig(weights="none"), bands, 1).to(device, memory_format=memory_format_for(device)).train()
    optimizer = build_optimizer(network, CONFIG)

    def step(images: torch.Tensor, label: torch.Tensor) -> None:
        loss = segmentation_loss(network(images), label, LossConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def time_call(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that `work` took, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def ms_per_tile(tiles: TileSet, batches: int) -> tuple[float, float]:
    """Return the milliseconds per tile of loading and of training: medians over `batches`, after one warm-up batch."""
    device = torch.device(find_device("auto"))
    data = TrainingData(
        tiles.samples("train"), tiles.samples("val"), tiles.meta.legend, Scaling(tiles.meta.mean, tiles.meta.std)
    )
    stream, step = TileLoader(data, CONFIG, device).train(epoch=0), training_step(len(tiles.meta.band_names), device)
    times = []
    for _ in range(batches + 1):
        loading, (images, label) = time_call(lambda: next(stream))
        training, _ = time_call(lambda images=images, label=label: step(images, label))  # type: ignore[misc]
        times.append((1000 * loading / len(images), 1000 * training / len(images)))
    loading, training = np.median(times[1:], axis=0)
    return float(loading), float(training)


def main() -> int:
    """Print the figures and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pixels", type=int, default=2048, help="edge of the scene in pixels (default 2048)")
    parser.add_argument("--batches", type=int, default=6, help="measured batches (default 6)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loading, training = ms_per_tile(tile_set(Path(folder), arguments.pixels), arguments.batches)
    ratio = loading / training
    print(f"loading   {loading:8.2f} ms per tile (224 x 224 x 3: read, augment, normalise; no workers)")
    print(f"training  {training:8.2f} ms per tile (one training step, {torch.get_num_threads()} threads)")
    print(f"ratio     {ratio:8.3f} (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
