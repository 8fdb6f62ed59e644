"""Progress on stderr: plain lines where it is not a terminal."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft import progress
from geograft.progress import PlainProgress, progress_bar, track


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
        bar.print_line("an epoch")
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
        plain = PlainProgress("step", total, "tiles", done, line_s=0)
        for amount in amounts:
            plain.advance(amount)
    assert len(printed) == len(amounts)
    assert all(line.startswith("step: ") and "\n" not in line for line in printed)
