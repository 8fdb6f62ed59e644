"""Compare three pieces of our own code with the library that could replace each.

    python benchmarks/bench_libraries.py [outlines | overviews | ema] [--map-pixels 2048] [--sparse-pixels 30000]

- outlines: `simplify_and_smooth` and `shapely.coverage_simplify` on a synthetic class map, in batches of regions as
  `geograft polygons` works, and on the whole map at once. `simplify` includes adding the vertices where regions meet,
  which a valid coverage needs; `simplifier alone` does not. Displacement: Hausdorff distance of a region's boundary.
- overviews: `create_map`, which computes its overviews and reads the file back, and GDAL's COG driver, on a dense map
  and on a sparse one with five small places. The pixels are those with data in the first overview.
- ema: `ModelEMA` and torch's `AveragedModel` with its own EMA functions, on the default network with random weights.

The first two measure in processes of their own; memory is the growth of the peak resident memory after the imports.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from numpy import ndarray
from scipy import ndimage

import machine
import page
from geograft.cli import set_gdal_options
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.writer import BLOCK_PX, TILED_OPTIONS, MapLayout, create_map
from geograft.legend import IGNORE
from geograft.mapping.polygons.arcs import cut_into_arcs
from geograft.mapping.polygons.regions import BLOCK_PX as REGIONS_PX
from geograft.mapping.polygons.regions import ClassMapSource, RegionMerger, finish_row
from geograft.mapping.polygons.shapes import Corners, as_array
from geograft.mapping.polygons.simplify import reach_px, simplify_and_smooth
from measured import NotRunnableError, peak_mb
from rasters import corners_and_centre, mirror_window

CLASSES, SMOOTHING_PX, RAGGEDNESS = 4, 14, 0.004
TOLERANCE_PX, REPEATS = 1.0, 3
"""Tolerance of simplification, and how often it is timed: the fastest counts."""
PLACE_PX = 1024
"""Edge of the synthetic map that fills the overview maps."""
STEPS, UPDATES = 5, 30
"""EMA updates before the tensors are compared, and in all: the median time counts."""


def noise(pixels: int, rng: np.random.Generator) -> ndarray:
    """Return (pixels, pixels) float32 of smooth noise with a little fine noise, which makes outlines ragged."""
    smooth, fine = (rng.standard_normal((pixels, pixels), np.float32) for _ in range(2))
    return ndimage.gaussian_filter(smooth, SMOOTHING_PX) + RAGGEDNESS * ndimage.gaussian_filter(fine, 1)


def class_map(pixels: int) -> ndarray:
    """Return a (pixels, pixels) uint8 map of four classes, the same in every call."""
    rng = np.random.default_rng(0)
    return np.argmax([noise(pixels, rng) for _ in range(CLASSES)], axis=0).astype(np.uint8)


def region_batches(values: ndarray, reach: int) -> Iterator[tuple[ndarray, Corners]]:
    """Yield the regions of a map in batches, with all corners near them, from at least 2 x 2 blocks."""
    inside = np.ones(values.shape, bool)
    source = ClassMapSource(*values.shape, lambda window: (np.array(values[window.slices]), inside[window.slices]))
    merger, block_px = RegionMerger(source.width, 4, reach), min(REGIONS_PX, source.width // 2)
    for row in source.block_rows(block_px):
        for found in finish_row(source, merger, row, block_px, reach):
            if found.regions:
                yield as_array(region.shape for region in found.regions), found.corners


def merge_batches(batches: Iterable[tuple[ndarray, Corners]]) -> tuple[ndarray, Corners]:
    """Return all batches as a single one."""
    shapes, corners = zip(*batches, strict=True)
    sides = ([side.turns for side in corners], [side.nodes for side in corners])
    return np.concatenate(shapes), Corners(*(np.unique(np.concatenate(side), axis=0) for side in sides))


def simplify(values: ndarray, name: str, whole: bool) -> Iterator[tuple[ndarray, ndarray, ndarray]]:
    """Yield regions, the same regions simplified, and the seconds of that: in all, and of the simplifier alone."""
    batches = region_batches(values, reach_px(TOLERANCE_PX, 0))
    for shapes, corners in [merge_batches(batches)] if whole else batches:
        start = middle = time.perf_counter()
        if name == "ours":
            result = simplify_and_smooth(shapes, corners, TOLERANCE_PX, 0)
        else:
            rings = cut_into_arcs(shapes, corners.nodes)
            coverage = rings.with_arcs(rings.arcs)
            middle = time.perf_counter()
            result = shapely.coverage_simplify(coverage, TOLERANCE_PX)
        end = time.perf_counter()
        yield shapes, result, np.array([end - start, end - middle])


def time_simplification(values: ndarray, name: str, whole: bool) -> list[float]:
    """Return the seconds from pixels to simplified polygons, those of `simplify`, and the vertices left."""
    begin, seconds, vertices = time.perf_counter(), np.zeros(2), 0
    for _, result, spent in simplify(values, name, whole):
        seconds += spent
        vertices += int(shapely.get_num_coordinates(result).sum())
    return [time.perf_counter() - begin, *seconds.tolist(), vertices]


def outlines_job(name: str, whole: bool, path: str) -> list[float]:
    """Return the row of one way of simplifying the map at `path`."""
    values, idle = np.load(path, mmap_mode="r"), peak_mb()
    fastest = np.min([time_simplification(values, name, whole) for _ in range(REPEATS)], axis=0)
    memory = peak_mb() - idle
    before, after = map(np.concatenate, list(zip(*simplify(values, name, whole), strict=True))[:2])
    moved = shapely.hausdorff_distance(shapely.boundary(before), shapely.boundary(after)).max()
    union = shapely.union_all(after).area
    topology = np.round([shapely.area(after).sum() - union, values.size - union], 3) + 0.0  # no -0.0
    return [*fastest.tolist(), float(moved), *topology.tolist(), memory]


def outlines_table(given: argparse.Namespace, folder: Path) -> str:
    """Return the table of ways to simplify outlines."""
    path, rows = folder / "classes.npy", []
    np.save(path, class_map(given.map_pixels))
    for whole, name in product((False, True), ("ours", "coverage_simplify")):
        found = run_job("outlines", name=name, whole=whole, path=str(path))
        cells = [*(f"{number:.2f}" for number in found[:3]), f"{found[3]:,.0f}"]
        cells += [*(f"{number:,.1f}" for number in found[4:7]), f"{found[7]:,.0f}"]
        rows.append([f"{name}, {'whole map' if whole else 'in batches'}", *cells])
    head = ["", "total, s", "simplify, s", "simplifier alone, s", "vertices", "displacement, px"]
    return page.table([*head, "overlap, px²", "gaps, px²", "memory, MB"], rows)


def pixels_of_map(size: int, method: str, sparse: bool) -> Iterator[tuple[Window, ndarray]]:
    """Yield windows of a map and their (1, h, w) pixels: classes for `mode`, values of 0 to 250 for `average`."""
    edge = min(PLACE_PX, size // 4)
    values = noise(edge, np.random.default_rng(0))
    place = class_map(edge) if method == "mode" else (125 + 3000 * values).clip(0, 250).astype(np.uint8)
    corners = corners_and_centre(size, edge, edge) if sparse else [(row, 0) for row in range(0, size, BLOCK_PX)]
    for row, col in corners:
        height, width = (edge, edge) if sparse else (min(BLOCK_PX, size - row), size)
        yield Window(row, col, height, width), mirror_window(place[None], 0 if sparse else row, 0, height, width)


def write_ours(path: Path, grid: Grid, method: str, sparse: bool) -> None:
    """Write a map with `create_map`."""
    with create_map(path, grid, MapLayout(nodata=IGNORE, overviews=method)) as writer:
        for window, pixels in pixels_of_map(grid.height, method, sparse):
            writer.write(pixels, window)


def write_gdal(path: Path, grid: Grid, method: str, sparse: bool) -> None:
    """Write a map as a sparse GeoTIFF and copy it with GDAL's COG driver, with the same blocks and compression."""
    plain = path.with_suffix(".plain.tif")
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": grid.height, "width": grid.width}
    profile |= {"nodata": IGNORE, "transform": grid.transform, "crs": grid.crs, **TILED_OPTIONS, "zlevel": 1}
    with rasterio.open(plain, "w", **profile, blockxsize=BLOCK_PX, blockysize=BLOCK_PX, sparse_ok=True) as raster:
        for window, pixels in pixels_of_map(grid.height, method, sparse):
            raster.write(pixels, window=window.to_rasterio())
    options = {"COMPRESS": "DEFLATE", "PREDICTOR": "STANDARD", "BLOCKSIZE": BLOCK_PX, "BIGTIFF": "IF_SAFER"}
    options |= {"SPARSE_OK": True, "OVERVIEW_RESAMPLING": method.upper()}
    rasterio.shutil.copy(plain, path, driver="COG", **options)


def overviews_job(name: str, size: int, method: str, sparse: bool, path: str) -> list[float]:
    """Return the seconds of writing a map, the file's size and the memory."""
    grid, idle = Grid(size, size, Affine(1, 0, 500000, 0, -1, 4980000), rasterio.CRS.from_epsg(32612)), peak_mb()
    start = time.perf_counter()
    (write_ours if name == "ours" else write_gdal)(Path(path), grid, method, sparse)
    return [time.perf_counter() - start, Path(path).stat().st_size, peak_mb() - idle]


def differing_fraction(one: Path, other: Path) -> float:
    """Return the fraction of the first overview's pixels that differ, of those with data in either file."""
    differ = known = 0
    with rasterio.open(one, overview_level=0) as first, rasterio.open(other, overview_level=0) as second:
        for row in range(0, first.height, BLOCK_PX):
            window = Window(row, 0, min(BLOCK_PX, first.height - row), first.width).to_rasterio()
            a, b = first.read(1, window=window), second.read(1, window=window)
            differ, known = differ + int((a != b).sum()), known + int(((a != IGNORE) | (b != IGNORE)).sum())
    return differ / known


def overviews_table(given: argparse.Namespace, folder: Path) -> str:
    """Return the table of maps with overviews by us and by GDAL."""
    rows = []
    for sparse, method in product((False, True), ("mode", "average")):
        paths = {name: folder / f"{name}-{len(rows)}.tif" for name in ("ours", "GDAL")}
        size = given.sparse_pixels if sparse else given.dense_pixels
        cells = {}
        for name, path in paths.items():
            job = {"name": name, "size": size, "method": method, "sparse": sparse, "path": str(path)}
            try:
                seconds, *rest = run_job("overviews", given.limit if name == "GDAL" else None, **job)
                cells[name] = [f"{seconds:.1f}", *(f"{number:,.0f}" for number in rest)]
            except subprocess.TimeoutExpired:
                cells[name] = [f"stopped at {given.limit:g} s", "", ""]
        pairs = [cell for pair in zip(*cells.values(), strict=True) for cell in pair]
        differ = f"{differing_fraction(*paths.values()):.2%}" if cells["GDAL"][1] else ""
        rows.append([f"{'sparse' if sparse else 'dense'}, {size:,} x {size:,}, {method}", *pairs, differ])
    head = [f"{name}, {unit}" for unit in ("s", "bytes", "memory, MB") for name in ("ours", "GDAL")]
    return page.table(["", *head, "pixels that differ"], rows)


def ema_table(_given: argparse.Namespace, _folder: Path) -> str:
    """Return the table of moving averages of the default network's weights."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

    from geograft.config import ModelConfig, TrainConfig
    from geograft.networks.network import build
    from geograft.training.optim import EMA_WARMUP, ModelEMA

    def with_warmup(averages: Any, values: Any, n_averaged: Any) -> None:
        step = int(n_averaged) - 1
        get_ema_multi_avg_fn(min(decay, (1 + step) / (EMA_WARMUP + step)))(averages, values, n_averaged)

    torch.manual_seed(0)
    network, decay = build(ModelConfig(weights="none"), 3, 1), TrainConfig().ema
    warm = "get_ema_multi_avg_fn, our warm-up"
    averages = {
        "ModelEMA": ModelEMA(network, decay),
        warm: AveragedModel(network, multi_avg_fn=with_warmup, use_buffers=True),
        "get_ema_multi_avg_fn": AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True),
        "get_ema_avg_fn": AveragedModel(network, avg_fn=get_ema_avg_fn(decay), use_buffers=True),
    }
    averages[warm].n_averaged.fill_(1)  # the initial weights count, as in ours
    times, rows = {name: [] for name in averages}, []
    for step in range(UPDATES):
        for tensor in network.state_dict().values():
            tensor.add_(0.01 * torch.randn_like(tensor) if tensor.is_floating_point() else 1)
        for name, average in averages.items():
            start = time.perf_counter()
            average.update_parameters(network)
            times[name].append(1000 * (time.perf_counter() - start))
        if step + 1 == STEPS:
            rows = [[name, *equal_tensors(averages["ModelEMA"], average)] for name, average in averages.items()]
    head = ["", f"weights equal to ours after {STEPS} steps", "integer buffers equal", "ms per update"]
    return page.table(head, [[*row, f"{np.median(times[row[0]]):.1f}"] for row in rows])


def equal_tensors(ours: Any, theirs: Any) -> list[str]:
    """Return how many floating-point tensors of two averages are equal to the bit, and how many integer ones."""
    equal = {True: [], False: []}
    for a, b in zip(ours.module.state_dict().values(), theirs.module.state_dict().values(), strict=True):
        equal[a.is_floating_point()].append(bool((a == b).all()))
    return [f"{sum(same)} of {len(same)}" for same in (equal[True], equal[False])]


TABLES = {"outlines": outlines_table, "overviews": overviews_table, "ema": ema_table}
JOBS = {"outlines": outlines_job, "overviews": overviews_job}


def run_job(job: str, limit_s: float | None = None, **settings: Any) -> list[float]:
    """Return the figures of one measurement, made in a process of its own.

    Raises:
        NotRunnableError: if it fails.
        subprocess.TimeoutExpired: if it takes longer than `limit_s` seconds; it is killed.
    """
    command = [sys.executable, __file__, "--job", json.dumps([job, settings])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    if done.returncode:
        raise NotRunnableError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout)


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", choices=TABLES, help="default: all")
    sizes = {"map": (2048, "simplified map"), "dense": (4096, "dense map"), "sparse": (30_000, "sparse map")}
    for name, (size, what) in sizes.items():
        parser.add_argument(f"--{name}-pixels", type=int, default=size, help=f"edge of the {what} (default {size})")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which GDAL is stopped (default 120)")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)  # set for the process of one measurement
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    set_gdal_options()
    given = arguments()
    if given.job:
        print(json.dumps(JOBS[given.job[0]](**given.job[1])))
        return
    print(machine.describe(("shapely", "rasterio", "torch")))
    for part in [given.part] if given.part else TABLES:
        with TemporaryDirectory(prefix="geograft-bench-") as folder:
            print(f"\n{part}:\n\n{TABLES[part](given, Path(folder))}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except NotRunnableError as error:
        sys.exit(f"A measurement failed: {error}")
