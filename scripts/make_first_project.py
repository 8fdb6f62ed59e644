"""Make the first project of docs/first-project.md: run its commands, put their output into the page, draw its pictures.

python scripts/make_first_project.py [FOLDER]

The crowns of the embedded scene stand in for the person who draws. Needs QGIS for /usr/bin/python3; trains for minutes.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import shapely

from geograft.geo.vectors.label_file import Area, Label, LabelFile, read_label_file, write_label_file
from geograft.geo.vectors.reader import read_polygons

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "src" / "geograft" / "data" / "yellowstone" / "training"
PAGE, PICTURES = ROOT / "docs" / "first-project.md", ROOT / "docs" / "first-project"
QGIS_PYTHON = "/usr/bin/python3"
LEFT, TOP, PIXEL_M = 528000, 4979000, 0.1
TRAINING = ((250, 700), (900, 1500), (1500, 300), (1800, 1600))
"""Rows and columns of the training areas."""
TRAINING_PX = 400
SCORED = 8
"""Number of random scoring areas that are labelled."""
DETAIL = (528055, 4978925, 528125, 4978985)
"""What pictures of details show: minimum x, minimum y, maximum x, maximum y."""


PROGRESS = re.compile(r"^(?!epoch)[\w .]+: [\d.,]+ of [\d.,]+ .* left$|^epoch ([2-9]|1\d) of (?!\1:)")
"""Lines of bars, and of epochs but the first and the last, which are left out of the page."""


def training_areas() -> list[Area]:
    """Return the areas that a person draws to train on."""
    side = TRAINING_PX * PIXEL_M
    corners = [(LEFT + col * PIXEL_M, TOP - row * PIXEL_M) for row, col in TRAINING]
    return [Area(shapely.box(x, y - side, x + side, y), "training", labelled=True) for x, y in corners]


def label_areas(path: Path) -> LabelFile:
    """Label the training areas and the first random scoring areas with the crowns of the scene."""
    content = read_label_file(path)
    random = [replace(area, labelled=area.rank is not None and area.rank <= SCORED) for area in content.areas]
    areas = [*random, *training_areas()]
    labelled = shapely.union_all([area.shape for area in areas if area.labelled])
    crowns = read_polygons(SCENE.with_suffix(".gpkg"), content.crs, "class").shapes
    drawn = [Label(crown, "tree") for crown in crowns if crown.intersects(labelled)]
    write_label_file(path, areas, drawn, content.crs)
    return content


def run(folder: Path, *arguments: str) -> str:
    """Return what a command prints, messages first; it runs in `folder`."""
    command = [sys.executable, "-m", "geograft", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    lines = f"{done.stderr}{done.stdout}".replace(f"{folder.resolve()}/", "").rstrip().splitlines()
    return "\n".join(line for line in lines if not PROGRESS.search(line))


def draw(project: Path, name: str, extent: tuple[float, ...] = ()) -> None:
    """Draw what QGIS shows of the project."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    script = ROOT / "tests" / "support" / "qgis_project.py"
    zoom = ["--extent", ",".join(map(str, extent))] if extent else []
    command = [QGIS_PYTHON, str(script), str(project), "--picture", str(PICTURES / f"{name}.jpg"), *zoom]
    subprocess.run(command, env=environment | {"QT_QPA_PLATFORM": "offscreen"}, check=True, stdout=subprocess.DEVNULL)


def with_output(page: str, command: str, output: str) -> str:
    """Return a page with `output` in the code block that begins with `command`."""
    pattern = re.compile(rf"(```console\n\$ {re.escape(command)}\n).*?```", re.DOTALL)
    assert pattern.search(page), f"the page has no block of {command}"
    return pattern.sub(lambda found: f"{found[1]}{output}\n```", page)


def make(folder: Path) -> None:
    """Run the commands of the page in `folder`, and write its pictures and the page."""
    PICTURES.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(SCENE.with_suffix(".tif"), folder / "scene.tif")
    commands = ["project trees scene.tif --classes tree", "go trees"]
    project = folder / "trees" / "project.qgz"
    page = PAGE.read_text(encoding="utf-8")
    page = with_output(page, f"geograft {commands[0]}", run(folder, *commands[0].split()))
    draw(project, "areas")
    label_areas(folder / "trees" / "labels.gpkg")
    draw(project, "labels", DETAIL)
    page = with_output(page, f"geograft {commands[1]}", run(folder, *commands[1].split()))
    draw(project, "map", DETAIL)
    draw(project, "next")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        make(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as temporary:
            make(Path(temporary))
