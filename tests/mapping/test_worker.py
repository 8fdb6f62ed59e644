"""Workers of one map: whatever their number, order, kills and repetitions, the units are the whole map."""

import json
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from geograft.cli import app
from geograft.commands.jobs import jobs
from geograft.commands.predict import predict
from geograft.commands.units import MapJob, predict_units
from geograft.config import PredictConfig, WorkerConfig
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.styles import sidecar_paths
from geograft.geo.rasters.tags import map_legend
from geograft.geo.scene import to_inputs
from geograft.interrupts import Interrupted
from geograft.locations import to_places
from geograft.locks import lock_output
from geograft.mapping.claims import LeaseWatch, Timing
from geograft.mapping.unit_ledger import JobState, Lease, Receipt, UnitLedger, UnitState
from geograft.mapping.unit_outputs import read_receipts
from geograft.mapping.units import UnitGrid, parse_part, unit_order
from geograft.storage import open_storage
from tests.support.azure import az_container
from tests.support.gs import gs_bucket
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, ContextPredictor, make_run
from tests.support.s3 import bucket

__all__ = ["az_container", "bucket", "gs_bucket"]

ROOT = Path(__file__).parents[2]
FAST = Timing(heartbeat_s=0.05, expiry_s=0.4, poll_s=0.02, list_s=0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of 64 pixels, quick leases, and a network that needs no torch."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    monkeypatch.setattr(
        "geograft.mapping.map_units.plan_units", lambda tiles, *_: UnitGrid(tiles.height, tiles.width, 64)
    )
    monkeypatch.setattr("geograft.mapping.worker.TIMING", FAST)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a run, and a scene of six units of which one is nodata."""
    make_run(tmp_path / "run", COVERS)
    pixels = textured(3, 110, 150)
    pixels[:, :80, 55:132] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    return tmp_path


def work(place: Path, config: PredictConfig | None = None, **options: Any) -> Any:
    return predict_units(place / "run", place / "scene.tif", place / "out", config, worker=WorkerConfig(**options))


def plain(place: Path, config: PredictConfig | None = None) -> Path:
    predict(place / "run", place / "scene.tif", place / "plain" / "map.tif", config)
    return place / "plain" / "map.tif"


def pixels_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        found: np.ndarray = raster.read()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_one_file_has_the_bytes_of_one_process(place: Path) -> None:
    config = PredictConfig(probabilities="uint8", uncertainty=True)
    expected = plain(place, config).parent
    made = work(place, config, one_file=True)
    assert (made.done, made.units, made.computed) == (6, 6, 6)
    for path in sorted(expected.iterdir()):
        assert (place / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    again = work(place, config, one_file=True)
    assert again.computed == 0
    assert again.summary == made.summary


def test_a_unit_whose_file_was_lost_is_named(place: Path) -> None:
    """What it held would be nodata in one file, and nobody would notice."""
    work(place)
    unit = place / "out" / "units" / "r00000-c00000.tif"
    content = unit.read_bytes()
    for damaged in (None, content[:-1]):
        unit.unlink() if damaged is None else unit.write_bytes(damaged)
        with pytest.raises(InputError, match=r"r00000-c00000\.tif is not the file that its receipt describes"):
            work(place, one_file=True)
        assert not (place / "out" / "map.tif").exists()
    unit.unlink()
    (place / "out" / "state" / "r00000-c00000.done.json").unlink()
    assert work(place, one_file=True).computed == 1
    assert (place / "out" / "map.tif").read_bytes() == plain(place).read_bytes()


def test_indices_are_the_map_with_names_and_colours(place: Path) -> None:
    config = PredictConfig(probabilities="uint8")
    expected = plain(place, config)
    work(place, config)
    for kind, suffix in (("", "vrt"), ("", "gti.gpkg"), (".probabilities", "vrt"), (".probabilities", "gti.gpkg")):
        made = place / "out" / f"map{kind}.{suffix}"
        with rasterio.open(expected.with_name(f"map{kind}.tif")) as one, rasterio.open(made) as other:
            np.testing.assert_array_equal(one.read(), other.read())
            for what in ("crs", "transform", "nodata", "shape", "descriptions"):
                assert getattr(one, what) == getattr(other, what), what
            assert {name: text for name, text in one.tags().items() if name != "AREA_OR_POINT"} == {
                name: text for name, text in other.tags().items() if name != "AREA_OR_POINT"
            }
            if not kind:
                for value in COVERS.values:
                    assert one.colormap(1)[value] == other.colormap(1)[value]
    assert (place / "out" / "map.qml").read_bytes() == sidecar_paths(expected)[1].read_bytes()
    # Every command that takes a map takes the index.
    with Image.open(place / "out" / "map.vrt") as image:
        assert map_legend(image.info) == COVERS


def test_the_catalogue_is_valid_and_leads_to_the_files(place: Path) -> None:
    pystac = pytest.importorskip("pystac")
    work(place)
    collection = pystac.Collection.from_file(str(place / "out" / "collection.json"))
    items = list(collection.get_items())
    assert len(items) == 5
    for item in items:
        item.validate()
        with rasterio.open(item.assets["map"].get_absolute_href()) as raster:
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    collection.validate()


# ------------------------------------------------------------------------------------------------------ many, and kills


def test_eight_workers_share_a_folder_without_loss(place: Path) -> None:
    expected = plain(place).read_bytes()
    results: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: results.append(work(place, part=f"{n}/8"))) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert {result.done for result in results} == {6}
    # Nobody was slow enough to lose a claim.
    assert sum(result.computed for result in results) == 6
    work(place, one_file=True)
    assert (place / "out" / "map.tif").read_bytes() == expected
    assert not [path for path in (place / "out" / "state").iterdir() if "done" not in path.name]
    assert not [path.name for path in place.iterdir() if path.name.startswith(".")]


def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """Processes killed by SIGKILL in claims, in files, in receipts and within a unit, three times over."""
    command = [sys.executable, "-m", "tests.support.kill_worker", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4
    for moment, *signals in lines:
        # Some moments come only once in a job.
        assert int(signals[0]) == signal.SIGKILL, moment
        for name in ("map.tif", "map.tif.aux.xml", "map.vrt"):
            assert (tmp_path / moment / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), moment
        for path in (tmp_path / "whole" / "units").iterdir():
            assert (tmp_path / moment / "units" / path.name).read_bytes() == path.read_bytes()


class Slow(ContextPredictor):
    """Takes a moment for each batch, so that others come in between."""

    def __call__(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return super().__call__(pixels, valid)


def test_a_claim_is_renewed_for_as_long_as_its_unit_takes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Slow)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(work(place))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.computed for result in results) == 6


def claimed(place: Path, name: str, host: str, process: int = 1) -> UnitLedger:
    """Leave a claim as a worker that was killed does."""
    ledger = UnitLedger(place / "out")
    assert ledger.claim(name, 1, Lease(f"{host}, process {process}", host, process, "a"))
    return ledger


@pytest.mark.parametrize("host", ["elsewhere", platform.node()])
def test_claims_of_the_dead_are_taken_over(place: Path, host: str) -> None:
    work(place)
    (place / "out" / "state" / "r00000-c00000.done.json").unlink()
    (place / "out" / "summary.json").unlink()
    claimed(place, "r00000-c00000", host, 2**22 + 5)
    started = time.monotonic()
    assert work(place).computed == 1
    waited = time.monotonic() - started
    assert host == platform.node() or waited >= FAST.expiry_s
    assert jobs(place / "out").done == 6


def test_leases_expire_by_the_watchers_clock_alone() -> None:
    watch = LeaseWatch(0.05)
    leased = JobState({"a": UnitState(attempts=1, lease="etag 1"), "b": UnitState(attempts=1, lease="etag 1")})
    watch.observe(leased)
    assert not watch.has_expired("a", leased.of("a"))
    time.sleep(0.06)
    renewed = JobState({"a": UnitState(attempts=1, lease="etag 2"), "b": UnitState(attempts=1, lease="etag 1")})
    watch.observe(renewed)
    assert not watch.has_expired("a", renewed.of("a"))
    assert watch.has_expired("b", renewed.of("b"))
    # Another attempt is another lease.
    assert not watch.has_expired("b", UnitState(attempts=2, lease="etag 1"))


# ------------------------------------------------------------------------------------------------ bits, and who differs


TOLERANT = WorkerConfig(tolerance=0.9)


class Rival(ContextPredictor):
    """Predicts like a machine that rounds differently."""

    change = 1e-3

    def predict_run(self, seen: np.ndarray) -> np.ndarray:
        found = super().predict_run(seen)
        found[:, 0] = (found[:, 0] + np.float32(self.change)).clip(0, 1)
        return found


def test_a_worker_that_gives_other_bits_is_refused_or_tolerated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(place)
    (place / "out" / "state" / "r00000-c00000.done.json").unlink()
    (place / "out" / "units" / "r00000-c00000.tif").unlink()
    (place / "out" / "summary.json").unlink()
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Rival)
    with pytest.raises(SettingError, match="differs from the job's first one"):
        work(place)
    with pytest.raises(SettingError, match="by more than"):
        work(place, tolerance=1e-4)
    made = work(place, tolerance=1.1e-3)
    assert made.computed == 1
    receipt = UnitLedger(place / "out").receipt("r00000-c00000")
    assert receipt.difference == pytest.approx(1e-3, abs=1e-5)
    (accepted,) = UnitLedger(place / "out").accepted()
    assert (accepted.difference, accepted.flips) == (receipt.difference, receipt.flips)
    assert accepted.pixels % 32**2 == 0
    assert made.summary.accepted == (accepted,)
    assert made.summary.accepted_pixels == receipt.pixels
    assert any(f"{accepted.flips:,}" in line for line in jobs(place / "out").lines() if accepted.worker in line)


def test_class_flips_of_a_unit_that_was_computed_twice_are_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(place)
    kept = files(place / "out" / "units")
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Rival)
    monkeypatch.setattr(Rival, "change", 0.2)
    changed = pixels_of(plain(place))
    job = MapJob(to_places(place / "run"), to_inputs(place / "scene.tif"), place / "out")
    late = replace(job, worker=TOLERANT).join()
    flips = 0
    for index, unit in enumerate(late.job.grid):
        holding = late.compute(index)
        assert holding.difference == 0, "the receipt of the first worker holds"
        if path := next(iter((place / "out" / "units").glob(f"{holding.unit}.tif")), None):
            flips += int((pixels_of(path) != changed[:, *unit.slices]).sum())
    status = jobs(place / "out")
    assert sum(one.flips for one in status.differing) == flips > 0
    assert sum(one.pixels for one in status.differing) == sum(
        UnitLedger(place / "out").receipt(one.unit).pixels for one in status.differing
    )
    assert {name: content for name, content in files(place / "out" / "units").items() if name in kept} == kept
    (place / "out" / "summary.json").unlink()
    monkeypatch.undo()


def test_the_file_is_that_of_the_receipt_that_holds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers that differ finish a unit at the same moment: one is first with its file, and then its receipt."""
    work(place)
    (place / "out" / "summary.json").unlink()
    kept, path = files(place / "out" / "units"), place / "out" / "state" / "r00000-c00000.done.json"
    receipt, add = path.read_bytes(), UnitLedger.add_receipt
    path.unlink()

    def added(self: UnitLedger, own: Receipt) -> Receipt:
        path.write_bytes(receipt)
        return add(self, own)

    with monkeypatch.context() as patch:
        patch.setattr(UnitLedger, "add_receipt", added)
        patch.setattr("geograft.mapping.models.EnsemblePredictor", Rival)
        patch.setattr(Rival, "change", 0.2)
        late = MapJob(to_places(place / "run"), to_inputs(place / "scene.tif"), place / "out", worker=TOLERANT).join()
        assert late.compute(0).difference == 0
    assert jobs(place / "out").differing
    assert files(place / "out" / "units") == kept
    work(place)


def test_other_hardware_is_refused_by_name_though_its_bits_agree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(place)
    monkeypatch.setattr("geograft.mapping.environment._instruction_set", lambda: "x86_64 avx512f")
    with pytest.raises(SettingError, match=r"instruction_set was .*, is x86_64 avx512f"):
        work(place)
    assert work(place, tolerance=0.0).done == 6


def test_the_second_to_arrive_must_have_the_same_pixels(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose claim was taken over delivers late: the same unit is accepted, another one stops the job."""
    expected = files_of(place)
    late = place / "out" / "state" / "r00000-c00002.done.json"
    receipt = late.read_bytes()
    late.unlink()
    assert work(place).computed == 1
    assert files_of(place) == expected
    assert json.loads(late.read_bytes())["digest"] == json.loads(receipt)["digest"]
    late.unlink()
    # The sample agrees, but this unit does not.
    monkeypatch.setattr("geograft.mapping.environment.pixels_digest", lambda path: str(path.parent.name == "there"))
    with pytest.raises(OutputError, match="r00000-c00002 has other values from"):
        work(place)
    status = jobs(place / "out")
    assert status.stopped is not None
    monkeypatch.undo()


def files_of(place: Path) -> dict[str, bytes]:
    work(place)
    (place / "out" / "summary.json").unlink()
    return files(place / "out" / "units")


# ----------------------------------------------------------------------------------------------- failures, and the list


def test_a_unit_that_fails_is_reported_and_tried_again_after_cleaning(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(place).read_bytes()
    read = Mosaic.read

    def damaged(self: Mosaic, window: Any) -> Any:
        # Where the windows of the sample cannot be read, no worker can join.
        if (place / "out" / "job.json").exists() and window.stop_row > 100 and window.stop_col > 140:
            raise InputError("scene.tif: rows 100 to 110 cannot be read: the file is damaged")
        return read(self, window)

    monkeypatch.setattr(Mosaic, "read", damaged)
    with pytest.raises(InputError, match=r"2 of 6 units could not be computed\. r00001-c00001: scene\.tif: rows 100"):
        work(place)
    status = jobs(place / "out")
    assert (status.done, list(status.failed), status.summary) == (4, ["r00001-c00001", "r00001-c00002"], None)
    assert "r00001-c00002 failed" in "\n".join(status.lines())
    monkeypatch.setattr(Mosaic, "read", read)
    cleaned = jobs(place / "out", clean=True)
    # A claim and a failure of each.
    assert (cleaned.cleaned, cleaned.failed) == (4, {})
    assert work(place, one_file=True).computed == 2
    assert (place / "out" / "map.tif").read_bytes() == expected
    assert jobs(place / "out").summary is not None


def test_a_unit_that_kills_its_workers_is_given_up(place: Path) -> None:
    work(place)
    (place / "out" / "state" / "r00000-c00000.done.json").unlink()
    ledger = UnitLedger(place / "out")
    for attempt in range(1, 6):
        ledger.claim("r00000-c00000", attempt, Lease("x, process 1", "x", 1, str(attempt)))
    with pytest.raises(InputError, match="1 of 6 units could not be computed"):
        work(place)
    assert [one.worker for one in ledger.leases("r00000-c00000")] == ["x, process 1"] * 5


def test_a_raster_that_changes_stops_the_job(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: Any) -> None:
        raise InputError("scene.tif changed while it was read")

    monkeypatch.setattr("geograft.mapping.map_units.MapUnitWriter.check_unchanged", changed)
    with pytest.raises(InputError, match="changed while it was read"):
        work(place)
    monkeypatch.undo()
    assert jobs(place / "out").stopped is not None


def test_other_inputs_or_settings_are_refused_by_name(place: Path) -> None:
    work(place)
    with pytest.raises(InputError, match=r"settings\.uncertainty was False, is True"):
        work(place, PredictConfig(uncertainty=True))
    write_raster(place / "scene.tif", textured(3, 110, 150, seed=1), nodata=0)
    with pytest.raises(InputError, match="rasters"):
        work(place)


def test_the_folder_is_of_workers_or_of_one_process(place: Path) -> None:
    work(place)
    with pytest.raises(OutputError, match="is a job of workers"):
        predict(place / "run", place / "scene.tif", place / "out")
    with lock_output(place / "out", shared=True), pytest.raises(OutputError, match="is being written by"):
        jobs(place / "out", clean=True)
    with lock_output(place / "out"), pytest.raises(OutputError, match="is being written by"):
        work(place)
    (place / "other").mkdir()
    (place / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="has other files"):
        predict_units(place / "run", place / "scene.tif", place / "other")
    assert [path.name for path in (place / "other").iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is not a job of workers"):
        jobs(place / "plain")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", b"{"),
        ("job.json", b'{"origin": {}}'),
        ("job.json", b"units of scenes"),
        ("state/r00000-c00000.done.json", b"[]"),
        ("state/r00000-c00000.done.json", b"\xff"),
        ("sample", b"PK"),
    ],
)
def test_edited_files_are_errors_of_one_line(place: Path, name: str, content: bytes) -> None:
    work(place)
    (place / "out" / "summary.json").unlink()
    path = next((place / "out").glob("sample-*")) if name == "sample" else place / "out" / name
    if content == b"units of scenes":
        content = json.dumps(json.loads(path.read_bytes()) | {"units": {"counts": [2, 4]}}).encode()
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        work(place)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="0123456789/", max_size=5))
def test_parts_are_parsed_or_refused(text: str) -> None:
    try:
        number, parts = parse_part(text, {})
    except SettingError:
        return
    assert 0 <= number < parts


def test_array_variables_are_translated() -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert parse_part("", slurm) == (2, 4)
    assert parse_part("1/4", slurm) == (0, 4)
    assert parse_part("", {"AWS_BATCH_JOB_ARRAY_INDEX": "3", "AWS_BATCH_JOB_ARRAY_SIZE": "9"}) == (3, 9)
    assert parse_part("", {"JOB_COMPLETION_INDEX": "70"}) == (6, 64)


@given(st.integers(1, 60), st.integers(1, 20))
def test_orders_have_each_unit_once_and_begin_apart(units: int, parts: int) -> None:
    orders = [unit_order(units, number, parts) for number in range(parts)]
    assert all(sorted(order) == list(range(units)) for order in orders)
    assert len({order[0] for order in orders}) == min(units, parts)


@pytest.mark.parametrize("server", ["bucket", "gs_bucket", "az_container"])
def test_workers_share_a_bucket(
    place: Path, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers at once make the files of one process."""
    expected, bucket = plain(place), request.getfixturevalue(server)
    monkeypatch.setattr("geograft.mapping.worker.TIMING", Timing(0.5, 30.0, 0.1, 0.1))
    storage, out = open_storage(bucket), f"{bucket}/region"
    made: list[Any] = []

    def run(**options: Any) -> None:
        made.append(predict_units(place / "run", place / "scene.tif", out, worker=WorkerConfig(**options)))

    threads = [threading.Thread(target=run, kwargs={"part": f"{number}/2"}) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(one_file=True)
    assert sum(one.computed for one in made) == 6
    assert made[2].computed == 0
    for path in sorted(expected.parent.iterdir()):
        assert storage.get(f"region/{path.name}") == path.read_bytes(), path.name
    status = jobs(out)
    assert (status.done, len(status.running), status.summary) == (6, 0, made[2].summary)
    assert jobs(out, clean=True).cleaned == 0


@pytest.mark.parametrize("option", ["--part=1/2", "--tolerance=0.1", "--one-file"])
def test_settings_of_a_worker_need_one(option: str) -> None:
    with pytest.raises(SettingError, match="Add --worker"):
        app(["predict", "run", "scene.tif", "--out", "out", option], exit_on_error=False, print_error=False)


def test_an_interrupted_worker_gives_its_claim_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(ContextPredictor):
        calls = 0

        def __call__(self, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
            type(self).calls += 1
            if self.calls == 9:  # the sample takes four
                raise Interrupted
            return super().__call__(pixels, valid)

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Interrupting)
    with pytest.raises(Interrupted) as caught:
        work(place)
    status = jobs(place / "out")
    assert status.running == ()
    assert status.failed == {}
    assert 0 < status.done < 6
    assert f"{status.done} of 6 units" in str(caught.value.__notes__)
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    assert work(place).computed == 6 - status.done


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values of a JSON document."""
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [found for name, part in items for found in leaves(part, (*path, name))]
    return [path]


@pytest.mark.parametrize("name", ["job.json", "state/r00000-c00000.done.json", "summary.json"])
def test_no_value_in_a_file_of_a_job_gives_a_traceback(place: Path, name: str) -> None:
    work(place)
    ledger, path = UnitLedger(place / "out"), place / "out" / name
    content = path.read_bytes()
    # The origin is compared as a whole, and the environment is text.
    chosen = [where for where in leaves(json.loads(content)) if where[0] not in ("origin", "environment", "about")]
    for where in chosen:
        for value in (None, -1, 10**30, "../x", []):
            edited = json.loads(content)
            part = edited
            for step in where[:-1]:
                part = part[step]
            part[where[-1]] = value
            path.write_text(json.dumps(edited))
            with suppress(GeograftError):
                jobs(place / "out").lines()
                read_receipts(ledger, ledger.read_job())  # type: ignore[arg-type]
    path.write_bytes(content)
