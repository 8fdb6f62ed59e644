"""The valid inputs and commands of scripts/fuzz_inputs.py, and edits that damage a file."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import geopandas
import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from shapely import box

ANY, SAME, REFUSED, ACCEPTED = "any", "same", "refused", "accepted"
"""What a case may end in: success or error; error, or success with the result of the valid input; error; success."""


@dataclass(frozen=True)
class Place:
    """Where a case edits its input: a folder of copies, a random generator, and the address of the server."""

    folder: Path
    random: Random
    server: str


Edit = Callable[[Place], None]


@dataclass(frozen=True)
class Command:
    """A valid command: its arguments, and the inputs that are copied for it. Paths are relative to the folder."""

    arguments: tuple[str, ...]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One hostile input or option."""

    family: str
    name: str
    command: Command
    edit: Edit = lambda place: None
    options: tuple[str, ...] = ()
    """Further arguments at the end."""
    expected: str = ANY


TILING = (
    "--tile-px", "32", "--overlap", "0", "--split", "block", "--block-px", "64", "--buffer-px", "0", "--val", "0.2",
    "--test", "0.2",
)  # fmt: skip
TRAINING = (
    "--architecture", "unet", "--batch-size", "8", "--decoder-lr", "3e-3", "--device", "cpu", "--workers", "0",
)  # fmt: skip
TORCH = ("--device", "cpu", "--backend", "torch")
SCENE = "6010_1_2"


def command(text: str, *inputs: str, options: Sequence[str] = ()) -> Command:
    """Return a command from its words."""
    return Command((*text.split(), *options), inputs)


PREPARE = command("prepare vector scene.tif --labels labels.gpkg --out q", "scene.tif", "labels.gpkg", options=TILING)
GEOJSON = command("prepare vector scene.tif --labels l.geojson --out q", "scene.tif", "l.geojson", options=TILING)
AOI = Command((*GEOJSON.arguments, "--aoi", "aoi.geojson"), (*GEOJSON.inputs, "aoi.geojson"))
MASKS = command("prepare masks images masks --classes 1=a,2=b --out q", "images", "masks", options=("--tile-px", "32"))
DSTL = command("prepare dstl dstl --classes 5 --out q --tile-px 32 --val 0 --test 0", "dstl")
AUDIT = command("audit tiles", "tiles")
TRAIN = command("train tiles --out new --epochs 1", "tiles", options=TRAINING)
RESUME = command("train tiles --out partial --resume --epochs 2", "tiles", "partial", options=TRAINING)
FINE_TUNE = command("train tiles --out new --epochs 1 --start run", "tiles", "run", options=TRAINING)
EVALUATE = command("evaluate run --tiles tiles", "run", "tiles")
CALIBRATE = command("calibrate run --tiles tiles", "run", "tiles")
REVIEW = command("review run --tiles tiles --out r", "run", "tiles")
PREDICT = command("predict run scene.tif --out m.tif", "run", "scene.tif", options=TORCH)
CONTINUE = command("predict run scene.tif --out m.tif --window-px 64", "run", "scene.tif", "ledger", options=TORCH)
APPLICABILITY = command("predict run scene.tif --out m.tif --applicability", "run", "scene.tif", options=TORCH)
SUGGEST = command("suggest run other.tif --out s.gpkg --tiles 3", "run", "other.tif", options=TORCH)
POLYGONS = command("polygons map.tif --out p.geojson", "map.tif")
SAMPLE = command("sample map.tif --out s.gpkg", "map.tif")
AREA = command("area map.tif points.gpkg", "map.tif", "points.gpkg")
JACCARD = command(f"jaccard {SCENE}.csv --labels dstl", f"{SCENE}.csv", "dstl")
REPORT = command("report run", "run")
MODEL = command("model unet")
PROJECT = command("project new scene.tif --classes field --scoring-areas 2 --area-px 32", "scene.tif")
AREAS = command("prepare vector scene.tif --labels p/labels.gpkg --out q --tile-px 32 --buffer-px 4", "scene.tif", "p")
IMPORT = command("project p --import l.geojson --class field", "scene.tif", "p", "l.geojson")
IMPORT_MASK = command("project p --import map.tif --class field", "scene.tif", "p", "map.tif")
BUNDLE = command("show run.graft", "run.graft")
COMPARE = command("compare tiles --recipe recipe.toml --out c", "tiles", "recipe.toml", options=("--device", "cpu"))
RECIPE = command("train tiles --out new --recipe recipe.toml --device cpu --workers 0", "tiles", "recipe.toml")

# ------------------------------------------------------------------------------------------------------ valid inputs

UTM12, TENTH_METRE = "EPSG:32612", Affine(0.1, 0, 528000, 0, -0.1, 4979000)
RECIPE_TEXT = """title = "Two"
[model]
architecture = "unet"
[train]
epochs = 1
batch_size = 8
decoder_lr = 3e-3
[[variants]]
name = "one"
"""


def write_inputs(folder: Path, run: Callable[..., Any]) -> None:
    """Write all valid inputs; `run(arguments, folder)` runs a command."""
    folder.mkdir(parents=True)
    squares = [(16 + 64 * row, 16 + 64 * col) for row in range(4) for col in range(4)]
    pixels = np.random.default_rng(0).integers(1, 90, (3, 256, 256), dtype=np.uint8)
    for row, col in squares:
        pixels[:, row : row + 32, col : col + 32] += 150
    write_raster(folder / "scene.tif", pixels)
    write_raster(folder / "other.tif", pixels, transform=Affine.translation(5000, 0) @ TENTH_METRE)
    areas = [box(*(TENTH_METRE @ (col, row + 32)), *(TENTH_METRE @ (col + 32, row))) for row, col in squares]
    labels = geopandas.GeoDataFrame({"kind": ["field"] * 16}, geometry=areas, crs=UTM12)
    labels.to_file(folder / "labels.gpkg")
    labels.to_file(folder / "l.geojson", driver="GeoJSON")
    around = box(*(TENTH_METRE @ (0, 256)), *(TENTH_METRE @ (256, 0)))
    geopandas.GeoDataFrame(geometry=[around], crs=UTM12).to_file(folder / "aoi.geojson", driver="GeoJSON")
    _write_masks(folder, pixels)
    _write_dstl(folder / "dstl")
    (folder / "recipe.toml").write_text(RECIPE_TEXT)
    for arguments in (
        (*PREPARE.arguments[:6], "tiles", *TILING),
        ("train", "tiles", "--out", "run", "--epochs", "1", *TRAINING),
        ("evaluate", "run"),
        ("predict", "run", "scene.tif", "--out", "map.tif", "--probabilities", "uint8", *TORCH),
        ("sample", "map.tif", "--out", "points.gpkg"),
        ("project", "p", *PROJECT.arguments[2:]),
        ("export", "run", "--for", "bundle", "--out", "run.graft"),
    ):
        _check(run(arguments, folder), arguments)
    _label_points(folder / "points.gpkg")
    _label_areas(folder / "p" / "labels.gpkg", areas)
    _write_interrupted(folder)
    (folder / f"{SCENE}.csv").write_text(f'ImageId,ClassType,MultipolygonWKT\n{SCENE},5,"{_TREES}"\n')


_TREES = "MULTIPOLYGON (((0.001 -0.003, 0.004 -0.003, 0.004 -0.001, 0.001 -0.001, 0.001 -0.003)))"


def _check(outcome: Any, arguments: Sequence[str]) -> None:
    if outcome.code:
        raise RuntimeError(f"geograft {' '.join(arguments)} fails with valid input: {outcome.stderr}")


def write_raster(path: Path, pixels: np.ndarray, **options: Any) -> None:
    """Write (B, H, W) `pixels` as a tiled GeoTIFF of 0.1 m per pixel."""
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    profile |= {"transform": TENTH_METRE, "crs": UTM12, "tiled": True, "blockxsize": 64, "blockysize": 64} | options
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)


def _write_masks(folder: Path, pixels: np.ndarray) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(6):
        part = np.roll(pixels, 37 * number, axis=2)[:, :64, :64]
        Image.fromarray(part.transpose(1, 2, 0)).save(folder / "images" / f"{number}.png")
        Image.fromarray((1 + (part[0] > 120)).astype(np.uint8)).save(folder / "masks" / f"{number}.png")


def _write_dstl(folder: Path) -> None:
    (folder / "three_band").mkdir(parents=True)
    scenes = (SCENE, "6140_1_2")
    rows = [f'{scene},5,"{_TREES}"\n{scene},1,MULTIPOLYGON EMPTY\n' for scene in scenes]
    (folder / "train_wkt_v4.csv").write_text("ImageId,ClassType,MultipolygonWKT\n" + "".join(rows))
    (folder / "grid_sizes.csv").write_text(",Xmax,Ymin\n" + "".join(f"{scene},0.009,-0.0091\n" for scene in scenes))
    rng = np.random.default_rng(0)
    for scene in scenes:
        Image.fromarray(rng.integers(1, 255, (96, 96, 3), dtype=np.uint8)).save(folder / "three_band" / f"{scene}.tif")


def _label_points(path: Path) -> None:
    points = geopandas.read_file(path, layer="points")
    points["reference"] = ["labels" if number % 3 else "background" for number in range(len(points))]
    points.to_file(path, layer="points")


def _label_areas(path: Path, fields: Sequence[Any]) -> None:
    """Label the random areas of a project and two training areas."""
    from geograft.geo.vectors.label_file import Area, Label, read_label_file, write_label_file

    content = read_label_file(path)
    random = [Area(area.shape, "scoring", "random", True, area.rank) for area in content.areas]
    corners = [(left, left + 96) for left in (0, 128)]
    drawn = [box(*(TENTH_METRE @ (left, 112)), *(TENTH_METRE @ (right, 0))) for left, right in corners]
    training = [Area(shape, "training", labelled=True) for shape in drawn]
    write_label_file(path, [*random, *training], [Label(field, "field") for field in fields], content.crs)


def _write_interrupted(folder: Path) -> None:
    """Write what is left of killed processes: of a map to the folder "ledger", of a training to "partial"."""
    training = tuple(each for each in RESUME.arguments if each != "--resume")
    _run_until(folder, CONTINUE.arguments, "geograft.mapping.ledger", "Ledger", "add", 3)
    _run_until(folder, training, "geograft.training.step", "Step", "compute_gradients", 8)
    (left,) = folder.glob(".m*.part")
    (folder / "ledger").mkdir()
    shutil.move(left, folder / "ledger" / left.name)


def _run_until(folder: Path, arguments: Sequence[str], module: str, owner: str, name: str, call: int) -> None:
    """Run a command in a forked process that dies at the `call`-th call of a method."""
    from geograft.cli import main

    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    there = getattr(import_module(module), owner)
    method, calls = getattr(there, name), iter(range(call - 1))

    def call_or_die(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            os._exit(0)
        return method(*args, **options)

    setattr(there, name, call_or_die)
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        main(arguments)
    finally:
        os._exit(1)


# ------------------------------------------------------------------------------------------------------------- edits


def edited_json(name: str, path: Sequence[str | int], value: Any) -> Edit:
    """Return an edit that replaces the entry at `path` of a JSON file."""

    def edit(place: Place) -> None:
        content = json.loads((place.folder / name).read_text())
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (place.folder / name).write_text(json.dumps(content))

    return edit


def edited_table(name: str, statement: str) -> Edit:
    """Return an edit that runs a statement of SQL on a GeoPackage; TABLE is its table of features."""

    def edit(place: Place) -> None:
        with closing(sqlite3.connect(place.folder / name)) as file:
            (table,) = file.execute("SELECT table_name FROM gpkg_contents WHERE data_type = 'features'").fetchone()
            for trigger in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                file.execute(f'DROP TRIGGER "{trigger[0]}"')
            file.execute(statement.replace("TABLE_", f'"{table}"'))
            file.commit()

    return edit


def replaced(name: str, content: str | bytes | Callable[[Place], str | bytes]) -> Edit:
    """Return an edit that writes a file; {server} in its text is the address of the server."""

    def edit(place: Place) -> None:
        value = content(place) if callable(content) else content
        data = value.replace("{server}", place.server).encode() if isinstance(value, str) else value
        (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (place.folder / name).write_bytes(data)

    return edit


def changed_text(name: str, old: str, new: str) -> Edit:
    """Return an edit that replaces a text, which must be in the file, by another."""

    def edit(place: Place) -> None:
        text = (place.folder / name).read_text()
        if old not in text:
            raise ValueError(f"{name} does not contain {old}")
        (place.folder / name).write_text(text.replace(old, new).replace("{server}", place.server))

    return edit


def damaged(name: str, way: str) -> Edit:
    """Return an edit that damages a file at random: "flip" bytes, "cut" it short, "drop" or "zero" a part."""

    def edit(place: Place) -> None:
        (path,) = place.folder.glob(name)
        data, random = bytearray(path.read_bytes()), place.random
        start, length = random.randrange(len(data)), 1 + random.randrange(1 + len(data) // 4)
        # Headers are near the start.
        start = start % 512 if random.random() < 0.5 else start
        if way == "flip":
            for _ in range(1 + random.randrange(8)):
                data[(start + random.randrange(64)) % len(data)] ^= 1 << random.randrange(8)
        elif way == "cut":
            del data[start:]
        elif way == "drop":
            del data[start : start + length]
        else:
            data[start : start + length] = bytes(len(data[start : start + length]))
        path.write_bytes(data)

    return edit


def raster(name: str, dtype: str = "uint8", bands: int = 3, size: int = 256, **options: Any) -> Edit:
    """Return an edit that writes a raster of random pixels."""

    def edit(place: Place) -> None:
        pixels = np.random.default_rng(0).integers(1, 200, (bands, size, size)).astype(dtype)
        write_raster(place.folder / name, pixels, **options)

    return edit


def leaves(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield the path and value of every entry of a JSON file that holds no others."""
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, (*path, key))
    else:
        yield path, content
