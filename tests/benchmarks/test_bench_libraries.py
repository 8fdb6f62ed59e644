"""The comparison with libraries: the three tables of small measurements, and what they show."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bench_libraries
from bench_libraries import class_map, ema_table, outlines_table, overviews_table, run_job, simplify


def cells(table: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the column names of a Markdown table after the first, and its rows by their first cell."""
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines())
    assert all(len(row) == len(head) for row in rows)
    return head[1:], {row[0]: row[1:] for row in rows}


def test_our_outlines_leave_no_overlap_or_gap_in_batches_and_move_at_most_by_the_tolerance(tmp_path: Path) -> None:
    head, rows = cells(outlines_table(Namespace(map_pixels=192), tmp_path))
    overlap, gaps, moved = head.index("overlap, px²"), head.index("gaps, px²"), head.index("displacement, px")
    assert list(rows) == [
        f"{name}, {how}" for how in ("in batches", "whole map") for name in ("ours", "coverage_simplify")
    ]
    for name in ("ours, in batches", "ours, whole map", "coverage_simplify, whole map"):
        assert (rows[name][overlap], rows[name][gaps]) == ("0.0", "0.0")
    assert float(rows["coverage_simplify, in batches"][overlap]) > 0
    assert rows["ours, in batches"][moved] == rows["ours, whole map"][moved] == "1.0"
    assert float(rows["coverage_simplify, whole map"][moved]) > 1
    assert rows["ours, in batches"][head.index("vertices")] == rows["ours, whole map"][head.index("vertices")]


def test_a_map_has_several_batches_and_the_same_regions_as_a_whole() -> None:
    values = class_map(128)
    batches = [before for before, _, _ in simplify(values, "ours", whole=False)]
    [whole] = [before for before, _, _ in simplify(values, "ours", whole=True)]
    assert len(batches) > 1
    assert sum(len(batch) for batch in batches) == len(whole)
    assert sum(shape.area for shape in whole) == values.size
    assert (values == class_map(128)).all()
    assert len(np.unique(values)) > 1


def test_overviews_of_means_equal_gdals(tmp_path: Path) -> None:
    given = Namespace(dense_pixels=700, sparse_pixels=1100, limit=60)
    head, rows = cells(overviews_table(given, tmp_path))
    assert list(rows) == [
        "dense, 700 x 700, mode",
        "dense, 700 x 700, average",
        "sparse, 1,100 x 1,100, mode",
        "sparse, 1,100 x 1,100, average",
    ]
    assert head[:2] == ["ours, s", "GDAL, s"]
    for name, row in rows.items():
        differ = float(row[-1].removesuffix("%"))
        assert differ < (0.005 if name.endswith("average") else 5)


def test_gdal_is_stopped_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_gdal_only(job: str, limit_s: float | None, **settings: Any) -> list[float]:
        return run_job(job, limit_s, **settings) if settings["name"] == "GDAL" else [1.0, 2, 3]

    monkeypatch.setattr(bench_libraries, "run_job", run_gdal_only)
    _, rows = cells(overviews_table(Namespace(dense_pixels=600, sparse_pixels=600, limit=0.01), tmp_path))
    for row in rows.values():
        assert row == ["1.0", "stopped at 0.01 s", "2", "", "3", "", ""]


def test_weights_equal_torchs_ema_with_our_warmup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_libraries, "UPDATES", bench_libraries.STEPS)
    head, rows = cells(ema_table(Namespace(), tmp_path))
    ours, same, *others = rows.values()
    assert next(iter(rows)) == "ModelEMA"
    assert ours[:2] == ["379 of 379", "61 of 61"]
    assert same[0] == ours[0]
    assert all(row[0].startswith("0 of ") for row in others)
    assert head[-1] == "ms per update"
    assert all(float(row[-1]) > 0 for row in rows.values())
