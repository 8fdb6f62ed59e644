"""Suggestions by workers: whatever the units, their order and repetitions, the file is that of one process."""

import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from shapely import box

from geograft.card import FEATURES_FILE
from geograft.cli import app
from geograft.commands.jobs import jobs
from geograft.commands.prepare import prepare
from geograft.commands.suggest import SuggestJob, suggest
from geograft.commands.units import predict_units, suggest_units
from geograft.config import PartConfig, PrepareConfig, SuggestConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import json_digest
from geograft.geo.grid import Window
from geograft.legend import Legend
from geograft.mapping import pool
from geograft.mapping.environment import content_digest
from geograft.mapping.pool_units import pool_from_arrays, pool_to_arrays
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import UnitGrid, plan_units
from geograft.mapping.windows import TileGrid
from geograft.metrics.applicability import fit_applicability
from geograft.storage import open_storage
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import COVERS, BandMeans, ContextPredictor, make_run
from tests.support.s3 import serve_s3

CONFIG = SuggestConfig(device="cpu", backend="torch", tiles=12)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of 2 x 2 tiles, and networks that need no torch."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    monkeypatch.setattr("geograft.commands.suggest.load_cell_encoder", lambda *_: BandMeans())
    monkeypatch.setattr(
        "geograft.mapping.pool_units.plan_units", lambda tiles, *_, **__: UnitGrid(tiles.height, tiles.width, 64)
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a run and two scenes, one of which has an empty unit and tiles that are cut."""
    run = make_run(tmp_path / "run", COVERS)
    rng = np.random.default_rng(0)
    fit_applicability(rng.normal([128] * 3, 30, (40, 3))).write(run / FEATURES_FILE)
    pixels = textured(3, 110, 150)
    pixels[:, :80, 55:132] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    write_raster(tmp_path / "other.tif", textured(3, 70, 96, 1), TENTH_METRE @ Affine.translation(300, 0), nodata=0)
    return tmp_path


def rasters(place: Path) -> tuple[Path, Path]:
    return place / "scene.tif", place / "other.tif"


def work(place: Path, config: SuggestConfig = CONFIG, worker: PartConfig | None = None, **options: Any) -> Any:
    return suggest_units(place / "run", rasters(place), place / "out", config, worker, **options)


def plain(place: Path, config: SuggestConfig = CONFIG, **options: Any) -> Any:
    return suggest(place / "run", rasters(place), place / "plain.gpkg", config, **options)


def check_same(place: Path, mine: Any, one: Any) -> None:
    """Check that the workers' file has the bytes of one process, and their result the same tiles and notes."""
    assert (place / "out" / "suggestions.gpkg").read_bytes() == (place / "plain.gpkg").read_bytes()
    for name in ("tiles", "rasters", "unlabelled_tiles", "labelled_tiles", "notes"):
        assert getattr(mine.suggestions, name) == getattr(one, name), name


def labelled(place: Path) -> Path:
    """Return a tile set of the first scene, of which the left part is annotated."""
    for name, right in (("area", 50), ("labels", 30)):
        outline = box(*(TENTH_METRE @ (0, 110)), *(TENTH_METRE @ (right, 0)))
        geopandas.GeoDataFrame(geometry=[outline], crs=UTM12).to_file(place / f"{name}.gpkg")
    source = VectorSource((place / "scene.tif",), place / "labels.gpkg", aoi=place / "area.gpkg")
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=32, buffer_px=0, val=0.3, test=0.3)
    prepare(source, place / "tiles", config)
    return place / "tiles"


# ------------------------------------------------------------------------------------------------------------ pools


def random_pool(seed: int, tiles: int, raster: int = 0, first: int = 0) -> pool.Pool:
    """Return a pool of tiles in a row, many of them with equal uncertainties and lots."""
    rng, found = np.random.default_rng([seed, raster, first]), pool.Pool(labelled_tiles=seed % 3)
    for number in range(first, first + tiles):
        quarters = int(rng.integers(1, 5))
        embeddings = rng.normal(size=(quarters, 3)).astype(np.float32)
        uncertainty, valid = rng.integers(0, 4, 2) / 4
        dissimilarity = None if number % 2 else float(rng.random())
        found.add(
            pool.Candidate(
                raster,
                Window(0, number, 1, 1),
                float(uncertainty),
                float(valid),
                embeddings,
                rng.random(quarters),
                dissimilarity,
                tuple(rng.random(2).tolist()),
                int(rng.integers(2**63, 2**64, dtype=np.uint64)) if number % 3 else 7,
            )
        )
    return found


def content(found: pool.Pool) -> dict[str, bytes]:
    found.prune()
    arrays = pool_to_arrays(found)
    order = [[(one.raster, one.window) for one in some] for some in (found.candidates, found.sample)]
    return {name: array.tobytes() for name, array in arrays.items()} | {"order": repr(order).encode()}


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 99), st.randoms(use_true_random=False))
def test_pools_merge_in_any_order(sizes: list[int], seed: int, random: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "MAX_CANDIDATES", 4)
        whole = pool.Pool()
        parts = []
        for raster, size in enumerate(sizes):
            whole.merge(random_pool(seed, size, raster))
            part = random_pool(seed, size, raster)
            part.prune()
            parts.append(pool_from_arrays(pool_to_arrays(part)))
        random.shuffle(parts)
        merged = pool.Pool()
        for part in parts:
            merged.merge(part)
        assert content(merged) == content(whole)


@given(st.integers(0, 9), st.integers(0, 99))
def test_a_pool_goes_into_a_file_and_back_without_loss(tiles: int, seed: int) -> None:
    found = random_pool(seed, tiles)
    assert content(pool_from_arrays(pool_to_arrays(found))) == content(found)


DAMAGES: dict[str, Any] = {
    "counts": np.array([-1, 0]),
    "window": np.zeros((5, 3), np.int64),
    "uncertainty": np.full(5, np.nan),
    "predicted": np.zeros(5),
    "lot": np.zeros(5, np.int64),
    "is_candidate": np.ones(4, bool),
    "quarters": np.array([1, 1, 1, 1, 2**62]),
    "embeddings": np.full((1, 3), np.inf, np.float32),
    "quarter_uncertainty": np.array(1.0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_arrays_that_are_no_pool_are_refused(name: str) -> None:
    arrays = pool_to_arrays(random_pool(0, 5))
    with pytest.raises(ValueError, match=r"has|are not"):
        pool_from_arrays(arrays | {name: DAMAGES[name]})
    with pytest.raises(KeyError):
        pool_from_arrays({other: array for other, array in arrays.items() if other != name})


@given(st.integers(1, 60_000), st.integers(1, 60_000), st.integers(16, 700), st.integers(16, 1280))
def test_units_are_whole_tiles(height: int, width: int, tile_px: int, window_px: int) -> None:
    units = plan_units(TileGrid(height, width, window_px, 0.125), tile_px, block_px=1)
    assert units.unit_px % tile_px == 0
    assert units.unit_px <= 16384


# --------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(("acquisition", "first"), [("entropy", None), ("disagreement", 0)])
def test_the_file_has_the_bytes_of_one_process(place: Path, acquisition: Any, first: int | None) -> None:
    runs = [place / "run"] * (1 + (acquisition == "disagreement"))
    config = replace(CONFIG, acquisition=acquisition, first=first)
    one = suggest(runs, rasters(place), place / "plain.gpkg", config)
    made = suggest_units(runs, rasters(place), place / "out", config)
    check_same(place, made, one)
    # Six and four units, of which three have no tile with enough valid pixels.
    assert (made.units, made.computed, made.merged) == (10, 10, True)
    assert len(list((place / "out" / "units").iterdir())) == 7
    assert made.lines()[1:] == [line.replace("plain.gpkg", "out/suggestions.gpkg") for line in one.lines()]
    again = suggest_units(runs, rasters(place), place / "out", config)
    assert (again.computed, again.merged, again.suggestions) == (0, False, made.suggestions)


def test_units_in_any_order_and_twice(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more tiles than are compared, so that each unit leaves some out."""
    monkeypatch.setattr(pool, "MAX_CANDIDATES", 3)
    one = plain(place)
    job = SuggestJob((place / "run",), rasters(place), place / "out", CONFIG)
    assert pickle.loads(pickle.dumps(job)) == job
    worker = pickle.loads(pickle.dumps(job)).join()
    receipts = [worker.compute(index) for index in (7, 3, 0, 9, 1, 3, 8)]
    assert [one.unit for one in receipts[:2]] == ["s00001-u00001", "s00000-u00003"]
    assert receipts[1] == receipts[5]
    made = work(place)
    assert made.computed == 4
    check_same(place, made, one)


def test_workers_share_the_units_and_one_merges_them(place: Path) -> None:
    one = plain(place)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(work(place, worker=PartConfig(part=f"{n}/4"))))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each.computed for each in results) == 10
    assert sum(each.merged for each in results) == 1
    for each in results:
        check_same(place, each, one)
    status = jobs(place / "out")
    assert (status.job.verb, status.done, status.running, status.failed) == ("suggest", 10, (), {})


def test_labelled_tiles_and_the_area_of_interest_are_those_of_one_process(place: Path) -> None:
    known = labelled(place)
    corners = box(*(TENTH_METRE @ (20, 100)), *(TENTH_METRE @ (400, 20)))
    geopandas.GeoDataFrame(geometry=[corners], crs=UTM12).to_file(place / "aoi.gpkg")
    one = plain(place, known=known, aoi=place / "aoi.gpkg")
    made = work(place, known=known, aoi=place / "aoi.gpkg")
    assert one.labelled_tiles > 0
    check_same(place, made, one)
    with pytest.raises(InputError, match="other inputs or settings: area"):
        work(place, known=known)
    # A tile set as input stands for its images.
    config = replace(CONFIG, tiles=5)
    run = make_run(place / "binary", Legend(("background", "labels")))
    of_set = suggest(run, known, place / "of-set.gpkg", config)
    by_units = suggest_units(run, known, place / "out-set", config)
    assert (place / "out-set" / "suggestions.gpkg").read_bytes() == (place / "of-set.gpkg").read_bytes()
    assert by_units.suggestions.labelled_tiles == of_set.labelled_tiles == one.labelled_tiles


@pytest.mark.parametrize("changed", ["raster", "labels"])
def test_inputs_that_change_stop_the_job(place: Path, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = labelled(place)
    compute, calls = BandMeans.__call__, 0

    def edit(self: BandMeans, *frames: ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            if changed == "raster":
                write_raster(place / "other.tif", textured(3, 70, 96, 2), TENTH_METRE @ Affine.translation(300, 0))
            else:
                geopandas.read_file(known / "tiles.gpkg").iloc[:1].to_file(known / "tiles.gpkg")
        return compute(self, *frames)

    monkeypatch.setattr(BandMeans, "__call__", edit)
    with pytest.raises(InputError, match="changed while they were read") as caught:
        work(place, known=known)
    assert "\n" not in str(caught.value)
    stopped = jobs(place / "out").stopped
    assert stopped is not None
    assert not (place / "out" / "suggestions.gpkg").exists()


def test_a_worker_whose_embeddings_differ_is_refused_or_tolerated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(place)
    receipt = place / "out" / "state" / "s00000-u00000.done.json"
    receipt.unlink()
    (place / "out" / "state" / "result.done.json").unlink()
    monkeypatch.setattr(BandMeans, "scale", 1.001)
    with pytest.raises(SettingError, match="differs from the job's first one"):
        work(place)
    with pytest.raises(SettingError, match="by more than"):
        work(place, worker=PartConfig(tolerance=1e-4))
    assert work(place, worker=PartConfig(tolerance=1.1e-3)).merged
    found = UnitLedger(place / "out").receipt("s00000-u00000")
    assert found.difference == pytest.approx(1e-3, rel=0.01)


def test_a_bucket_gets_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(place)
    with serve_s3(monkeypatch) as bucket:
        out = f"{bucket}/next"
        made = suggest_units(place / "run", rasters(place), out, CONFIG, file="trees.gpkg")
        assert made.merged
        assert open_storage(out).get("trees.gpkg") == (place / "plain.gpkg").read_bytes()
        again = suggest_units(place / "run", rasters(place), out, CONFIG, file="trees.gpkg")
        assert again.suggestions == made.suggestions


def test_other_jobs_settings_and_files_are_refused_in_one_line(place: Path) -> None:
    work(place)
    for refused, error, words in (
        (lambda: work(place, replace(CONFIG, tiles=5)), InputError, "settings.tiles was 12, is 5"),
        (lambda: work(place, file="b.gpkg"), InputError, "file was suggestions.gpkg, is b.gpkg"),
        (
            lambda: suggest_units(place / "run", place / "scene.tif", place / "out", CONFIG),
            InputError,
            "other inputs or settings",
        ),
        (lambda: work(place, file="../b.gpkg"), SettingError, "b.gpkg"),
        (lambda: work(place, file="b.shp"), OutputError, "suffix"),
        (lambda: work(place, replace(CONFIG, acquisition="disagreement")), SettingError, "disagreement"),
    ):
        with pytest.raises(error, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)
    empty = write_raster(place / "empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    with pytest.raises(InputError, match=r"empty\.tif.*nodata"):
        suggest_units(place / "run", empty, place / "new", CONFIG)
    known = labelled(place)
    inside = write_raster(place / "inside.tif", textured(3, 32, 32), nodata=0)
    with pytest.raises(InputError, match=r"inside\.tif: .*labelled already"):
        suggest_units(place / "run", inside, place / "all", CONFIG, known=known)
    assert not (place / "new").exists()
    assert not (place / "all" / "suggestions.gpkg").exists()


@pytest.mark.parametrize("edited", ["result", "unit", "both", "sample"])
def test_edited_files_are_errors_of_one_line(place: Path, edited: str) -> None:
    work(place)
    state, unit = place / "out" / "state", place / "out" / "units" / "s00001-u00001.npz"
    result = state / "result.done.json"
    if edited == "result":
        entries = json.loads(result.read_bytes())
        entries["tiles"][0]["raster"] = 2
        result.write_text(json.dumps(entries))
    elif edited == "sample":
        next((place / "out").glob("sample-*")).write_bytes(b"PK")
    else:
        result.unlink()
        with np.load(unit) as arrays:
            tables = dict(arrays)
        tables["window"] = tables["window"] - [0, 32, 0, 0]
        np.savez(unit, **tables)
    if edited == "both":
        # Someone who edits the receipt too moves tiles into another unit.
        path = state / "s00001-u00001.done.json"
        path.write_text(
            json.dumps(json.loads(path.read_bytes()) | {"digest": json_digest({unit.name: content_digest(unit)})})
        )
    with pytest.raises(InputError) as caught:
        work(place)
    assert "\n" not in str(caught.value)
    assert str(place / "out") in str(caught.value) or edited == "sample"


def test_the_command_line_takes_part(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = list(map(str, rasters(place)))
    options = ["--device", "cpu", "--backend", "torch", "--tiles", "12"]
    plain(place)
    app(
        ["suggest", str(place / "run"), *paths, "--out", str(place / "out"), *options, "--worker", "--part", "1/2"],
        result_action="return_value",
    )
    printed = capsys.readouterr().out
    assert "10 of 10 units are done, 10 of them by this command, which merged them" in printed
    assert (place / "out" / "suggestions.gpkg").read_bytes() == (place / "plain.gpkg").read_bytes()
    with pytest.raises(SettingError, match="--worker or --ray"):
        app(
            ["suggest", str(place / "run"), *paths, "--out", str(place / "x.gpkg"), "--part", "1/2"],
            result_action="return_value",
        )
    with pytest.raises(InputError, match="is a job of `geograft suggest`"):
        predict_units(place / "run", place / "scene.tif", place / "out")
