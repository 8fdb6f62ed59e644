"""Seconds from the first labels on the page of `geograft serve` to the quick map of the view, on the demo's scene.

    python benchmarks/bench_first_map.py [--rounds 3] [--write]

The command is run as a user would; requests are those of the page. In each round a training area and two of the scene's
crowns are added, and the time is taken until the layers of the quick map are listed, and until they are new after one
more crown. --write puts the table into docs/serve.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import geopandas
import shapely

import machine
import page
from geograft.commands.demo import LITE0
from geograft.commands.project import project
from geograft.config.recipes import AreaConfig
from rasters import SCENE

PAGE = page.PAGE.with_name("serve.md")
GIVE_UP_S = 120


class Client:
    """The page's requests to a server that is started for a project."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "geograft", "serve", str(folder), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout
        line = next(line for line in self.process.stdout if "http://" in line)
        self.origin, _, self.token = line.split()[-1].partition("/#")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer to a request, as JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Geograft-Token": self.token, "Origin": self.origin, "Content-Type": "application/json"}
        if path.startswith(("/api/labels", "/api/areas")) and method == "POST":
            headers["If-Match"] = str(self.ask("GET", "/api/labels")["revision"])
        request = urllib.request.Request(self.origin + path, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def quick(self) -> dict[str, Any]:
        """Return the revisions of the quick map's layers by id."""
        layers = self.ask("GET", "/api/project")["layers"]
        return {layer["id"]: layer["revision"] for layer in layers if "quick" in layer["title"].lower()}

    def seconds_until_new(self, before: dict[str, Any]) -> float:
        """Return how long it takes until the layers of the quick map are others than `before`."""
        began = time.monotonic()
        while (found := self.quick()) == before or not found:
            if time.monotonic() - began > GIVE_UP_S:
                raise TimeoutError(f"no quick map after {GIVE_UP_S} s")
            time.sleep(0.05)
        return time.monotonic() - began


def feature(shape: shapely.Geometry, **properties: Any) -> dict[str, Any]:
    """Return the body of a new label or area."""
    return {"feature": {"type": "Feature", "geometry": shapely.geometry.mapping(shape), "properties": properties}}


def first_map(folder: Path) -> tuple[float, float]:
    """Return the seconds to the first quick map, and to the next one after another label."""
    made = project(folder / "trees", SCENE, ["crown"], AreaConfig(scoring_areas=1)).folder
    settings = made / "project.toml"
    settings.write_text(settings.read_text() + "\n[model]\n" + "".join(f'{k} = "{v}"\n' for k, v in LITE0.items()))
    crowns = geopandas.read_file(SCENE.with_suffix(".gpkg")).to_crs(4326).geometry
    areas = geopandas.read_file(made / "labels.gpkg", layer="areas").to_crs(4326).geometry
    near = [crown for crown in crowns if not areas.intersects(crown).any()]
    near = sorted(near, key=lambda crown: crown.distance(near[len(near) // 2]))[:3]
    client = Client(made)
    try:
        project_now = client.ask("GET", "/api/project")
        client.ask("PUT", "/api/view", {"bounds": project_now["bounds"]})
        time.sleep(20)  # a person draws meanwhile, and the libraries are loaded
        around = shapely.box(*shapely.unary_union(near).bounds).buffer(2e-5, join_style="mitre")
        client.ask("POST", "/api/areas", feature(around, role="training", labelled=True))
        for crown in near[:2]:
            client.ask("POST", "/api/labels", feature(crown, **{"class": "crown"}))
        one = client.seconds_until_new({})
        time.sleep(5)
        before = client.quick()
        client.ask("POST", "/api/labels", feature(near[2], **{"class": "crown"}))
        return one, client.seconds_until_new(before)
    finally:
        client.process.terminate()
        client.process.wait()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--write", action="store_true", help="put the table into docs/serve.md")
    given = parser.parse_args()
    found = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(first_map(Path(folder)))
            print(found[-1], file=sys.stderr, flush=True)
    rows = [
        [name, *(f"{seconds:.1f}" for seconds in sorted(values))]
        for name, values in zip(("first labels", "one more label"), zip(*found, strict=True), strict=True)
    ]
    head = ["seconds until the quick map is there", *(f"round {i + 1}" for i in range(given.rounds))]
    content = f"{page.table(head, rows)}\n\n{machine.describe(('torch', 'timm'))}"
    print(content)
    if given.write:
        page.write_section("first-map", content, PAGE)


if __name__ == "__main__":
    main()
