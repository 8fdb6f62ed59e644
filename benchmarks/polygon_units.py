"""Polygons by units: what tracing, the tree of joins and the file take, and how far more workers can shorten it.

    python benchmarks/polygon_units.py [--side 16384] [--folder FOLDER] [--write]

A map of four classes, patches and a net of roads through all of it, is polygonised by one process and by one worker,
each on one core. The files must have the same bytes. Seconds of units and joins are those of their receipts; the rest
of the worker's time, without its start, is what one worker alone can do: it gathers the polygons and writes the file.
--write puts the table into docs/scale.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy import ndarray
from scipy.ndimage import gaussian_filter

import machine
import page
from bench_scale import empty_folder, measure
from geograft.text import pluralise

PAGE = page.PAGE.with_name("scale.md")
TILE_PX, SMOOTHING_PX = 4096, 8
PROFILE = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32612", "compress": "deflate", "tiled": True}
PIXEL_M = 0.5


def class_map(side: int) -> ndarray:
    """Return a map of three classes in patches, repeated, and of roads, uint8 (side, side)."""
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((TILE_PX, TILE_PX), np.float32), SMOOTHING_PX)
    low, high = np.quantile(noise, [0.5, 0.8])
    patches = (1 + (noise > low) + (noise > high)).astype(np.uint8)
    count = -(-side // TILE_PX)
    values: ndarray = np.tile(patches, (count, count))[:side, :side]
    along = np.arange(side)
    for start in range(0, side, 400):
        rows = np.rint(start + 200 + 30 * np.sin(along / 200)).astype(int)
        for width in range(6):
            values[np.clip(rows + width, 0, side - 1), along] = 4
            values[along, np.clip(rows + width, 0, side - 1)] = 4
    return values


def write_map(path: Path, side: int) -> Path:
    """Write the map as a tiled GeoTIFF."""
    grid = {"width": side, "height": side, "transform": Affine(PIXEL_M, 0, 5e5, 0, -PIXEL_M, 5e6)}
    with rasterio.open(path, "w", **PROFILE, **grid, blockxsize=512, blockysize=512) as file:
        file.write(class_map(side), 1)
    return path


def seconds_of(out: Path) -> list[list[float]]:
    """Return the seconds of each unit of a job, and of the joins of each level."""
    levels: dict[int, list[float]] = {}
    for path in (out / "state").glob("*-c*.done.json"):
        level = int(path.name.partition("-")[0][1:]) if path.name.startswith("j") else 0
        levels.setdefault(level, []).append(json.loads(path.read_bytes())["seconds"])
    return [levels[level] for level in sorted(levels)]


def report(folder: Path, side: int) -> str:
    """Measure, and return the text."""
    folder.mkdir(parents=True, exist_ok=True)
    common = ["polygons", str(write_map(folder / "map.tif", side)), "--out"]
    alone, _ = measure([[*common, str(folder / "polygons.gpkg")]])
    whole, _ = measure([[*common, str(folder / "job"), "--worker"]])
    idle, _ = measure([[*common, str(folder / "job"), "--worker"]])
    if (folder / "job" / "polygons.gpkg").read_bytes() != (folder / "polygons.gpkg").read_bytes():
        raise SystemExit("the file of the worker has other bytes than that of one process")
    units, *joins = seconds_of(folder / "job")
    joined = sum(map(sum, joins))
    file = whole - idle - sum(units) - joined
    longest = sum(max(level) for level in (units, *joins)) + file
    rows = [
        ["one process", f"{alone:.1f}"],
        ["one worker", f"{whole:.1f}"],
        [f"its {len(units)} units", f"{sum(units):.1f}"],
        [f"its {pluralise(sum(map(len, joins)), 'join')}", f"{joined:.1f}"],
        ["its file", f"{file:.1f}"],
        ["start of a worker", f"{idle:.1f}"],
    ]
    return (
        f"{side:,} x {side:,} pixels, one core. {machine.describe(('shapely', 'pyogrio', 'numpy'))}\n\n"
        f"{page.table(['', 'seconds'], rows)}\n\n"
        f"The slowest unit, the slowest join of each level and the file, one after another, take {longest:.1f} s: any "
        f"number of workers do at most **{(whole - idle) / longest:.1f} times** what one does."
    )


def main() -> None:
    """Parse the options, and report in a folder that is removed at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=16384, help="pixels of the map's sides (default 16384)")
    parser.add_argument("--folder", type=Path, help="folder for the files, which is emptied")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    chosen = parser.parse_args()
    with empty_folder(chosen.folder) as folder:
        content = report(folder, chosen.side)
    print(content)
    if chosen.write:
        page.write_section("polygon workers", content, PAGE)


if __name__ == "__main__":
    main()
