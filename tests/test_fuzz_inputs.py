"""Hostile input of every kind fails in one line: a part of `make fuzz-inputs`; and the harness itself."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import fuzz_inputs
from fuzz_files import ACCEPTED, ANY, REFUSED, SAME, Case, Command
from fuzz_inputs import Outcome, failures_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked processes and their limits")
LINE = "geograft: a.tif cannot be read. Check it.\n"
TRACEBACK = "Traceback (most recent call last):\nValueError: x\n"


@pytest.mark.slow
def test_every_twelfth_case_fails_cleanly() -> None:
    """In a process of its own, which forks one for each case."""
    script = [sys.executable, fuzz_inputs.__file__, "--every", "12"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def outcome(code: int = 0, stderr: str = "", stdout: str = "3 polygons in 1.2 s\n", **changes: object) -> Outcome:
    return Outcome(code, stdout, stderr, 1.0, 10**9, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "found", "faults"),
    [
        (ANY, outcome(), []),
        (ANY, outcome(1, LINE), []),
        (ANY, outcome(1, "training on 3 tiles\n" + LINE), []),
        (ANY, outcome(1, TRACEBACK, written={"part": ""}), ["traceback"]),
        (ANY, outcome(-11), ["traceback"]),
        (ANY, outcome(1, LINE + LINE), ["several lines"]),
        (ANY, outcome(1, ""), ["several lines"]),
        (ANY, outcome(1, "Warning 1: libtiff\n" + LINE), ["several lines"]),
        (ANY, outcome(0, "RuntimeWarning: overflow\n"), ["several lines"]),
        (ANY, outcome(1, LINE, written={"q/masks/a.tif": ""}), ["partial output"]),
        (ANY, outcome(0, connections=1), ["network"]),
        (ANY, outcome(-9, timed_out=True), ["hang"]),
        (REFUSED, outcome(), ["accepted"]),
        (ACCEPTED, outcome(1, LINE), ["refused"]),
        (SAME, outcome(stdout="3 polygons in 7.9 s\nNote: damaged\n"), []),
        (SAME, outcome(stdout="4 polygons in 1.2 s\n"), ["other result"]),
        (SAME, outcome(written={"m.tif": "other"}), ["other result"]),
    ],
)
def test_faults_are_recognised(expected: str, found: Outcome, faults: list[str]) -> None:
    case = Case("family", "name", Command(("polygons",)), expected=expected)
    assert failures_of(case, found, outcome(), 10**9) == faults


def test_memory_is_compared_with_an_idle_process() -> None:
    found = outcome()
    found.bytes += fuzz_inputs.LIMIT_BYTES + 1
    assert failures_of(Case("family", "name", Command(())), found, None, 10**9) == ["memory"]


def test_a_hang_a_crash_and_an_error_of_a_forked_command_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal
    import time

    import geograft.cli

    def command(arguments: tuple[str, ...]) -> None:
        match arguments[0]:
            case "hang":
                time.sleep(60)
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "allocate":
                bytearray(10**13)
            case "fail":
                sys.exit("geograft: failed")

    monkeypatch.setattr(geograft.cli, "main", command)
    ended = {
        name: fuzz_inputs.run_command((name,), tmp_path, 2) for name in ("fail", "crash", "allocate", "pass", "hang")
    }
    assert [(each.code, each.timed_out) for each in ended.values()] == [
        (1, False), (-9, False), (70, False), (0, False), (-9, True),
    ]  # fmt: skip
    assert ended["fail"].stderr == "geograft: failed\n"
    assert "MemoryError" in ended["allocate"].stderr


def test_connections_are_counted() -> None:
    import socket
    import time

    with fuzz_inputs.counting_server() as (address, connections):
        before = connections()
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            # Closed by the server, once it has counted.
            assert client.recv(1) == b""
        while connections() == before:
            time.sleep(0.01)
        assert (before, connections()) == (0, 1)
