"""What a map costs: processor time, bytes and requests, by a model fitted on small rasters and checked on larger ones.

    python benchmarks/bench_cost.py [RUN] [--folder build/cost] [--refit] [--write]

RUN is a finished run, by default that of `make demo`. Its network maps a textured raster in windows of two sizes, as
one worker with one thread, from files of three compressions and from a web server on loopback. Processor time is that
of the process: other work on the machine adds little to it. It is the sum of a constant, of what follows from the
counts of `job_size`, and of the network's time per window; the parts without the network are measured with a network
that returns zeros at once. Measurements are kept in the folder, and measured again with --refit. Exits with 1 if a
figure of a larger raster is more than 15 % off. --write puts the tables into docs/scale.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import file_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

import machine
import page
from cost_model import (
    COMPRESSIONS,
    WINDOWS,
    Case,
    CostModel,
    Measured,
    fit,
    fitted_cases,
    held_out_cases,
    network_windows,
)
from extrapolate import ASSUMED, extrapolation
from measured import fastest_backend
from rasters import BLOCK, dense_raster

PAGE = page.PAGE.with_name("scale.md")
LIMIT = 0.15


def raster(folder: Path, case: Case) -> Path:
    """Return the raster of a case."""
    import rasterio.shutil

    source = dense_raster(folder / f"{case.side}-deflate.tif", case.side, patch=BLOCK)
    path = folder / f"{case.side}-{case.compression}.tif"
    if not path.exists():
        options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel"}
        rasterio.shutil.copy(source, path, driver="GTiff", compress=case.compression, **options)
    return path


class _Ranges(BaseHTTPRequestHandler):
    """Serves files by ranges, and counts."""

    protocol_version = "HTTP/1.1"
    folder, lock, sent, count = Path(), threading.Lock(), 0, 0

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.folder / Path(self.path).name
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else len(content), len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        with self.lock:
            type(self).count += 1
            type(self).sent += last + 1 - first if body else 0
        if body:
            self.wfile.write(content[first : last + 1])


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, type[_Ranges]]]:
    """Yield the address of the files of a folder, and the handler that counts."""

    class Handler(_Ranges):
        pass

    Handler.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Handler
    finally:
        server.shutdown()
        server.server_close()


def predict_as_child(run: str, source: str, out: str, window_px: int, overlap: float, network: bool) -> None:
    """Map a raster as a worker in this process, and print its processor seconds and the job's number of windows."""
    import resource

    from geograft.cli import set_gdal_options

    set_gdal_options()
    import geograft
    from geograft.inference.predictor import EnsemblePredictor

    computed, predict = [0], EnsemblePredictor.__call__

    def count(self: EnsemblePredictor, pixels: ndarray, valid: ndarray) -> Any:
        computed[0] += len(pixels)
        return predict(self, pixels, valid) if network else np.zeros((len(pixels), 1, *pixels.shape[2:]), np.float32)

    EnsemblePredictor.__call__ = count  # type: ignore[method-assign]
    backend: Any = fastest_backend()
    config = geograft.PredictConfig(window_px=window_px, overlap=overlap, device="cpu", backend=backend)
    geograft.predict_units(run, source, out, config)
    used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print("\n" + json.dumps({"cpu_s": sum(each.ru_utime + each.ru_stime for each in used), "windows": computed[0]}))


def measure(case: Case, run: Path, folder: Path) -> Measured:
    """Map the raster of a case in a process of its own, with one thread."""
    source, out = raster(folder, case), folder / "out"
    with serve(folder) as (address, counter):
        where = f"{address}/{source.name}" if case.remote else str(source)
        arguments = [str(run), where, str(out), str(case.window_px), str(case.overlap_px / case.window_px)]
        command = [sys.executable, __file__, "--child", *arguments, str(int(case.network))]
        shutil.rmtree(out, ignore_errors=True)
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=one, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case.title}: {done.stderr.strip().splitlines()[-1]}")
        found = json.loads(done.stdout.splitlines()[-1])
        if found["windows"] != network_windows(case):
            raise SystemExit(
                f"{case.title}: {found['windows']} windows were computed, {network_windows(case)} expected"
            )
        written = sum(path.stat().st_size for path in (out / "units").iterdir())
        return Measured(found["cpu_s"], written, counter.sent, counter.count)


def measure_all(cases: Sequence[Case], run: Path, folder: Path, refit: bool) -> dict[Case, Measured]:
    """Measure what was not measured before with this run, which is kept in the folder."""
    with (run / "model.safetensors").open("rb") as weights:
        digest = file_digest(weights, "sha256").hexdigest()[:12]
    kept, found = folder / f"measured-{digest}.json", {}
    before = json.loads(kept.read_text()) if kept.exists() and not refit else {}
    if not before:
        # The first map with a run also exports it.
        for window in WINDOWS:
            measure(Case(1024, *window), run, folder)
    for case in cases:
        key = json.dumps(asdict(case))
        if key not in before:
            before[key] = asdict(measure(case, run, folder))
            kept.write_text(json.dumps(before))
            print(f"{case.title}: {before[key]}", file=sys.stderr, flush=True)
        found[case] = Measured(**before[key])
    return found


def block_bytes(folder: Path, case: Case) -> float:
    """Return the mean size of a stored block of a raster."""
    return raster(folder, case).stat().st_size / (-(-case.side // 512)) ** 2


def check(model: CostModel, found: Mapping[Case, Measured], stored: Callable[[Case], float]) -> tuple[str, float]:
    """Return the table of what the model says of the larger rasters, and the largest relative error."""
    rows, worst = [], 0.0
    for case, measured in found.items():
        pairs = {
            "processor s": (measured.cpu_s, model.cpu_s(case)),
        }
        if case.network:
            pairs["MB written"] = measured.output_bytes / 1e6, model.output_bytes(case) / 1e6
        if case.remote:
            pairs["MB read"] = measured.read_bytes / 1e6, model.read_bytes(case, stored(case)) / 1e6
            pairs["requests"] = measured.requests, model.requests_of(case)
        for name, (value, expected) in pairs.items():
            error = expected / value - 1
            worst = max(worst, abs(error))
            rows.append([case.title, name, f"{value:,.1f}", f"{expected:,.1f}", f"{error:+.1%}"])
    return page.table(["held-out raster", "", "measured", "model", "error"], rows), worst


def coefficients_table(model: CostModel) -> str:
    """Return the table of what was fitted."""
    pipeline = {
        "start": ("a worker's start", "s"),
        "units": ("a unit", "s"),
        **{f"decode {name}": (f"decoding blocks, {name}", "s per Mpx") for name in COMPRESSIONS},
        "window pixels": ("windows, without the network", "s per Mpx of windows"),
        "map pixels": ("blending, writing, checking", "s per Mpx of the map"),
        "requests": ("a request", "s"),
    }
    rows = [[text, f"{model.pipeline[name]:.3g}", unit] for name, (text, unit) in pipeline.items()]
    rows.append(["network, its first call", f"{model.network['first call']:.3g}", "s"])
    for window_px, _ in WINDOWS:
        rows.append([f"network, a window of {window_px}", f"{model.network[str(window_px)]:.3g}", "s"])
    rows += [
        ["blocks read, relative to those that units touch", f"{model.read['units']:.3f}", ""],
        ["blocks read, relative to those of a worker's sample", f"{model.read['sample']:.3f}", ""],
        ["requests of a job", f"{model.requests['job']:.3g}", ""],
        ["requests of a unit", f"{model.requests['units']:.3g}", ""],
        ["requests per row of blocks under a unit", f"{model.requests['rows of blocks']:.3g}", ""],
        [
            "requests per row of blocks under windows read at once",
            f"{model.requests['rows of blocks of a read']:.3g}",
            "",
        ],
        ["bytes written", f"{model.output:.3g}", "per pixel of the map"],
        ["bytes written beside", f"{model.unit_files:,.0f}", "per unit"],
    ]
    return page.table(["fitted", "", "unit"], rows)


def main() -> None:
    """Measure, fit, check and print."""
    if sys.argv[1:2] == ["--child"]:
        run, source, out, window_px, overlap, network = sys.argv[2:]
        predict_as_child(run, source, out, int(window_px), float(overlap), network == "1")
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("demo-out/run"), help="a finished run")
    parser.add_argument("--folder", type=Path, default=Path("build/cost"), help="where rasters and figures are kept")
    parser.add_argument("--refit", action="store_true", help="measure again")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    fitted, held_out = fitted_cases(), held_out_cases()
    found = measure_all([*fitted, *held_out], given.run, given.folder, given.refit)
    stored = partial(block_bytes, given.folder)
    model = fit({case: found[case] for case in fitted}, stored)
    table, worst = check(model, {case: found[case] for case in held_out}, stored)
    per_px = stored(Case(4096, *WINDOWS[0])) / 512**2
    where = machine.describe(("torch", "openvino", "onnxruntime", "rasterio"))
    parts = [
        f"One thread, backend {fastest_backend()}. {where}",
        coefficients_table(model),
        f"Largest error on held-out rasters: {worst:.1%} (limit {LIMIT:.0%}).",
        table,
        extrapolation(model, given.run, WINDOWS, per_px, ASSUMED),
    ]
    content = "\n\n".join(parts)
    print(content)
    if given.write:
        page.write_section("cost", content, PAGE)
    if worst > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
