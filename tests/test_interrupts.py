"""SIGINT and SIGTERM: a command keeps what it has, prints one line, exits with 130 or 143, and resumes to the bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geograft.card import WEIGHTS
from geograft.cli import main
from geograft.training.checkpoint import LAST, STATE
from geograft.training.loop import _Run
from geograft.training.step import Step
from tests.support.rasters import write_raster

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
TRAINING = (
    "--architecture", "unet", "--epochs", "2", "--batch-size", "4", "--decoder-lr", "3e-3", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Also where the tests were started with signals ignored, as jobs in the background may be."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler or signal.SIG_DFL)


def exit_of(*arguments: str | Path) -> Any:
    """Return the exit code of the command line."""
    try:
        main([str(each) for each in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


Interrupt = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def interrupt() -> Iterator[Interrupt]:
    """Runs a command that gets a signal at a moment; returns exit code and stderr: tests/support/interrupt_train.py.

    In processes of their own: a signal that went astray would end the process that runs the tests, and there Python
    runs handlers on the alternate stack of pytest's faulthandler, which some library damages (LOG.md, 2026-11-30).
    """
    script = [sys.executable, "-m", "tests.support.interrupt_train"]
    with subprocess.Popen(script, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions and answers

        def ask(number: int, moment: tuple[str, ...], *command: str | Path) -> tuple[int, str]:
            questions.write(json.dumps([int(number), moment, [str(each) for each in command]]) + "\n")
            questions.flush()
            code, text = json.loads(answers.readline())
            return code, text

        yield ask
        questions.close()


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert not exit_of("train", tiles, "--out", out, *TRAINING)
    return out


@pytest.mark.parametrize(
    ("number", "owner", "name", "call", "after", "kept"),
    [
        (signal.SIGINT, Step, "compute_gradients", 1, False, "Stopped in epoch 1 of 2"),
        (signal.SIGTERM, Step, "compute_gradients", 3, True, "Stopped in epoch 1 of 2"),
        (signal.SIGINT, _Run, "_end_step", 5, False, "Stopped in epoch 1 of 2"),
        (signal.SIGTERM, Step, "evaluate", 2, True, "Stopped in epoch 1 of 2"),
        (signal.SIGINT, _Run, "_write", 1, False, "Stopped in epoch 2 of 2"),
        # In the last epoch's files, when only the card is missing.
        (signal.SIGTERM, _Run, "_write", 2, True, "Stopped"),
    ],
)
def test_an_interrupted_training_resumes_to_identical_weights(
    *,
    number: int,
    owner: type,
    name: str,
    call: int,
    after: bool,
    kept: str,
    interrupt: Interrupt,
    whole: Path,
    tiles: Path,
    tmp_path: Path,
) -> None:
    command = ("train", str(tiles), "--out", str(tmp_path / "run"), *TRAINING)
    moment = (owner.__module__, owner.__name__, name, str(call), "after" if after else "before")
    code, text = interrupt(number, moment, *command)
    assert code == 128 + number, text
    card = tmp_path / "run" / "card.json"
    assert not card.exists() or not json.loads(card.read_text())["finished"]
    assert (tmp_path / "run" / STATE).exists()
    assert text.splitlines()[-1] == f"geograft: {kept}; continue with --resume."
    assert exit_of(*command, "--resume") == 0
    for file in (WEIGHTS, LAST):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(("number", "call", "kept"), [(signal.SIGINT, 40, True), (signal.SIGTERM, 1, False)])
def test_an_interrupted_map_is_kept_and_resumed_to_the_same_bytes(
    *, number: int, call: int, kept: bool, interrupt: Interrupt, whole: Path, fields: Path, tmp_path: Path
) -> None:
    windows = ("--window-px", "32", "--overlap", "0.5", "--batch-size", "2", "--backend", "torch")
    command = ("predict", whole, fields / "scene.tif", *windows, "--out")
    moment = ("geograft.inference.predictor", "EnsemblePredictor", "__call__", str(call), "before")
    code, text = interrupt(number, moment, *command, tmp_path / "map.tif")
    assert code == 128 + number, text
    assert ("% of the map is kept; run the same command again" in text.splitlines()[-1]) == kept
    assert not (tmp_path / "map.tif").exists()
    assert bool(list(tmp_path.glob(".map*"))) == kept
    for name in ("map.tif", "whole.tif"):
        assert exit_of(*command, tmp_path / name) == 0
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


@pytest.fixture(scope="module")
def whole_of_two(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that was not interrupted."""
    out = tmp_path_factory.mktemp("whole") / "two"
    command = [sys.executable, "-m", "geograft", "train", str(tiles), *TRAINING, "--devices", "2", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "number", "whole_group", "expected"),
    [
        (("--workers", "1"), signal.SIGINT, True, "whole"),
        (("--devices", "2"), signal.SIGINT, True, "whole_of_two"),
        (("--devices", "2"), signal.SIGTERM, False, "whole_of_two"),
    ],
)
def test_a_signal_ends_all_processes_with_the_state_saved(
    *,
    settings: tuple[str, ...],
    number: int,
    whole_group: bool,
    expected: str,
    tiles: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The signal arrives while the first workers start; Ctrl-C reaches the whole group of processes."""
    command = [sys.executable, "-m", "geograft", "train", str(tiles), *TRAINING, *settings, "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        # Lines of the plan come first.
        assert any(line.startswith("training on ") for line in process.stderr)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        # The pipe is closed once no process is left that could write to it.
        lines = process.stderr.read().splitlines()
    assert process.returncode == 128 + number
    assert [line for line in lines if not line.startswith("epoch ")] == [lines[-1]]
    assert lines[-1].startswith("geograft: Stopped in epoch 1 of 2; ")
    subprocess.run([*command, str(tmp_path / "run"), "--resume"], check=True, capture_output=True)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (request.getfixturevalue(expected) / WEIGHTS).read_bytes()


def test_interrupted_polygons_are_kept_and_resumed_to_the_same_bytes(interrupt: Interrupt, tmp_path: Path) -> None:
    rows = 2 * 512 + 40
    classes = np.random.default_rng(0).integers(0, 2, (1, rows // 8, 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    image = write_raster(tmp_path / "map.tif", classes)
    assert exit_of("polygons", image, "--out", tmp_path / "whole" / "map.geojson") == 0
    moment = ("geograft.mapping.polygons.ledger", "PolygonLedger", "add", "1", "after")
    code, text = interrupt(signal.SIGTERM, moment, "polygons", image, "--out", tmp_path / "map.geojson")
    assert code == 143
    assert text.splitlines()[-1].startswith("geograft: Stopped; ")
    assert not (tmp_path / "map.geojson").exists()
    assert exit_of("polygons", image, "--out", tmp_path / "map.geojson") == 0
    assert (tmp_path / "map.geojson").read_bytes() == (tmp_path / "whole" / "map.geojson").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_prepare_writes_nothing(number: int, interrupt: Interrupt, fields: Path, tmp_path: Path) -> None:
    command = ("prepare", "vector", fields / "scene.tif", "--labels", fields / "fields.gpkg")
    command = (*command, "--tile-px", "32", "--val", "0", "--test", "0", "--out", tmp_path / "tiles")
    code, text = interrupt(number, ("geograft.commands.prepare", "", "write_json", "1", "before"), *command)
    assert code == 128 + number, text
    assert text.splitlines()[-1] == "geograft: Stopped; nothing was written."
    assert not list(tmp_path.iterdir())


HANDLERS = """
import os, signal
from geograft.interrupts import Interrupted, handle_signals, postpone_interrupts, received_signal

numbers = signal.SIGINT, signal.SIGTERM
signal.signal(signal.SIGINT, signal.default_int_handler)
before = [signal.getsignal(number) for number in numbers]
with handle_signals():
    assert [signal.getsignal(number) for number in numbers] != before
try:
    with handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError
except Interrupted:
    pass
# Later work in this process is not interrupted.
assert not received_signal()
assert [signal.getsignal(number) for number in numbers] == before

# A postponed interrupt is raised at the end.
reached = False
try:
    with handle_signals(), postpone_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        reached = received_signal() == signal.SIGTERM
    raise AssertionError
except Interrupted:
    assert reached

# An ignored signal stays ignored.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with handle_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    assert not received_signal()
"""


def test_handlers_are_in_effect_within_their_block_only() -> None:
    done = subprocess.run([sys.executable, "-c", HANDLERS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_handlers_nothing_is_postponed() -> None:
    script = (
        "import signal\nfrom geograft.interrupts import Interrupted, postpone_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n with postpone_interrupts():\n  signal.raise_signal(signal.SIGINT)\n  print('postponed')\n"
        "except KeyboardInterrupt as error:\n print(isinstance(error, Interrupted))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_second_ctrl_c_ends_at_once(second: int, code: int) -> None:
    """A second SIGTERM does not: `timeout` sends two."""
    script = (
        "import os, signal, sys\nfrom geograft import interrupts\ninterrupts.SAME_SIGNAL_S = -1\n"
        "try:\n with interrupts.handle_signals(), interrupts.postpone_interrupts():\n"
        f"  os.kill(os.getpid(), {signal.SIGTERM:d})\n  os.kill(os.getpid(), {second:d})\n  print('reached')\n"
        "except KeyboardInterrupt:\n pass"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "" if code else "reached\n"), done.stderr
