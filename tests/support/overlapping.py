"""Tiles of two independent, overlapping classes: one is bright in the first band, the other in the second."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from pyproj import CRS
from shapely import box

from geograft.config import PrepareConfig
from geograft.dataset.tileset import INDEX, META, Scene, Split, TileSetMeta
from geograft.files import write_json
from geograft.geo.grid import Window
from geograft.geo.vectors.writer import write_tiles
from geograft.legend import Legend
from geograft.training.loader import Scaling, TrainingData
from tests.support.rasters import TENTH_METRE, UTM12, write_raster

LEGEND = Legend(("red", "green"), overlapping=True)


def overlapping_tile(rng: np.random.Generator, size: int = 16) -> tuple[ndarray, ndarray]:
    """Return a 3-band image and the label (2, size, size) of both classes, NaN in a corner without image data."""
    labels = rng.integers(0, 2, (2, size // 4, size // 4)).repeat(4, 1).repeat(4, 2).astype(np.float32)
    image = rng.normal(100, 10, (3, size, size)).astype(np.float32)
    image[:2] += 60 * labels
    image[:, :3, :3], labels[:, :3, :3] = 0, np.nan
    return image, labels


def overlapping_blocks(count: int, seed: int) -> list[tuple[ndarray, ndarray]]:
    rng = np.random.default_rng(seed)
    return [overlapping_tile(rng) for _ in range(count)]


def overlapping_data(**changes: Any) -> TrainingData:
    """Return 18 training and 5 validation tiles, and `changes` to these."""
    data = TrainingData(overlapping_blocks(18, 0), overlapping_blocks(5, 1), LEGEND, Scaling((130.0,) * 3, (30.0,) * 3))
    return replace(data, **{"fingerprint": "overlapping", **changes})


def overlapping_set(folder: Path, scenes: int = 1) -> Path:
    """Write and return a tile set of both classes: 256 x 256 pixel scenes, 32-pixel tiles, 64-pixel blocks."""
    names = [f"scene{number}" for number in range(scenes)]
    rows = [row for number, name in enumerate(names) for row in _scene_rows(folder, name, number)]
    place = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)
    meta = TileSetMeta(
        LEGEND, ("a", "b", "c"), "uint8", 255, (127.0, 127.0, 100.0), (32.0, 32.0, 10.0),
        tuple(Scene(name, f"{name}.tif", name, 256, 256, 0.1, name) for name in names), place, {}, "overlapping",
        fractional=True,
    )  # fmt: skip
    outlines = [box(*(TENTH_METRE @ (w.col, w.stop_row)), *(TENTH_METRE @ (w.stop_col, w.row))) for _, w, *_ in rows]
    write_tiles(folder / INDEX, rows, outlines, LEGEND.names, CRS(UTM12))
    write_json(folder / META, asdict(meta))
    return folder


def _scene_rows(folder: Path, name: str, seed: int) -> Iterator[tuple[str, Window, Split, float, tuple[float, ...]]]:
    """Write a scene and its mask, and yield the rows of its tiles."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (2, 16, 16)).repeat(16, 1).repeat(16, 2)
    image = rng.normal(100, 10, (3, 256, 256))
    image[:2] += 60 * labels
    mask = (250 * labels).astype(np.uint8)
    # A corner where one class is unlabelled and the other is not.
    mask[0, :7, :7] = 255
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    write_raster(folder / f"{name}.tif", image.astype(np.uint8))
    write_raster(folder / "masks" / f"{name}.tif", mask, nodata=255)
    for row in range(0, 256, 32):
        for col in range(0, 256, 32):
            window = Window(row, col, 32, 32)
            block = 4 * (row // 64) + col // 64
            split: Split = "test" if block % 4 == 0 else "val" if block % 4 == 1 else "train"
            yield name, window, split, 1.0, tuple((mask[:, *window.slices] == 250).mean(axis=(1, 2)).tolist())
