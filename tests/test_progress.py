"""Progress on stderr: plain lines where it is not a terminal."""

import json
import math
import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft import progress
from geograft.progress import StepProgress, announce, progress_bar, report_as_json, track, write_event


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands at the first entry."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("seconds", "lines"), [(0, 0), (59, 0), (60, 1), (130, 2), (600, 10)])
def test_a_long_step_prints_a_line_a_minute_and_a_short_one_none(
    seconds: int, lines: int, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("mapping", seconds or 1, "Mpx") as bar:
        for second in range(1, seconds + 1):
            clock[0] = second
            bar.advance()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == lines


def test_a_line_has_done_total_rate_and_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("predict [a].tif", 1000, "Mpx", done=400) as bar:
        clock[0] = 100
        bar.advance(200)
    # 200 of this process in 100 s, and 400 left.
    assert capsys.readouterr().err == "predict [a].tif: 600 of 1,000 Mpx, 2 Mpx/s, 0:03:20 left\n"


def test_disabled_progress_and_short_loops_print_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("training", 10, "tiles", enabled=False) as bar:
        clock[0] = 1e6
        bar.advance(5)
        bar.end_epoch("an epoch", {})
    assert list(track([1, 2, 3], 3, "reading", "tiles")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


@given(
    total=st.floats(0, 1e12),
    done=st.floats(0, 1e12),
    amounts=st.lists(st.floats(0, 1e12), max_size=5),
)
def test_any_amounts_give_a_line(total: float, done: float, amounts: list[float]) -> None:
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "announce", printed.append)
        plain = StepProgress("step", total, "tiles", done, line_s=0)
        for amount in amounts:
            plain.advance(amount)
    assert len(printed) == len(amounts)
    assert all(line.startswith("step: ") and "\n" not in line for line in printed)


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the objects written to stderr; stdout must be empty."""
    printed = capsys.readouterr()
    assert printed.out == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in printed.err.splitlines()]


def test_a_step_as_json_has_a_line_at_both_ends_and_every_second(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with report_as_json(), progress_bar("predict [a].tif", 10, "Mpx", done=4, line_s=math.inf) as bar:
        for second in (0.5, 1.0, 1.5, 2.0):
            clock[0] = second
            bar.set_note("a note", loss=second)
            bar.advance(1)
    shown = events(capsys)
    assert [(each["event"], each["step"], each["unit"]) for each in shown] == [
        ("progress", "predict [a].tif", "Mpx")
    ] * 4
    # 2 Mpx per second, and what is left at that rate.
    keys = ("done", "total", "rate", "seconds_left", "figures")
    assert [tuple(each[key] for key in keys) for each in shown] == [
        (4, 10, None, None, {}),
        (6, 10, 2, 2, {"loss": 1.0}),
        (8, 10, 2, 1, {"loss": 2.0}),
        (8, 10, 2, 1, {"loss": 2.0}),
    ]


def test_epochs_and_messages_as_json(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with report_as_json(), progress_bar("training", 2, "tiles") as bar:
        announce("a [line] with \n \udce9")
        bar.end_epoch("an epoch", {"epoch": 1, "val_iou": math.nan, "val_loss": math.inf})
    _, message, epoch, _ = events(capsys)
    assert message == {"event": "message", "text": "a [line] with \n \udce9"}
    assert (epoch["event"], epoch["figures"]) == ("epoch", {"epoch": 1, "val_iou": None, "val_loss": None})


def test_json_ends_with_its_block_and_disabled_progress_stays_silent(capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    with report_as_json(enabled=False):
        announce("text")
    with report_as_json(), report_as_json(), progress_bar("training", 2, "tiles", enabled=False) as bar:
        bar.advance()
        bar.end_epoch("an epoch", {})
    assert capsys.readouterr().err == "text\n"
    assert dict(os.environ) == before


def test_a_reader_that_went_away_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        write_event("message", text="x" * 100_000)
        monkeypatch.undo()
        # What is in the buffer cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe.fileno())
