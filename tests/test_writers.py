"""Every command that writes: one process per output, and nothing half-written after a signal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked processes and their limits")
RESUMABLE = ("compare",)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of each command; see tests/support/interrupt_writers.py."""
    script = [sys.executable, "-m", "tests.support.interrupt_writers", str(tmp_path_factory.mktemp("writers"))]
    done = subprocess.run(script, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_second_process_is_refused_by_the_name_of_the_first(found: list[dict[str, Any]]) -> None:
    assert len({one["command"] for one in found}) == 16
    for one in found:
        assert one["codes"][0] == 1, one
        assert f"is being written by process {one['process']};" in one["last"][0], one
        assert not one["changed"][0], one
        assert not one["tracebacks"], one


@pytest.mark.slow
def test_after_a_signal_nothing_is_half_written_and_the_same_command_succeeds(found: list[dict[str, Any]]) -> None:
    interrupted = [one for one in found if len(one["codes"]) > 1]
    assert len(interrupted) > 9
    for one in interrupted:
        _, code, again = one["codes"]
        resumable = one["command"] in RESUMABLE
        kept = "run the same command again to resume" if resumable else "nothing was written"
        assert (code, one["last"][1]) == (143, f"geograft: Stopped; {kept}."), one
        assert resumable or not one["changed"][1], one
        assert (again, one["partial"][1:]) == (0, [[], []]), one
        assert one["changed"][2], one
