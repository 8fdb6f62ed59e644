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

import geograft.commands.predict as predicting
import geograft.mapping.polygons.ledger as polygon_ledger
from geograft.card import WEIGHTS
from geograft.cli import main
from geograft.interrupts import Interrupted, handle_signals, postpone_interrupts, received_signal
from geograft.training.checkpoint import LAST, STATE
from geograft.training.loop import _Run
from geograft.training.step import Step
from tests.support.rasters import write_raster
from tests.support.runs import PixelwisePredictor, make_run

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


def send(number: int) -> None:
    """Send this process a signal; not SIGINT, which may end a worker of pytest-xdist."""
    os.kill(os.getpid(), number)


def exit_of(*arguments: str | Path) -> Any:
    """Return the exit code of the command line."""
    try:
        main([str(each) for each in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def signalling(function: Callable[..., Any], call: int, number: int, after: bool = False) -> Callable[..., Any]:
    """Return `function`, which sends a signal to this process in its `call`-th call."""
    calls = 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            send(number)
        result = function(*args, **options)
        if calls == call and after:
            send(number)
        return result

    return wrapped


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
    whole: Path,
    tiles: Path,
    tmp_path: Path,
) -> None:
    command = ("train", str(tiles), "--out", str(tmp_path / "run"), *TRAINING)
    moment = [str(int(number)), owner.__module__, owner.__name__, name, str(call), "after" if after else "before"]
    # A process of its own: a signal that went astray would end the process that runs the tests.
    script = [sys.executable, "-m", "tests.support.interrupt_train", *moment, *command]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number, done.stderr
    card = tmp_path / "run" / "card.json"
    assert not card.exists() or not json.loads(card.read_text())["finished"]
    assert (tmp_path / "run" / STATE).exists()
    assert done.stderr.splitlines()[-1] == f"geograft: {kept}; continue with --resume."
    assert exit_of(*command, "--resume") == 0
    for file in (WEIGHTS, LAST):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()


def test_ctrl_c_in_a_map_keeps_its_strips_and_the_same_command_resumes(
    whole: Path, fields: Path, tmp_path: Path
) -> None:
    command = ("predict", str(whole), str(fields / "scene.tif"), "--batch-size", "2", "--backend", "torch", "--out")
    moment = (str(int(signal.SIGINT)), "geograft.inference.predictor", "EnsemblePredictor", "__call__", "40", "before")
    script = [sys.executable, "-m", "tests.support.interrupt_train", *moment, *command, str(tmp_path / "map.tif")]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "% of the map" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "map.tif").exists()
    assert list(tmp_path.glob(".map*"))
    for name in ("map.tif", "whole.tif"):
        assert exit_of(*command, tmp_path / name) == 0
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "number", "whole_group"),
    [
        (("--workers", "1"), signal.SIGINT, True),
        (("--devices", "2"), signal.SIGINT, True),
        (("--devices", "2"), signal.SIGTERM, False),
    ],
)
def test_a_signal_ends_all_processes_with_the_state_saved(
    settings: tuple[str, ...], number: int, whole_group: bool, tiles: Path, tmp_path: Path
) -> None:
    """The signal arrives while the first workers start; Ctrl-C reaches the whole group of processes."""
    command = [sys.executable, "-m", "geograft", "train", str(tiles), *TRAINING, *settings, "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("training on ")
        (os.killpg if whole_group else os.kill)(process.pid, number)
        # The pipe is closed once no process is left that could write to it.
        lines = process.stderr.read().splitlines()
    assert process.returncode == 128 + number
    assert [line for line in lines if not line.startswith("epoch ")] == [lines[-1]]
    assert lines[-1].startswith("geograft: Stopped in epoch 1 of 2; ")
    subprocess.run([*command, str(tmp_path / "run"), "--resume"], check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 300, 80), dtype=np.uint8)
    return write_raster(tmp_path / "raster.tif", pixels)


@pytest.mark.parametrize("number", [signal.SIGTERM])
@pytest.mark.parametrize(("call", "kept"), [(1, False), (6, True)])
def test_an_interrupted_map_is_kept_and_resumed_to_the_same_bytes(
    *,
    call: int,
    kept: bool,
    number: int,
    raster: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(predicting, "EnsemblePredictor", PixelwisePredictor)
    command = ("predict", run, raster, "--batch-size", "2", "--out")
    assert exit_of(*command, tmp_path / "whole.tif") == 0
    with monkeypatch.context() as patch:
        patch.setattr(PixelwisePredictor, "__call__", signalling(PixelwisePredictor.__call__, call, number))
        assert exit_of(*command, tmp_path / "map.tif") == 128 + number
    assert not (tmp_path / "map.tif").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert ("% of the map is kept; run the same command again" in lines[0]) == kept
    assert bool(list(tmp_path.glob(".map*"))) == kept
    assert exit_of(*command, tmp_path / "map.tif") == 0
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_interrupted_polygons_are_kept_and_resumed_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = 2 * 512 + 40
    classes = np.random.default_rng(0).integers(0, 2, (1, rows // 8, 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    image = write_raster(tmp_path / "map.tif", classes)
    assert exit_of("polygons", image, "--out", tmp_path / "whole" / "map.geojson") == 0
    add = signalling(polygon_ledger.PolygonLedger.add, 1, signal.SIGTERM, after=True)
    with monkeypatch.context() as patch:
        patch.setattr(polygon_ledger.PolygonLedger, "add", add)
        assert exit_of("polygons", image, "--out", tmp_path / "map.geojson") == 143
    assert capsys.readouterr().err.startswith("geograft: Stopped; ")
    assert not (tmp_path / "map.geojson").exists()
    assert exit_of("polygons", image, "--out", tmp_path / "map.geojson") == 0
    assert (tmp_path / "map.geojson").read_bytes() == (tmp_path / "whole" / "map.geojson").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_an_interrupted_prepare_writes_nothing(
    number: int, fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import geograft.commands.prepare as preparing

    monkeypatch.setattr(preparing, "write_json", signalling(preparing.write_json, 1, number))
    command = ("prepare", "vector", fields / "scene.tif", "--labels", fields / "fields.gpkg")
    command = (*command, "--tile-px", "32", "--val", "0", "--test", "0", "--out", tmp_path / "tiles")
    assert exit_of(*command) == 128 + number
    assert capsys.readouterr().err == "geograft: Stopped; nothing was written.\n"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_prepare_writes_nothing_and_the_same_command_works(fields: Path, tmp_path: Path) -> None:
    command = ("prepare", "vector", str(fields / "scene.tif"), "--labels", str(fields / "fields.gpkg"))
    command = (*command, "--tile-px", "32", "--val", "0", "--test", "0", "--out", str(tmp_path / "tiles"))
    moment = (str(int(signal.SIGINT)), "geograft.progress", "ProgressBar", "advance", "1", "before")
    script = [sys.executable, "-m", "tests.support.interrupt_train", *moment, *command]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "geograft: Stopped; nothing was written.\n"
    assert not list(tmp_path.iterdir())
    assert exit_of(*command) == 0


def read_until(process: "subprocess.Popen[str]", event: str) -> dict[str, Any]:
    """Return the first line of JSON with this event."""
    assert process.stderr is not None
    for line in process.stderr:
        content: dict[str, Any] = json.loads(line)
        if content["event"] == event:
            return content
    pytest.fail(f"no {event}")


def test_closing_standard_input_cancels_a_training_that_resumes_to_identical_weights(
    whole: Path, tiles: Path, tmp_path: Path
) -> None:
    command = ("train", str(tiles), "--out", str(tmp_path / "run"), *TRAINING)
    script = [sys.executable, "-m", "geograft", *command, "--progress", "json"]
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        # Before torch is imported: written input is ignored.
        assert read_until(process, "start")["command"] == "train"
        process.stdin.write("input\n")
        process.stdin.flush()
        epoch = read_until(process, "epoch")
        assert 0 <= epoch["figures"]["val_iou"] <= 1 and 0 < epoch["done"] < epoch["total"]
        process.stdin.close()
        last = read_until(process, "interrupted")
    assert process.returncode == last["exit_code"] == 143
    assert "--resume" in last["text"]
    assert exit_of(*command, "--resume") == 0
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_file_or_the_null_device_as_standard_input_cancels_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal, time\nfrom geograft.interrupts import cancel_at_end_of_input, handle_signals\n"
        "with handle_signals(), cancel_at_end_of_input():\n time.sleep(0.2)\nprint('done')"
    )
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", Path(os.devnull)):
        with path.open() as empty:
            done = subprocess.run([sys.executable, "-c", script], stdin=empty, capture_output=True, check=True)
        assert done.stdout == b"done\n"


def test_handlers_are_those_of_before_after_the_block() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handle_signals():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    with pytest.raises(Interrupted), handle_signals():
        send(signal.SIGTERM)
    # Later work in this process is not interrupted.
    assert not received_signal()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with handle_signals():
            send(signal.SIGTERM)
            assert not received_signal()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_postponed_interrupt_is_raised_at_the_end() -> None:
    reached = False
    with pytest.raises(Interrupted), handle_signals(), postpone_interrupts():
        send(signal.SIGTERM)
        reached = received_signal() == signal.SIGTERM
    assert reached


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
