"""Files that Geograft wrote and somebody edited: one error that names file and field, and nothing is written."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from geograft.card import CARD, TILES_FILE, WEIGHTS, ModelCard, read_card
from geograft.commands.audit import audit
from geograft.commands.compare import compare
from geograft.commands.curve import curve
from geograft.commands.evaluate import evaluate
from geograft.commands.predict import predict
from geograft.commands.train import train
from geograft.config import ModelConfig, PredictConfig, Recipe, Variant
from geograft.dataset.tileset import INDEX, META, TileSet
from geograft.errors import GeograftError, InputError, SettingError
from geograft.files import write_json
from geograft.mapping.polygons.ledger import PolygonLedger
from geograft.networks.network import build
from geograft.training.checkpoint import save_weights
from tests.support.rasters import textured, write_raster
from tests.support.runs import USES, PixelwisePredictor, make_run

pytestmark = pytest.mark.usefixtures("only_torch")

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tile set: a small network with random weights."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    meta, model = TileSet.open(tiles).meta, ModelConfig(architecture="unet")
    torch.manual_seed(0)
    card = ModelCard(
        "run", model, "random", meta.legend, meta.band_names, meta.dtype, meta.mean, meta.std, 32, 0.1, 0.5, 3
    )
    card.write(folder)
    save_weights(folder / WEIGHTS, build(model, 3, 1))
    write_json(folder / TILES_FILE, {"tiles": str(tiles)})
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def own_tiles(tiles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiles, tmp_path / "tiles"))


@contextmanager
def refused(folder: Path, *facts: str, kind: type[GeograftError] = InputError) -> Iterator[None]:
    """Assert that the block raises one line with all `facts`, and writes nothing below `folder`."""
    before = content(folder)
    with pytest.raises(kind) as caught:
        yield
    assert content(folder) == before
    assert "\n" not in str(caught.value)
    for fact in facts:
        assert fact in str(caught.value)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def edit_json(path: Path, key: str, value: Any) -> None:
    """Replace the entry at `key`, a dotted path, in a JSON file."""
    whole = json.loads(path.read_text())
    *above, last = key.split(".")
    part = whole
    for name in above:
        part = part[int(name) if name.isdigit() else name]
    part[int(last) if last.isdigit() else last] = value
    path.write_text(json.dumps(whole))


# ------------------------------------------------------------------------------------------------------------ card.json

CARD_EDITS = [
    *(("temperature", value) for value in (-1, 0, 1e-320, 1e300, NAN, INF, "x", None)),
    *(("threshold", value) for value in (-0.1, 1.1, NAN, INF, "x")),
    *(("thresholds", value) for value in ([0.5, 0.5], [1.5], [NAN])),
    *(("std", value) for value in ([0, 1, 1], [-1, 1, 1], [1, NAN, 1], [1, 1], [1, 1, INF])),
    *(("mean", value) for value in ([NAN, 1, 1], [1, 1], [1, 1, 1, 1], [-INF, 1, 1])),
    *(("tile_px", value) for value in (0, -32, 10**9, 32.5, "x")),
    *(("resolution_m", value) for value in (0, -0.1, NAN, INF)),
    *(("epoch", value) for value in (0, -1, 1.5)),
    *(("band_names", value) for value in ([], ["a"] * 3000)),
    *(("dtype", value) for value in ("", "complex64", "uint9")),
]


@pytest.mark.parametrize(("field", "value"), CARD_EDITS)
def test_an_edited_card_is_refused_by_field(run: Path, fields: Path, field: str, value: Any) -> None:
    edit_json(run / CARD, field, value)
    with refused(run.parent, CARD, field):
        read_card(run)
    with refused(run.parent, CARD, field):
        predict(run, (fields / "scene.tif",), run.parent / "map.tif")
    with refused(run.parent, CARD, field):
        evaluate(run, "test")


def test_a_card_of_overlapping_classes_needs_a_threshold_for_each(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", USES, thresholds=(0.2, 0.5, 0.7))
    assert read_card(run).output_thresholds == (0.2, 0.5, 0.7)
    for wrong in ([0.5], [0.5] * 4, [0.5, 0.5, 1.01], [0.5, -0.01, 0.5]):
        edit_json(run / CARD, "thresholds", wrong)
        with refused(tmp_path, CARD, "thresholds"):
            read_card(run)


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_not_finite_are_refused_by_tensor(run: Path, fields: Path, value: float) -> None:
    tensors = load_file(run / WEIGHTS)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[-1] = value
    save_file(tensors, run / WEIGHTS)
    with refused(run.parent, WEIGHTS, name):
        evaluate(run, "test")
    with refused(run.parent, WEIGHTS, name):
        predict(run, (fields / "scene.tif",), run.parent / "map.tif")


# -------------------------------------------------------------------------------------------------------- tileset.json

META_EDITS = [
    ("scenes", []),
    *(("scenes.0.height", value) for value in (-5, 0, 1.5, "x")),
    *(("scenes.0.width", value) for value in (-5, 0)),
    *(("scenes.0.resolution_m", value) for value in (0, -1, NAN)),
    *(("scenes.0.name", value) for value in ("", "../scene", "a\0")),
    *(("scenes.0.image", value) for value in ("", "a\0.tif", "x" * 5000)),
    *(("scenes.0.position", value) for value in (5, {"row": 1}, {"place": "", "row": 0, "col": 0})),
    *(("scenes.0.position", {"place": "a", "row": value, "col": 0}) for value in (1.5, 10**30, -(10**30))),
    *(("masks", value) for value in ("", "a\0")),
    *(("settings.bands", value) for value in ([1, 1, 2], [1], [0, 1, 2])),
    *(("std", value) for value in ([0, 1, 1], [1, NAN, 1], [1, 1], [1, -1, 1])),
    *(("mean", value) for value in ([NAN, 1, 1], [1, 1])),
    ("band_names", ["a"] * 3000),
    ("band_names", []),
    ("scale", 0),
    ("scale", NAN),
    ("dtype", "x"),
    *(("settings.tile_px", value) for value in (0, -32, 10**9)),
    ("settings.overlap", 1),
    ("settings.overlap", -0.5),
    ("settings.val", NAN),
]


@pytest.mark.parametrize(("field", "value"), META_EDITS)
def test_an_edited_tileset_json_is_refused_by_field(run: Path, own_tiles: Path, field: str, value: Any) -> None:
    edit_json(own_tiles / META, field, value)
    with refused(own_tiles.parent, META, field.rsplit(".", maxsplit=1)[-1]):
        TileSet.open(own_tiles)
    with refused(own_tiles.parent, META):
        evaluate(run, "test", tiles=own_tiles)
    with refused(own_tiles.parent, META):
        train(own_tiles, own_tiles.parent / "new")


@pytest.mark.parametrize(
    ("field", "value", "facts"),
    [
        ("scenes.0.name", "renamed", ("scene",)),
        ("scenes.0.height", 200, ("row", "200")),
        ("scenes.0.width", 200, ("col", "200")),
        ("settings.tile_px", 48, ("tile_px", "48", "32")),
    ],
)
def test_tiles_that_do_not_fit_tileset_json_are_refused(
    own_tiles: Path, field: str, value: Any, facts: tuple[str, ...]
) -> None:
    edit_json(own_tiles / META, field, value)
    with refused(own_tiles, INDEX, META, *facts):
        TileSet.open(own_tiles)


@pytest.mark.parametrize("field", ["height", "width", "bands"])
def test_an_image_that_does_not_fit_tileset_json_is_refused(run: Path, own_tiles: Path, field: str) -> None:
    if field == "bands":
        for path, names in ((own_tiles / META, ("band_names", "mean", "std")), (run / CARD, ("band_names",))):
            for name in names:
                edit_json(path, name, json.loads(path.read_text())[name] * 1000)
        for name in ("mean", "std"):
            edit_json(run / CARD, name, [1.0] * 3000)
    else:
        edit_json(own_tiles / META, f"scenes.0.{field}", 10**6)
    samples = TileSet.open(own_tiles).samples("train")
    with refused(own_tiles.parent, "scene.tif", META, field):
        samples[0]


@pytest.mark.parametrize("kind", ["bands", "height", "dtype", "class"])
def test_a_mask_that_does_not_fit_tileset_json_is_refused(run: Path, own_tiles: Path, kind: str) -> None:
    tile_set = TileSet.open(own_tiles)
    (name,) = tile_set.scenes
    height, width = tile_set.scenes[name].height, tile_set.scenes[name].width
    pixels = np.zeros((3 if kind == "bands" else 1, height // (2 if kind == "height" else 1), width), np.uint8)
    pixels += 77 if kind == "class" else 0
    write_raster(tile_set.mask_path(name), pixels.astype(np.float32) if kind == "dtype" else pixels)
    with refused(own_tiles.parent, f"{name}.tif", kind):
        tile_set.samples("train")[0]
    if kind != "class":
        with refused(own_tiles.parent, f"{name}.tif", kind):
            audit(own_tiles)


@pytest.mark.parametrize("field", ["height", "width"])
def test_a_size_of_a_thousand_million_pixels_is_refused_before_it_is_divided_into_blocks(
    run: Path, own_tiles: Path, field: str
) -> None:
    edit_json(own_tiles / META, f"scenes.0.{field}", 10**9)
    out, recipe = own_tiles.parent / "out", Recipe(variants=(Variant("a"),))
    unet = recipe.with_settings(model={"architecture": "unet"}, train={"device": "cpu", "epochs": 1})
    for work in (
        lambda: evaluate(run, tiles=own_tiles),
        lambda: curve(own_tiles, out, unet),
        lambda: compare(own_tiles, unet, out, folds=2),
        lambda: train(own_tiles, out, unet),
    ):
        with refused(own_tiles.parent, ".tif", field, str(10**9)):
            work()


def test_a_figure_has_the_name_of_a_png(own_tiles: Path) -> None:
    with refused(own_tiles, META, kind=SettingError):
        audit(own_tiles, own_tiles / META)


# ---------------------------------------------------------------------------------------------------------- tiles.gpkg

INDEX_EDITS = [
    *((name, value) for name in ("row", "col") for value in (-50, -1, 250, 10**9, 10**18, "'x'", 3.5, "NULL")),
    *((name, value) for name in ("height", "width") for value in (0, -32, 31, 10**9, "'x'", "NULL")),
    *(("scene", value) for value in ("'elsewhere'", "''", "NULL")),
    *(("split", value) for value in ("'holdout'", "''", "NULL")),
    *(("valid", value) for value in (-0.1, 1.5, "'x'", "NULL")),
    *(("fraction_%", value) for value in (-0.1, 1.5, "'x'", "NULL")),
]


@pytest.mark.parametrize(("field", "value"), INDEX_EDITS)
def test_an_edited_tile_index_is_refused_by_field(run: Path, own_tiles: Path, field: str, value: Any) -> None:
    edit_index(own_tiles / INDEX, field, value)
    with refused(own_tiles.parent, INDEX, field.rstrip("_%")):
        TileSet.open(own_tiles)
    with refused(own_tiles.parent, INDEX):
        evaluate(run, "test", tiles=own_tiles)


@pytest.mark.parametrize("value", ["NULL", "x'00'", "'x'"])
def test_a_tile_without_outline_is_refused(own_tiles: Path, value: str) -> None:
    edit_index(own_tiles / INDEX, "geom", value)
    with refused(own_tiles, INDEX):
        audit(own_tiles)


def test_an_index_without_its_table_is_refused_without_warnings(
    own_tiles: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with sqlite3.connect(own_tiles / INDEX) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("DROP TABLE tiles")
    database.close()
    with refused(own_tiles, INDEX):
        TileSet.open(own_tiles)
    assert not recwarn.list


def test_a_tile_that_is_listed_twice_is_refused(own_tiles: Path) -> None:
    first = TileSet.open(own_tiles).tiles[0].window
    edit_index(own_tiles / INDEX, "row", first.row)
    edit_index(own_tiles / INDEX, "col", first.col)
    with refused(own_tiles, INDEX, str(first.row), str(first.col)):
        TileSet.open(own_tiles)


def edit_index(path: Path, field: str, value: Any) -> None:
    """Set a field of the second tile; the first field whose name is like `field`."""
    with sqlite3.connect(path) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')  # they call functions of GDAL's
        names = [row[1] for row in database.execute("PRAGMA table_info(tiles)")]
        name = next(name for name in names if name == field or (field.endswith("%") and name.startswith(field[:-1])))
        database.execute(f'UPDATE tiles SET "{name}" = {value} WHERE fid = 2')
    database.close()


# ---------------------------------------------------------------------------------------------- ledgers of partial jobs


@pytest.fixture(scope="module")
def partial_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a raster and the ledger of its map, which ended after some strips."""
    folder = tmp_path_factory.mktemp("partial")
    make_run(folder / "run")
    write_raster(folder / "scene.tif", textured(3, 128, 96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geograft.mapping.models.EnsemblePredictor", Failing)
        with pytest.raises(InputError, match="failed"):
            map_of(folder)
    assert len((folder / STRIPS).read_text().splitlines()) > 3
    return folder


STRIPS = ".map.part/strips.tsv"


class Failing(PixelwisePredictor):
    calls = 0

    def __call__(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls > 40:
            raise InputError("failed")
        return super().__call__(pixels, valid)


def map_of(folder: Path, dry_run: bool = False) -> None:
    predict(folder / "run", (folder / "scene.tif",), folder / "map.tif", PredictConfig(batch_size=1), dry_run=dry_run)


STRIP_EDITS = [
    *((name, value) for name in ("row", "col", "height", "width") for value in (-50, 1, 10**9, "x", "")),
    *(("tiles", value) for value in (-1, 10**6, "x")),
    *(("data_col", value) for value in (-1, 10**9)),
    *(("data_width", value) for value in (-1, 10**9, 97)),
    *(("bytes", value) for value in (-1, 0, "x")),
]


@pytest.mark.parametrize(("field", "value"), STRIP_EDITS)
def test_an_edited_ledger_of_a_map_is_refused_by_field(
    partial_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: Any
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    folder = partial_map
    path = folder / STRIPS
    before = path.read_text()
    head, *lines = before.splitlines()
    cells = lines[1].split("\t")
    cells[head.split("\t").index(field)] = str(value)
    path.write_text("\n".join((head, lines[0], "\t".join(cells), *lines[2:], "")))
    named = (field,) if isinstance(value, int) else ()
    try:
        for dry_run in (True, False):
            with refused(folder, "strips.tsv", "line 3", *named):
                map_of(folder, dry_run)
    finally:
        path.write_text(before)


def test_a_map_with_more_strips_than_the_raster_is_refused(partial_map: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    path = partial_map / STRIPS
    before = path.read_text()
    head, *lines = before.splitlines()
    path.write_text("\n".join((head, *lines * 9, "")))
    try:
        with refused(partial_map, "strips.tsv"):
            map_of(partial_map)
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows_done", value) for value in (-1, 21, "x", None, 1.5)]
    + [("parts", value) for value in ([], [4], [0, 0], [0, 10], [0, -1], ["x"], "x", None)],
)
def test_an_edited_ledger_of_polygons_is_refused_by_field(tmp_path: Path, field: str, value: Any) -> None:
    ledger = PolygonLedger(tmp_path / "parts", {"a": 1}, 20)
    ledger.add(8, {"x": np.zeros(1)}, {"y": np.zeros(1)})
    assert PolygonLedger(tmp_path / "parts", {"a": 1}, 20).rows_done == 8
    edit_json(tmp_path / "parts" / "ledger.json", field, value)
    with refused(tmp_path, "ledger.json", field):
        PolygonLedger(tmp_path / "parts", {"a": 1}, 20)
