"""A killed `geograft polygons` job resumes to the same file; changed inputs or settings are refused."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from numpy import ndarray

from geograft.commands.polygons import polygons
from geograft.config import PolygonConfig
from geograft.errors import InputError, OutputError
from geograft.geo.rasters.raster import Image
from geograft.mapping.polygons.ledger import PolygonLedger
from geograft.mapping.polygons.regions import ClassMapSource, RegionMerger, finish_row
from tests.commands.test_polygons import covers, write_map
from tests.mapping.polygons.test_shapes import CONNECTIVITY, class_maps, reader

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_job_killed_at_any_moment_resumes_to_the_same_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.kill_polygons", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moments = [line.split() for line in done.stdout.splitlines()]
    assert len(moments) == 14
    assert {signal for _, signal, _ in moments} == {"9"}
    assert {rows for _, _, rows in moments} == {"0", "1024", "2048", "2600"}
    whole = (tmp_path / "whole" / "map.gpkg").read_bytes()
    for name, _, _ in moments:
        assert (tmp_path / name / "map.gpkg").read_bytes() == whole, name
        assert [path.name for path in (tmp_path / name).iterdir()] == ["map.gpkg"], name


@settings(deadline=None, max_examples=30)
@given(class_maps(), CONNECTIVITY)
def test_saving_and_loading_the_state_does_not_change_the_regions(
    scene: tuple[ndarray, ndarray], connectivity: int
) -> None:
    values, kept = scene
    source = ClassMapSource(
        *values.shape, reader(values, kept), sum_pixels=lambda window, labels, owners: owners[:, None]
    )
    found: dict[bool, list[bytes]] = {}
    for saved in (False, True):
        stored: list[dict[str, ndarray]] = []
        read_row = partial(_stored_row, stored)
        seams = RegionMerger(values.shape[1], connectivity, 2, read_row)
        shapes = []
        for row in source.block_rows(5):
            for some in finish_row(source, seams, row, 5, 2):
                shapes += [(shapely.to_wkb(region.shape), region.sums.tobytes()) for region in some.regions]
                shapes.append((some.corners.turns.tobytes(), some.corners.nodes.tobytes()))
            if saved:
                stored.append(seams.take_parts())
                state = seams.state()
                seams = RegionMerger(values.shape[1], connectivity, 2, read_row)
                seams.load_state(state)
        found[saved] = [b"".join(pair) for pair in shapes]
    assert found[False] == found[True]


def _stored_row(stored: list[dict[str, ndarray]], number: int) -> nullcontext[dict[str, ndarray]]:
    return nullcontext(stored[-number])


def test_open_regions_are_stored_once_and_their_state_does_not_grow() -> None:
    """A comb: one region with a tooth in every row, which ends in the last row of blocks."""
    values = np.zeros((400, 60), np.uint8)
    values[:, :3] = values[::2] = 1
    source = ClassMapSource(*values.shape, reader(values, values == 1), sum_pixels=lambda w, _, v: v[:, None])
    stored: list[dict[str, ndarray]] = []
    merger = RegionMerger(60, 4, 2, partial(_stored_row, stored))
    sizes, found = [], []
    for row in source.block_rows(20):
        found += [region for some in finish_row(source, merger, row, 20, 2) for region in some.regions]
        stored.append(merger.take_parts())
        sizes.append([sum(array.nbytes for array in arrays.values()) for arrays in (stored[-1], merger.state())])
    parts, states = np.array(sizes[:-1]).T
    assert len(found) == 1
    assert found[0].shape.area == values.sum()
    assert states.max() == states.min()
    assert parts[1:].max() < 1.1 * parts[1:].min()


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with map.tif and the partial results of a job that failed in the second row of blocks."""
    path = write_map(tmp_path / "map.tif", np.tile(covers(90), (20, 1)))
    read = Image.read

    def failing(self: Image, window: object, *rest: object) -> tuple[ndarray, ndarray]:
        if window.row:  # type: ignore[attr-defined]
            raise InputError("map.tif: rows 1024 to 1800 cannot be read.")
        return read(self, window, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Image, "read", failing)
        with pytest.raises(InputError, match=r"1024 of 1800 rows .*\.map\.gpkg\.part"):
            polygons(path, tmp_path / "map.gpkg")
    return tmp_path


def test_after_a_late_failure_finished_rows_are_not_recomputed(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = json.loads((stopped / ".map.gpkg.part" / "ledger.json").read_text())
    assert (ledger["rows_done"], ledger["rows"], ledger["parts"]) == (1024, 1800, [0])
    polygons(stopped / "map.tif", stopped / "whole.gpkg")
    rows, read = [], Image.read
    monkeypatch.setattr(Image, "read", lambda self, window, *rest: rows.append(window.row) or read(self, window, *rest))
    polygons(stopped / "map.tif", stopped / "map.gpkg")
    assert rows == [1024]
    assert sorted(path.name for path in stopped.iterdir()) == ["map.gpkg", "map.tif", "whole.gpkg"]


def test_another_setting_is_refused(stopped: Path) -> None:
    with pytest.raises(InputError, match=r"settings\.min_area_m2 was 0\.0, is 3\.0\. Remove .*\.map\.gpkg\.part\b"):
        polygons(stopped / "map.tif", stopped / "map.gpkg", PolygonConfig(min_area_m2=3))


def test_a_map_that_changed_is_refused(stopped: Path) -> None:
    write_map(stopped / "map.tif", np.tile(covers(90), (20, 1)))
    with pytest.raises(InputError, match=r"polygons .*: map\.modified was"):
        polygons(stopped / "map.tif", stopped / "map.gpkg")


@pytest.mark.parametrize("name", ["ledger.json", "part-00000000.npz", "open-00001024.npz"])
def test_the_error_names_a_damaged_file(stopped: Path, name: str) -> None:
    path = stopped / ".map.gpkg.part" / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=rf"{name} .*Remove .*\.part\b") as caught:
        polygons(stopped / "map.tif", stopped / "map.gpkg")
    assert "\n" not in str(caught.value)
    assert not (stopped / "map.gpkg").exists()


def test_an_output_created_in_the_meantime_is_not_replaced(stopped: Path) -> None:
    (stopped / "map.gpkg").write_text("mine")
    with pytest.raises(OutputError, match=r"map\.gpkg exists"):
        polygons(stopped / "map.tif", stopped / "map.gpkg")
    assert (stopped / "map.gpkg").read_text() == "mine"


def test_arrays_are_read_from_a_reopened_ledger(tmp_path: Path) -> None:
    ledger = PolygonLedger(tmp_path / "parts", {"a": 1}, 20)
    for row in (10, 20):
        ledger.add(row, {"area": np.arange(row)}, {"next": np.array(row)})
    reopened = PolygonLedger(tmp_path / "parts", {"a": 1}, 20)
    found = [(row, part.names, len(part["area"])) for row, part in reopened.parts()]
    assert found == [(0, ["area"], 10), (10, ["area"], 20)]
    assert reopened.state() == {"next": 20}
    assert sorted(path.name for path in reopened.folder.iterdir()) == [
        "ledger.json",
        "open-00000020.npz",
        "part-00000000.npz",
        "part-00000010.npz",
    ]
