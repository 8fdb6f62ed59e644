"""Polygons by units: whatever the units and their order, they are those of the whole map, to the bit."""

import pickle
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.cli import app
from geograft.commands.jobs import jobs
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.commands.units import PolygonJob, polygon_units, predict_units
from geograft.config import PartConfig, PolygonConfig, PredictConfig
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.opening import raster_state
from geograft.mapping.claims import Timing
from geograft.mapping.polygons.joins import OutlineFiles, gather_polygons, join_units
from geograft.mapping.polygons.ledger import PolygonLedger
from geograft.mapping.polygons.outlines import PolygonBuilder
from geograft.mapping.polygons.regions import ClassMapSource, RegionMerger
from geograft.mapping.polygons.shapes import unpack_wkb
from geograft.mapping.polygons.units import trace_unit
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import JoinTree, UnitGrid
from geograft.storage import open_storage
from tests.mapping.polygons.test_shapes import class_maps, reader
from tests.support.rasters import write_raster
from tests.support.ray_map import BLOCKED
from tests.support.runs import USES, BandPredictor, make_run
from tests.support.s3 import serve_s3

BLOCK = 4
FAST = Timing(heartbeat_s=0.05, expiry_s=0.4, poll_s=0.02, list_s=0.0)
SETTINGS = st.builds(
    PolygonConfig,
    min_area_m2=st.sampled_from([0.0, 3.0]),
    fill_holes_m2=st.sampled_from([0.0, 3.0]),
    simplify_m=st.sampled_from([0.0, 1.2]),
    smooth=st.sampled_from([0, 1]),
    connectivity=st.sampled_from([4, 8]),
) | st.builds(PolygonConfig, square=st.just(True), connectivity=st.sampled_from([4, 8]))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few pixels, and quick leases."""
    for module in BLOCKED:
        monkeypatch.setattr(f"geograft.{module}.BLOCK_PX", BLOCK)
    monkeypatch.setattr("geograft.mapping.worker.TIMING", FAST)


def map_source(values: ndarray, kept: ndarray) -> ClassMapSource:
    """Return a map whose sums count pixels, and their rows and columns."""

    def sums(window: Window, labels: ndarray, label_values: ndarray) -> ndarray:
        rows, cols = np.mgrid[window.row : window.stop_row, window.col : window.stop_col]
        inside = labels > 0
        weights = (None, rows[inside], cols[inside])
        found = [np.bincount(labels[inside] - 1, weight, len(label_values)) for weight in weights]
        return np.stack(found, axis=1).astype(np.int64)

    return ClassMapSource(*values.shape, reader(values, kept), sum_pixels=sums)


def pixel_grid(height: int, width: int) -> Grid:
    return Grid(height, width, Affine.identity(), None)


def whole(source: ClassMapSource, builder: PolygonBuilder) -> list[dict[str, Any]]:
    merger = RegionMerger(source.width, builder.settings.connectivity, builder.reach_px)
    return [builder.polygons_of_row(source, merger, row) for row in source.block_rows(BLOCK)]


def by_units(
    source: ClassMapSource, builder: PolygonBuilder, unit_px: int, order: Sequence[int] = (), again: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Return the polygons by units and joins, in `order` as far as what they need is there; some are made `again`."""
    tree = JoinTree(UnitGrid(source.height, source.width, unit_px))
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = OutlineFiles(UnitLedger(folder), tree, folder)

        def make(index: int) -> dict[str, Any]:
            if tree.joined(index):
                found = join_units(files, builder, index, 1, lambda part: None)
            else:
                traced = trace_unit(source, builder, tree.window(index), index)
                found = {f"0_{name}": array for name, array in traced.items()}
            path = folder / f"{index}.npz"
            np.savez(path, **found)  # type: ignore[arg-type]
            files.known[index] = path if found else None
            return found

        waiting, made = list(order) or list(range(len(tree))), {}
        while waiting:
            index = next(one for one in waiting if made.keys() >= set(chain.from_iterable(tree.joined(one))))
            made[index] = make(index)
            waiting.remove(index)
        for index in again:
            repeated = make(index)
            assert repeated.keys() == made[index].keys()
            assert all(np.array_equal(repeated[name], made[index][name]) for name in repeated)
        ledger = PolygonLedger(folder / "part", {}, source.height)
        gather_polygons(files, builder, ledger)
        return [{name: arrays[name] for name in arrays.names} for _, arrays in ledger.parts()]


def content(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all that is written of polygons, in order; of filled holes and those left out, in any order."""
    names = ("value", "area", "perimeter", "sums", "first", "forms")
    found: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]).tolist() for name in names}
    found["wkb"] = b"".join(part["wkb"].tobytes() for part in parts)
    found["left_out"] = sum(int(part["left_out"]) for part in parts)
    for part in parts:
        for name in part:
            if name.startswith("holes_") and not name.endswith("_ends"):
                own = shapely.to_wkb(unpack_wkb(part[name], part[f"{name}_ends"])).tolist()
                found[name] = sorted([*found.get(name, []), *own])
    return found


@settings(deadline=None, max_examples=40)
@given(class_maps(), SETTINGS, st.sampled_from([4, 8, 12]), st.data())
def test_units_in_any_order_and_twice_are_the_whole(
    scene: tuple[ndarray, ndarray], config: PolygonConfig, unit_px: int, data: st.DataObject
) -> None:
    source = map_source(*scene)
    builder = PolygonBuilder(pixel_grid(source.height, source.width), config)
    count = len(JoinTree(UnitGrid(source.height, source.width, unit_px)))
    order, again = data.draw(st.permutations(range(count))), data.draw(st.lists(st.integers(0, count - 1), max_size=3))
    assert content(by_units(source, builder, unit_px, order, again)) == content(whole(source, builder))


def road_net(side: int) -> tuple[ndarray, ndarray]:
    """Return a net of roads through all units, fields between them, and pixels without data."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:side, :side]
    wavy = cols + np.rint(2 * np.sin(rows / 5)).astype(int)
    roads = ((rows % 13) < 2) | ((wavy % 17) < 2)
    return np.where(roads, 1, 2 + (rows // 40 + cols // 40) % 3).astype(np.uint8), rng.random((side, side)) < 0.98


@pytest.mark.parametrize(
    ("config", "limit"), [(PolygonConfig(), 2**20), (PolygonConfig(simplify_m=1.0, smooth=1, fill_holes_m2=4), 0)]
)
def test_a_road_net_over_64_units_is_that_of_the_whole(
    config: PolygonConfig, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its parts are stitched, as those of large regions are."""
    monkeypatch.setattr("geograft.mapping.polygons.regions.MAX_UNION_VERTICES", limit)
    source = map_source(*road_net(128))
    builder = PolygonBuilder(pixel_grid(128, 128), config)
    expected = content(whole(source, builder))
    found = content(by_units(source, builder, 16))
    assert found == expected
    # One region crosses all units.
    rows = list(zip(found["value"], found["sums"], strict=True))
    pixels = {value: max(sums[0] for own, sums in rows if own == value) for value in (1, 2)}
    assert pixels[1] > 0.9 * (road_net(128)[0] == 1).sum() > pixels[2]


def test_units_that_touch_at_a_corner_only() -> None:
    values = np.zeros((16, 16), np.uint8)
    values[4:8, 4:8] = values[8:12, 8:12] = 1
    values[3, 8] = values[12, 7] = 1
    for connectivity in (4, 8):
        source = map_source(values, values > 0)
        builder = PolygonBuilder(pixel_grid(16, 16), PolygonConfig(connectivity=connectivity))
        found = content(by_units(source, builder, 8))
        assert found == content(whole(source, builder))
        assert len(found["value"]) == {4: 4, 8: 1}[connectivity]


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a map of overlapping classes and its probabilities, and small units."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", BandPredictor)
    for module in BLOCKED:
        monkeypatch.setattr(f"geograft.{module}.BLOCK_PX", 8)
    plan = "geograft.commands.units.plan_polygon_units"
    monkeypatch.setattr(plan, lambda grid: UnitGrid(grid.height, grid.width, 16))
    units = "geograft.mapping.map_units.plan_units"
    monkeypatch.setattr(units, lambda tiles, *_: UnitGrid(tiles.height, tiles.width, 64))
    rng = np.random.default_rng(0)
    pixels = np.where(rng.integers(0, 2, (3, 6, 8)).repeat(5, 1).repeat(4, 2), 230, 20).astype(np.uint8)
    pixels[:, :5, :7] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    make_run(tmp_path / "run", USES, tile_px=32)
    predict(tmp_path / "run", tmp_path / "scene.tif", tmp_path / "map.tif", PredictConfig(probabilities="uint8"))
    return tmp_path


CONFIG = PolygonConfig(min_area_m2=0.1, fill_holes_m2=0.3, simplify_m=0.15)


def work(place: Path, config: PolygonConfig = CONFIG, **options: Any) -> Any:
    return polygon_units(place / "map.tif", place / "out", config, **options)


def test_the_file_has_the_bytes_of_one_process(place: Path) -> None:
    (place / "plain").mkdir()
    for name in ("polygons.gpkg", "all.geojson", "all.fgb", "all.parquet"):
        plain = polygons(place / "map.tif", place / "plain" / name, CONFIG)
        made = polygon_units(place / "map.tif", place / f"out-{name}", CONFIG, file=name)
        assert (place / f"out-{name}" / name).read_bytes() == (place / "plain" / name).read_bytes()
        assert (made.units, made.computed, made.written) == (5, 5, True)
        assert made.summary.lines()[1:] == plain.lines()[1:]
    again = polygon_units(place / "map.tif", place / f"out-{name}", CONFIG, file=name)
    assert (again.computed, again.written, again.summary) == (0, False, made.summary)
    listed = sorted(path.name for path in (place / f"out-{name}").iterdir())
    assert listed == sorted(["job.json", "state", "units", name])


def test_a_map_of_workers_gives_the_polygons_of_the_map(place: Path) -> None:
    predict_units(place / "run", place / "scene.tif", place / "by-workers", PredictConfig(probabilities="uint8"))
    polygons(place / "map.tif", place / "plain.geojson", CONFIG)
    polygon_units(place / "by-workers", place / "out", CONFIG, file="plain.geojson")
    (place / "whole").mkdir()
    polygons(place / "by-workers", place / "whole" / "plain.geojson", CONFIG)
    mine, plain, whole = ((path / "plain.geojson").read_text() for path in (place / "out", place, place / "whole"))
    assert mine == plain == whole
    assert "mean_probability" in mine


# Python's list of warning filters is no thread's own: rasterio, which changes it for a block, may see another's.
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_workers_share_the_units_and_one_joins_them(place: Path) -> None:
    plain = polygons(place / "map.tif", place / "polygons.gpkg", CONFIG)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(work(place))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Four units and a join of them.
    assert sum(one.computed for one in results) == 5
    assert sum(one.written for one in results) == 1
    assert {one.summary.lines()[1] for one in results} == {plain.lines()[1]}
    assert (place / "out" / "polygons.gpkg").read_bytes() == (place / "polygons.gpkg").read_bytes()
    status = jobs(place / "out")
    assert (status.job.verb, status.done, status.running, status.failed) == ("polygons", 5, (), {})


def test_a_joining_worker_that_is_killed_is_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = PolygonLedger.add, 0

    def dies(self: PolygonLedger, *parts: Any) -> None:
        nonlocal calls
        calls += 1
        add(self, *parts)
        if calls == 4:
            raise MemoryError

    monkeypatch.setattr(PolygonLedger, "add", dies)
    with pytest.raises(MemoryError):
        work(place)
    status = jobs(place / "out")
    assert (status.done, list(status.failed)) == (5, ["result"])
    assert "result failed" in "\n".join(status.lines())
    made = work(place)
    assert (made.computed, made.written) == (0, True)
    polygons(place / "map.tif", place / "polygons.gpkg", CONFIG)
    assert (place / "out" / "polygons.gpkg").read_bytes() == (place / "polygons.gpkg").read_bytes()
    # It went on from the rows that were read.
    rows = 3 * -(-30 // 8)
    assert calls < 2 * rows


def test_a_join_does_not_wait_for_a_unit_that_failed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        if arguments[-1] == 2:
            raise InputError("the map cannot be read here")
        return trace_unit(*arguments)

    monkeypatch.setattr("geograft.mapping.polygons.units.trace_unit", fails)
    with pytest.raises(InputError, match=r"2 of 5 units could not be computed. r00001-c00000: the map cannot be read"):
        work(place)
    status = jobs(place / "out")
    assert (status.done, list(status.failed)) == (3, ["r00001-c00000"])
    monkeypatch.setattr("geograft.mapping.polygons.units.trace_unit", trace_unit)
    assert work(place).computed == 2


def test_a_bucket_gets_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polygons(place / "map.tif", place / "polygons.gpkg", CONFIG)
    with serve_s3(monkeypatch) as bucket:
        made = polygon_units(place / "map.tif", f"{bucket}/trees", CONFIG)
        assert made.written
        storage = open_storage(f"{bucket}/trees")
        assert storage.get("polygons.gpkg") == (place / "polygons.gpkg").read_bytes()
        assert polygon_units(place / "map.tif", f"{bucket}/trees", CONFIG).summary == made.summary


def test_other_jobs_settings_and_files_are_refused_in_one_line(place: Path) -> None:
    work(place)
    for refused, words in (
        (lambda: work(place, PolygonConfig()), "other inputs or settings: settings"),
        (lambda: work(place, file="other.gpkg"), "file was polygons.gpkg, is other.gpkg"),
        (lambda: predict_units(place / "run", place / "scene.tif", place / "out"), "is a job of `geograft polygons`"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            refused()  # type: ignore[no-untyped-call]
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="unknown suffix"):
        polygon_units(place / "map.tif", place / "new", file="trees.txt")
    for name in ("a/b.gpkg", "../b.gpkg", "", ".hidden.gpkg"):
        with pytest.raises(SettingError):
            polygon_units(place / "map.tif", place / "new", file=name)
    assert not (place / "new").exists()
    predict_units(place / "run", place / "scene.tif", place / "by-workers")
    with pytest.raises(InputError, match="is a job of `geograft predict`"):
        polygon_units(place / "map.tif", place / "by-workers")


def test_a_job_can_be_sent_to_another_process(place: Path) -> None:
    job = PolygonJob(place / "map.tif", place / "out", CONFIG)
    assert pickle.loads(pickle.dumps(job)) == job
    worker = pickle.loads(pickle.dumps(job)).join()
    receipts = [worker.compute(index) for index in (3, 0, 1, 2, 1, 4)]
    assert [one.unit for one in receipts[3:]] == ["r00001-c00000", "r00000-c00001", "j1-r00000-c00000"]
    assert receipts[2] == receipts[4]
    assert (work(place).computed, jobs(place / "out").done) == (0, 5)


def test_a_map_that_changes_stops_the_job(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, calls = raster_state, 0

    def changed(path: Path) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return state(path) | {"bytes": 1 if calls > 6 else 0}

    monkeypatch.setattr("geograft.mapping.polygons.units.raster_state", changed)
    monkeypatch.setattr("geograft.commands.units.raster_state", lambda path: state(path) | {"bytes": 0})
    with pytest.raises(InputError, match="changed while it was read"):
        work(place)
    assert jobs(place / "out").stopped is not None


def test_a_unit_that_is_not_that_of_its_receipt_is_named(place: Path) -> None:
    work(place)
    units, state = place / "out" / "units", place / "out" / "state"
    unit, result = units / "r00001-c00001.npz", state / "result.done.json"
    content = unit.read_bytes()
    for damaged in (content[:-100], (units / "r00001-c00000.npz").read_bytes(), b"", None):
        for path in (result, unit, *state.glob("result.*")):
            path.unlink(missing_ok=True)
        if damaged is not None:
            unit.write_bytes(damaged)
        with pytest.raises(InputError, match=r"r00001-c00001\.npz is not the file that its receipt describes"):
            work(place)
    (state / "r00001-c00001.done.json").unlink()
    assert work(place).computed == 1
    assert unit.read_bytes() == content


def test_an_edited_result_is_an_error_of_one_line(place: Path) -> None:
    work(place)
    path = place / "out" / "state" / "result.done.json"
    for text in ("[]", "{", "{}", '{"classes": 1}'):
        path.write_text(text)
        with pytest.raises(GeograftError) as caught:
            work(place)
        assert "\n" not in str(caught.value)


def test_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["polygons", str(place / "map.tif"), "--out", str(place / "out")]
    for option in ("--part=1/2", "--file=a.gpkg", "--tolerance=0.1"):
        with pytest.raises(SettingError, match="Add --worker"):
            app([*arguments, option], exit_on_error=False, print_error=False)
    app([*arguments, "--worker", "--part=1/2"], exit_on_error=False, print_error=False, result_action="return_value")
    assert "5 of 5 units and joins are done, 5 of them by this command, which wrote the file" in capsys.readouterr().out


def test_hardware_that_differs_is_refused_by_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(place)
    monkeypatch.setattr("geograft.mapping.environment._instruction_set", lambda: "x86_64 avx512f")
    with pytest.raises(SettingError, match=r"instruction_set was .*, is x86_64 avx512f"):
        work(place)
    assert work(place, worker=PartConfig(tolerance=0.0)).computed == 0
