"""Peak memory of a map and of its polygons: a very large sparse raster, a large dense one, and road networks.

    python benchmarks/bench_memory.py [--sparse-pixels 100000] [--dense-pixels 20000] [--road-pixels 5000 10000 20000]
        [--write]

The sparse raster is nodata except for five real scenes in its corners and centre, and takes a few megabytes on disk.
The dense one is a real scene, mirrored until it is full. The default network predicts with the default settings, but
without overlap on the dense raster, to save time. A road network is one polygon across a whole class map, the worst
case for `polygons`; it is polygonised as it is, and with --simplify-m 2. `geograft.predict` and `geograft.polygons`
each run in a process of their own, and the figure is its peak resident memory (VmHWM). --write puts the table into
docs/speed.md. Exits with 1 if a process other than those of the road networks reaches 1.5 GB.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import machine
import page
from measured import NotRunnableError, peak_mb, run_script
from rasters import dense_raster, road_map, sparse_raster

LIMIT_MB = 1500
PACKAGES = ("torch", "onnxruntime", "openvino", "rasterio")


@dataclass(frozen=True)
class Step:
    """One process: the command, its input and its output."""

    verb: str
    source: Path
    out: Path
    overlap: float = 0.0
    simplify: float = 0.0

    @property
    def arguments(self) -> list[str]:
        """The command line of its process, without the run."""
        return [
            "--verb",
            self.verb,
            "--source",
            str(self.source),
            "--out",
            str(self.out),
            "--overlap",
            str(self.overlap),
            "--simplify",
            str(self.simplify),
        ]


def rows(name: str, raster: Path, run: Path, overlap: float) -> list[tuple[list[str], float]]:
    """Return the table rows of one raster, each with its memory in MB."""
    with TemporaryDirectory(prefix="geograft-bench-", dir=raster.parent) as folder:
        made, outlines = Path(folder) / "map.tif", Path(folder) / "map.gpkg"
        steps = [Step("predict", raster, made, overlap), Step("polygons", made, outlines, overlap)]
        return [row(name, step, run) for step in steps]


def map_rows(given: argparse.Namespace) -> list[tuple[list[str], float]]:
    """Return the table rows of the sparse and the dense raster, each with its memory in MB."""
    from models import trained_run  # loads torch, which the process of a step need not

    found: list[tuple[list[str], float]] = []
    run = given.run or trained_run(given.folder, given.epochs)
    if size := given.sparse_pixels:
        raster = sparse_raster(given.folder / f"sparse-{size}.tif", size)
        found += rows(f"sparse, {size:,} x {size:,}", raster, run, 0.5)
    if size := given.dense_pixels:
        raster = dense_raster(given.folder / f"dense-{size}.tif", size)
        found += rows(f"dense, {size:,} x {size:,}", raster, run, given.dense_overlap)
    return found


def road_rows(size: int, folder: Path) -> list[tuple[list[str], float]]:
    """Return the table rows of the polygon of one road network, each with its memory in MB."""
    made, found = road_map(folder / f"roads-{size}.tif", size), []
    for simplify in (0.0, 2.0):
        with TemporaryDirectory(prefix="geograft-bench-", dir=folder) as scratch:
            step = Step("polygons", made, Path(scratch) / "roads.gpkg", simplify=simplify)
            found.append(row(f"roads, {size:,} x {size:,}{', simplified' if simplify else ''}", step, folder))
    return found


def row(name: str, step: Step, run: Path) -> tuple[list[str], float]:
    """Return one table row, and the memory in MB."""
    found = run_script("bench_memory.py", "--run", str(run), *step.arguments)
    line = [f"{name}, {step.verb}", f"{found['peak_mb']:,.0f}", f"{found['seconds']:,.0f}", _size(step.out)]
    print(f"  {': '.join(line[:2])} MB, {line[2]} s, {line[3]} MB written", flush=True)
    return line, float(found["peak_mb"])


def work(given: argparse.Namespace) -> None:
    """Make a map or its polygons in this process, or only import, and print time and memory as JSON."""
    from geograft.cli import set_gdal_options

    set_gdal_options()
    if given.verb == "polygons":
        from geograft import PolygonConfig, polygons
    else:
        from geograft import PredictConfig, predict
    start = time.perf_counter()
    if given.verb == "predict":
        predict(given.run, (given.source,), given.out, PredictConfig(overlap=given.overlap))
    elif given.verb == "polygons":
        polygons(given.source, given.out, PolygonConfig(simplify_m=given.simplify))
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}))


def arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sparse-pixels",
        type=int,
        default=100_000,
        help="edge of the sparse raster in pixels; 0 skips it (default 100000)",
    )
    parser.add_argument(
        "--dense-pixels",
        type=int,
        default=20_000,
        help="edge of the dense raster in pixels; 0 skips it (default 20000)",
    )
    parser.add_argument(
        "--dense-overlap", type=float, default=0.0, help="overlap of the dense raster's tiles (default 0)"
    )
    parser.add_argument(
        "--road-pixels",
        type=int,
        nargs="*",
        default=[5_000, 10_000, 20_000],
        help="edges of the road networks in pixels; none skips them (default 5000 10000 20000)",
    )
    parser.add_argument("--epochs", type=int, default=6, help="epochs to train the run (default 6)")
    parser.add_argument("--run", type=Path, help="a finished run to predict with; default: train one")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/bench"), help="where the run and the rasters are cached"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/speed.md")
    for name, kind in {"verb": str, "source": Path, "out": Path, "overlap": float, "simplify": float}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # set for the process of one step
    return parser.parse_args()


def main() -> int:
    """Print the table and return the exit status."""
    given = arguments()
    if given.verb:
        work(given)
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    idle = float(run_script("bench_memory.py", "--verb", "nothing")["peak_mb"])
    found: list[tuple[list[str], float]] = [(["imports only", f"{idle:,.0f}", "", ""], idle)]
    if given.sparse_pixels or given.dense_pixels:
        found += map_rows(given)
    roads = [line for size in given.road_pixels for line in road_rows(size, given.folder)]
    table = page.table(["", "memory, MB", "seconds", "written, MB"], [line for line, _ in found + roads])
    text = f"{machine.describe(PACKAGES)}\n\n{table}"
    print(text)
    if given.write:
        page.write_section("memory", text)
    return int(any(peak >= LIMIT_MB for _, peak in found))


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NotRunnableError as error:
        sys.exit(f"A step failed: {error}")
