"""The GPU benchmark's driver: lines come at once, limits hold, and a machine without a GPU is told so."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import bench_gpu
import gpu_steps
from bench_gpu import NO_GPU, STEPS, Step, run_limited, run_steps

FAR = 1e9


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_every_step_of_the_list_exists_and_ends_in_time() -> None:
    assert [step.name for step in STEPS] == list(gpu_steps.STEPS)
    # Imports and data first; with their usual times all steps fit, and the limit of the whole holds in any case.
    assert bench_gpu.arguments([]).minutes <= 6
    assert all(step.seconds <= 90 for step in STEPS)


def test_lines_are_logged_while_the_process_runs(tmp_path: Path) -> None:
    """The process ends only once a line that it printed was logged."""
    seen, lines = tmp_path / "seen", []

    def log(line: str) -> None:
        lines.append(line)
        seen.touch()

    waiting = f"import pathlib, time\nprint('first')\nwhile not pathlib.Path({str(seen)!r}).exists(): time.sleep(0.01)"
    assert run_limited(program(f"{waiting}\nprint('second')\nraise SystemExit(7)"), FAR, log) == 7
    assert lines == ["  first", "  second"]


def test_a_process_that_takes_too_long_is_killed_with_its_children() -> None:
    # The child holds the pipe open, so that this would wait for it to end.
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100_000)'])"
    assert run_limited(program(child), 0.5, list[str]().append) is None


@pytest.mark.parametrize(("status", "faults"), [(0, []), (1, ["versions"])])
def test_steps_that_fail_are_named_and_the_others_run(status: int, faults: list[str]) -> None:
    lines: list[str] = []
    steps = [Step("versions", "first", FAR), Step("data", "second", FAR)]

    def command(step: Step) -> Sequence[str]:
        return program(f"raise SystemExit({status if step.name == 'versions' else 0})")

    assert run_steps(steps, command, FAR, lines.append) == faults
    assert any("second" in line for line in lines)


def test_without_a_gpu_nothing_is_measured_and_with_no_time_left_steps_are_dropped() -> None:
    lines: list[str] = []
    steps = [Step("versions", "first", FAR), Step("data", "second", FAR)]
    assert run_steps(steps, lambda _: program(f"raise SystemExit({NO_GPU})"), FAR, lines.append) == []
    assert "no such GPU" in lines[-1]
    assert not any("second" in line for line in lines)
    assert run_steps(steps, lambda _: program(""), 0.0, lines.append) == ["versions", "data"]


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_steps, "NEEDED", ("json", "no_such_library"))
    monkeypatch.setattr(gpu_steps, "OPTIONAL", ())
    assert gpu_steps.versions(gpu_steps.Setup("cpu", Path(), small=True)) == 1
    assert "missing: no_such_library" in capsys.readouterr().out
