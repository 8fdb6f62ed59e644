"""Scores by units: any division, order, repetition and interruption gives the file that one process writes."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geograft.card import read_card
from geograft.cli import app
from geograft.commands.evaluate import evaluate
from geograft.commands.jobs import jobs
from geograft.commands.prepare import prepare
from geograft.commands.units import ScoreJob, UnitsScores, evaluate_units
from geograft.config import EvaluateConfig, PartConfig, PrepareConfig
from geograft.dataset.sources import MaskSource
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import Cell, Units
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.geo.grid import Window
from geograft.interrupts import Interrupted
from geograft.mapping.claims import Timing
from geograft.mapping.places import Place, used_tiles
from geograft.mapping.score_units import plan_score_units
from geograft.metrics.intervals import confidence_intervals
from geograft.storage import open_storage
from tests.support.overlapping import overlapping_set
from tests.support.rasters import TENTH_METRE, textured, write_raster
from tests.support.runs import ContextPredictor, make_run
from tests.support.s3 import serve_s3

FAST = Timing(heartbeat_s=0.05, expiry_s=0.4, poll_s=0.02, list_s=0.0)
SHAPES = EvaluateConfig(device="cpu", backend="torch", boundary_m=0.3)
CLASSES = {"binary": ("other", "tree"), "three": ("other", "tree", "road")}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of a few tiles, quick leases, and a network that needs no torch."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    monkeypatch.setattr("geograft.mapping.score_units.UNIT_TILES", 5)
    monkeypatch.setattr("geograft.mapping.score_units.MIN_UNIT_TILES", 1)
    monkeypatch.setattr("geograft.mapping.worker.TIMING", FAST)
    monkeypatch.setattr("geograft.mapping.scoring.confidence_intervals", partial(confidence_intervals, draws=100))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def masked_set(folder: Path, names: tuple[str, ...]) -> TileSet:
    """Two scenes of different sizes with class masks, in overlapping tiles of 32 pixels and blocks of 64."""
    for number, (height, width) in enumerate(((230, 260), (140, 70))):
        pixels = textured(3, height, width)
        pixels[:, 40:60, :90] = 0
        labels = np.random.default_rng(number).integers(0, len(names), (height // 10, width // 10), dtype=np.uint8)
        corner = TENTH_METRE @ Affine.translation(3000 * number, 0)
        write_raster(folder / "images" / f"s{number}.tif", pixels, corner, nodata=0)
        write_raster(folder / "masks" / f"s{number}.tif", labels.repeat(10, 0).repeat(10, 1)[None], corner)
    source = MaskSource(folder / "images", folder / "masks", dict(enumerate(names)))
    settings = PrepareConfig(tile_px=32, overlap=0.5, split="block", block_px=64, buffer_px=0, val=0.3, test=0.4)
    prepare(source, folder / "tiles", settings)
    return TileSet.open(folder / "tiles")


def make_place(folder: Path, kind: str) -> Path:
    """Make a tile set in `folder`, and a run that was trained on it."""
    if kind == "overlapping":
        tile_set = TileSet.open(overlapping_set(folder / "tiles", scenes=2))
    else:
        tile_set = masked_set(folder, CLASSES[kind])
    run = make_run(folder / "run", tile_set.meta.legend, data_fingerprint=tile_set.meta.fingerprint)
    (run / "tiles.json").write_text(json.dumps({"tiles": str(folder / "tiles")}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a kind of classes to a folder with a tile set and a run, which tests leave as they are."""
    known: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in known:
            known[kind] = make_place(tmp_path_factory.mktemp(kind), kind)
        return known[kind]

    return find


def one_process(place: Path, out: Path, config: EvaluateConfig = SHAPES, runs: int = 1) -> bytes:
    evaluate((place / "run",) * runs, out=out / "plain" / "scores.json", config=config)
    return (out / "plain" / "scores.json").read_bytes()


def score(place: Path, out: Path, config: EvaluateConfig = SHAPES, **options: Any) -> UnitsScores:
    return evaluate_units(place / "run", out / "job", config=config, worker=PartConfig(**options))


@pytest.mark.parametrize(
    ("kind", "options", "runs"),
    [
        ("binary", {"objects": "tree"}, 1),
        ("three", {"objects": "road"}, 1),
        ("three", {"boundary_m": 0.0, "window_px": 48, "overlap": 0.25, "tta": 2}, 2),
        ("overlapping", {"objects": "green"}, 1),
    ],
)
def test_units_in_any_order_and_twice_give_the_bytes_of_one_process(
    made: Callable[[str], Path], tmp_path: Path, kind: str, options: dict[str, Any], runs: int
) -> None:
    place, config = made(kind), EvaluateConfig(**({"device": "cpu", "backend": "torch", "boundary_m": 0.3} | options))
    expected = one_process(place, tmp_path, config, runs)
    # As Ray sends it to its nodes.
    job: ScoreJob = pickle.loads(pickle.dumps(ScoreJob((place / "run",) * runs, tmp_path / "job", config=config)))
    worker = job.join()
    count = len(worker.job.units)
    assert count > 5
    for index in np.random.default_rng(runs).permutation([*range(count), *range(0, count, 2)]).tolist():
        worker.compute(index)
    assert worker.run().done == count
    found = job.finish(worker)
    assert (tmp_path / "job" / "scores.json").read_bytes() == expected
    assert found.scores == json.loads(expected)
    # Who comes later gets the same, and computes nothing.
    again = evaluate_units((place / "run",) * runs, tmp_path / "job", config=config)
    assert (again.computed, again.joined, again.lines()[1:]) == (0, False, found.lines()[1:])


def test_what_an_interrupted_worker_did_is_kept(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = made("three")
    expected = one_process(place, tmp_path)

    class Interrupting(ContextPredictor):
        calls = 0

        def __call__(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
            type(self).calls += 1
            if self.calls % 9 == 0:
                raise Interrupted
            return super().__call__(pixels, valid)

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Interrupting)
    ended, done = 0, []
    while ended < 3:
        with pytest.raises(Interrupted):
            score(place, tmp_path)
        ended += 1
        done.append(jobs(tmp_path / "job").done)
        # A file whose worker was killed before it could write the receipt.
        (tmp_path / "job" / "state" / "s00000-u00000.done.json").unlink(missing_ok=True)
    assert done == sorted(done)
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    assert score(place, tmp_path).joined
    assert (tmp_path / "job" / "scores.json").read_bytes() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=40))
def test_units_are_consecutive_whole_cells_of_one_scene(cells: list[tuple[int, int]]) -> None:
    cells = sorted(cells)
    named = tuple(Cell(f"s{scene}", Window(i, 0, 1, 1), "") for i, (scene, _) in enumerate(cells))
    tiles = np.repeat(np.arange(len(cells)), [count for _, count in cells])
    parts, units = plan_score_units(Units("block", 1, named, tiles))
    assert [index for part in parts for index in part] == list(range(len(cells)))
    assert len(parts) == len(units)
    for index, part in enumerate(parts):
        assert len({cells[cell][0] for cell in part}) == 1
        first_of_scene = index == 0 or cells[parts[index - 1].start][0] != cells[part.start][0]
        assert (units.place(index)[1] == 0) == first_of_scene
        # A cell more than needed is never added.
        assert len(part) == 1 or sum(cells[cell][1] for cell in part[:-1]) < max(5, -(-len(tiles) // 16))


def test_a_tile_set_that_changes_stops_the_job(tmp_path: Path) -> None:
    place = make_place(tmp_path, "binary")
    job = ScoreJob((place / "run",), tmp_path / "job", config=SHAPES)
    worker = job.join()
    worker.compute(0)
    mask = TileSet.open(place / "tiles").mask_path("s0")
    mask.write_bytes(mask.read_bytes() + b"\0")
    with pytest.raises(InputError, match="s0 changed"):
        worker.run()
    with pytest.raises(OutputError, match="was stopped"):
        worker.run()
    with pytest.raises(InputError, match="other inputs"):
        score(place, tmp_path)


def test_tiles_that_a_place_has_used_are_refused_before_any_unit(tmp_path: Path) -> None:
    place = make_place(tmp_path, "binary")
    tile_set = TileSet.open(place / "tiles")
    weights = read_card(place / "run").weights_digest
    used = used_tiles(tile_set, tile_set.split("val"))
    Place("there", weights, str(place / "tiles"), 1.0, (0.4,), (False,), used).write(place / "run")
    config = EvaluateConfig(device="cpu", backend="torch", place="there")
    with pytest.raises(SettingError, match="calibrated on"):
        evaluate_units(place / "run", tmp_path / "job", "val", config=config)
    assert not (tmp_path / "job").exists() or not any((tmp_path / "job").glob("*.json"))
    # Other tiles are scored with its threshold.
    expected = one_process(place, tmp_path, config)
    score(place, tmp_path, config)
    assert (tmp_path / "job" / "scores.json").read_bytes() == expected
    assert json.loads(expected)["decision"]["threshold"] == 0.4


@pytest.mark.parametrize("name", ["scores.json", "state/result.done.json", "job.json", "unit", "receipt"])
def test_edited_files_are_errors_of_one_line(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    place, out = made("binary"), tmp_path / "job"
    if not (place / "job").exists():
        score(place, place)
    shutil.copytree(place / "job", out)
    unit = "s00000-u00000"
    if name == "unit":
        (out / "units" / f"{unit}.npz").write_bytes(b"PK")
    elif name == "receipt":
        path = out / "state" / f"{unit}.done.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))
    elif name == "job.json":
        content = json.loads((out / name).read_text())
        content["origin"]["notes"] = 3
        (out / name).write_text(json.dumps(content))
    else:
        (out / name).write_bytes(b'{"text": 3')
    if name in ("unit", "receipt", "job.json"):
        (out / "state" / "result.done.json").unlink()
    with pytest.raises(GeograftError) as caught:
        score(place, tmp_path)
    assert "\n" not in str(caught.value)


def test_scores_in_a_bucket(made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made("binary")
    expected = one_process(place, tmp_path)
    with serve_s3(monkeypatch) as bucket:
        assert evaluate_units(place / "run", f"{bucket}/scores", config=SHAPES).joined
        assert open_storage(f"{bucket}/scores").get("scores.json") == expected


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--part=1/2"], "Add --worker"),
        (["--worker"], "need --out"),
        (["--worker", "--out=job", "--against=other"], "--against"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], fact: str) -> None:
    with pytest.raises(SettingError, match=fact):
        app(["evaluate", "run", *options], exit_on_error=False, print_error=False)
