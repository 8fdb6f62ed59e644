"""`geograft serve` under load: clients that look at a map, move its threshold and draw labels, all at once.

    python benchmarks/bench_serve.py [--clients 8] [--minutes 10] [--pixels 8000]

The project is a real scene, mirrored until it is full, with a map and its probabilities (its green band, which is as
hard to compress as a real one). Each client, in a thread of this process, sends requests one after the other: tiles of
the image and values at random places and zooms, the area at a threshold, pixels, labels, and now and then a new label
that it deletes again. The server is a process of its own; its resident memory is read every second. Exits with 1 if an
answer is an error, other than the conflict of two clients that draw at once, or if memory exceeds 1 GB or grows by more
than a tenth from the first half of the time to the second.
"""

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import machine
from rasters import dense_raster

LIMIT_MB, MAX_GROWTH = 1000.0, 1.1
PACKAGES = ("fastapi", "uvicorn", "rasterio")
START = "import sys; from geograft.cli import main; main(sys.argv[1:])"


@dataclass
class Load:
    """What the clients have seen."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Time of each request, by what was asked for."""
    errors: Counter[str] = field(default_factory=Counter)
    conflicts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, seconds: float, status: int) -> None:
        """Count an answer."""
        with self.lock:
            self.seconds[what].append(seconds)
            if status == 409:
                self.conflicts += 1
            elif status >= 400:
                self.errors[f"{what}: {status}"] += 1


class Client:
    """One browser's worth of requests."""

    def __init__(self, address: str, token: str, load: Load, seed: int) -> None:
        self._host, self._load, self._random = address.removeprefix("http://"), load, random.Random(seed)
        self._headers = {"X-Geograft-Token": token, "Origin": address, "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection(self._host, timeout=120)
        self._layers = {each["kind"]: each for each in self.get("project", "/api/project")["layers"]}

    def run(self, until: float) -> None:
        """Send requests until a time of `time.monotonic`."""
        steps: list[Callable[[], Any]] = [self._tile] * 8 + [self._values] * 6
        steps += [self._area, self._pixel, self._draw, lambda: self.get("project", "/api/project")]
        while time.monotonic() < until:
            try:
                self._random.choice(steps)()
            except (OSError, http.client.HTTPException) as error:
                with self._load.lock:
                    self._load.errors[type(error).__name__] += 1
                self._connection.close()

    def get(self, what: str, path: str, method: str = "GET", body: Any = None, revision: str = "") -> Any:
        """Send a request, count it, and return its JSON; None for pictures and errors."""
        started = time.monotonic()
        headers = self._headers | ({"If-Match": revision} if revision else {})
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        content = answer.read()
        self._load.add(what, time.monotonic() - started, answer.status)
        is_json = answer.status == 200 and answer.headers["content-type"] == "application/json"
        return json.loads(content) if is_json else None

    def _place(self) -> tuple[float, float]:
        west, south, east, north = self._layers["image"]["bounds"]
        # The image is turned a little within its bounds in longitude and latitude: near its edges there is no pixel.
        part = [self._random.uniform(0.05, 0.95) for _ in range(2)]
        return west + part[0] * (east - west), south + part[1] * (north - south)

    def _address(self, layer: dict[str, Any], what: str) -> str:
        lon, lat = self._place()
        z = self._random.randint(layer["minzoom"], layer["maxzoom"])
        x = int((lon / 360 + 0.5) * 2**z)
        y = int((0.5 - np.arcsinh(np.tan(np.radians(lat))) / (2 * np.pi)) * 2**z)
        return f"/api/layers/{layer['id']}/{what}/{z}/{x}/{y}.png?v={layer['revision']}"

    def _tile(self) -> None:
        self.get("tile", self._address(self._layers["image"], "tiles"))

    def _values(self) -> None:
        self.get("values", self._address(self._layers["probability"], "values"))

    def _area(self) -> None:
        threshold = self._random.random()
        self.get("area", f"/api/layers/{self._layers['probability']['id']}/area?threshold={threshold}")

    def _pixel(self) -> None:
        lon, lat = self._place()
        self.get("pixel", f"/api/layers/{self._layers['image']['id']}/pixel?lng={lon}&lat={lat}")

    def _draw(self) -> None:
        (lon, lat), side = self._place(), 1e-6
        ring = [[lon, lat], [lon + side, lat], [lon + side, lat + side], [lon, lat]]
        feature = {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"class": "tree"}}
        seen = self.get("labels", "/api/labels")["revision"]
        added = self.get("draw", "/api/labels", "POST", {"feature": feature}, seen)
        while added is not None:
            seen = self.get("labels", "/api/labels")["revision"]
            if self.get("draw", f"/api/labels/{added['id']}", "DELETE", None, seen) is not None:
                break


def make_project(folder: Path, pixels: int) -> Path:
    """Write a project with a map, and return its folder."""
    from geograft.commands.project import project
    from geograft.geo.grid import block_windows
    from geograft.geo.rasters.raster import Image
    from geograft.geo.rasters.tags import sibling_path
    from geograft.geo.rasters.writer import MapLayout, class_layout, create_map
    from geograft.legend import Legend

    image = dense_raster(folder / "scene.tif", pixels)
    made = project(folder / "trees", image, ["tree"]).folder
    legend, target = Legend(("other", "tree")), made / "maps" / "scene.tif"
    tags = {"CLASS_0": "other", "CLASS_1": "tree", "GEOGRAFT_THRESHOLD": "0.5"}
    layout = MapLayout(2, nodata=255, tags=tags, band_names=legend.names, overviews="average")
    target.parent.mkdir()
    with Image.open(image) as source:
        grid = source.info.grid
        with (
            create_map(target, grid, class_layout(legend, (0, 1), tags)) as classes,
            create_map(sibling_path(target, "probabilities"), grid, layout) as probabilities,
        ):
            for window in block_windows(grid.window, 512, 512):
                codes = np.minimum(source.read(window, [2])[0], 250).astype(np.uint8)
                probabilities.write(np.concatenate([250 - codes, codes]), window)
                classes.write((codes >= 125).astype(np.uint8), window)
    return made


def resident_mb(process: int) -> float:
    """Return the resident memory of a process in MB (10^6 bytes)."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(1024 * float(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e6


def measure(folder: Path, clients: int, minutes: float) -> tuple[Load, list[float]]:
    """Return what the clients saw, and the server's memory in MB every second."""
    command = [sys.executable, "-c", START, "serve", str(folder), "--port", "0"]
    load, memory = Load(), []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = None
        while found is None:
            line = server.stderr.readline()
            if not line:
                raise RuntimeError("the server did not start")
            found = re.search(r"(http://\S+:\d+)/#(\S+)", line)
        until = time.monotonic() + 60 * minutes
        threads = [
            threading.Thread(target=Client(found[1], found[2], load, seed).run, args=(until,))
            for seed in range(clients)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(1)
            memory.append(resident_mb(server.pid))
        for thread in threads:
            thread.join()
        server.terminate()
    return load, memory


def table(load: Load) -> str:
    """Return a line for each kind of request: number, and milliseconds of the median and of 95 %."""
    lines = ["| request | number | median, ms | 95 %, ms |", "|---|---|---|---|"]
    for what, seconds in sorted(load.seconds.items()):
        late = statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
        lines.append(f"| {what} | {len(seconds):,} | {1e3 * statistics.median(seconds):.0f} | {1e3 * late:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pixels", type=int, default=8000, help="height and width of the image")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        load, memory = measure(make_project(Path(folder), options.pixels), options.clients, options.minutes)
    half = len(memory) // 2
    first, second = max(memory[:half], default=0.0), max(memory[half:], default=0.0)
    print(machine.describe(PACKAGES))
    print(table(load))
    count = sum(map(len, load.seconds.values()))
    print(
        f"{options.clients} clients for {options.minutes:g} minutes, {options.pixels:,} x {options.pixels:,} pixels: "
        f"{count:,} requests, {load.conflicts:,} conflicts, errors: {dict(load.errors)}; "
        f"resident memory up to {first:.0f} MB in the first half, {second:.0f} MB in the second"
    )
    if load.errors or second > LIMIT_MB or second > MAX_GROWTH * first:
        sys.exit(1)


if __name__ == "__main__":
    main()
