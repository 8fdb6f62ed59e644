"""The counts and the fit of `make bench-cost`, and the speed of `make bench-scale`."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geograft.geo.grid import Window
from geograft.mapping.units import plan_units
from geograft.mapping.windows import Lanes, TileGrid

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield SimpleNamespace(**{name: import_module(name) for name in ("bench_cost", "bench_scale", "job_size")})
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.mark.parametrize("side", [700, 2048, 4100, 9001])
@pytest.mark.parametrize(("window_px", "overlap_px"), [(640, 80), (224, 112)])
def test_counts_are_those_of_the_units(benchmarks: Any, side: int, window_px: int, overlap_px: int) -> None:
    tiles = TileGrid(side, side, window_px, overlap_px / window_px)
    size, units = benchmarks.job_size.count_job(side, window_px, overlap_px), plan_units(tiles)
    assert (size.units, size.unit_px) == (len(units), units.unit_px)
    whole = Window(0, 0, side, side)
    windows = touched = 0
    for unit in units:
        lanes = Lanes(tiles, side, unit)
        windows += len(lanes.rows) * len(lanes.columns)
        rows, columns = (
            [begins[index] for index in each]
            for begins, each in ((tiles.tops, lanes.rows), (tiles.lefts, lanes.columns))
        )
        read = Window(rows[0], columns[0], rows[-1] - rows[0] + window_px, columns[-1] - columns[0] + window_px)
        inside = read.intersection(whole)
        assert inside is not None
        touched += (-(-inside.stop_row // 512) - inside.row // 512) * (-(-inside.stop_col // 512) - inside.col // 512)
    assert (size.windows, size.blocks) == (windows, touched)


def test_the_fit_finds_the_coefficients_that_made_the_figures(benchmarks: Any) -> None:
    cost = benchmarks.bench_cost
    pipeline = {"start": 2.0, "units": 0.1, "decode deflate": 0.04, "decode zstd": 0.02, "decode none": 0.01}
    pipeline |= {"window pixels": 0.03, "map pixels": 0.05, "requests": 0.001}
    requests = {"job": 3.0, "units": 2.0, "rows of blocks": 1.5, "rows of blocks of a read": 0.1}
    network, read = {"first call": 0.5, "640": 0.3, "224": 0.05}, {"units": 1.1, "sample": 0.9}
    true = cost.CostModel(pipeline, network, requests, read, 0.2, 5000.0)
    cases = [*cost.fitted_cases(), *cost.held_out_cases()]
    found = {
        case: cost.Measured(
            true.cpu_s(case), true.output_bytes(case), true.read_bytes(case, 700_000.0), true.requests_of(case)
        )
        for case in cases
    }
    fitted = cost.fit({case: found[case] for case in cost.fitted_cases()}, lambda _: 700_000.0)
    held_out = {case: found[case] for case in cost.held_out_cases()}
    # Some counts grow nearly together, so that other coefficients than these fit as well.
    assert cost.check(fitted, held_out, lambda _: 700_000.0)[1] < 0.03
    slower = {case: replace(measured, cpu_s=1.3 * measured.cpu_s) for case, measured in held_out.items()}
    assert cost.check(fitted, slower, lambda _: 700_000.0)[1] == pytest.approx(1 - 1 / 1.3, abs=0.03)


def test_speed_counts_the_time_in_which_all_workers_compute(benchmarks: Any) -> None:
    scale = benchmarks.bench_scale
    # Each computes a unit in ten seconds; the second one starts three seconds later.
    spans = [scale.Span("a", 10.0 * n, 10.0 * n + 10) for n in range(4)]
    late = [scale.Span("b", 3 + 10.0 * n, 13 + 10.0 * n) for n in range(3)]
    assert scale.units_per_minute(spans) == pytest.approx(6)
    assert scale.units_per_minute([*spans, *late]) == pytest.approx(12)
