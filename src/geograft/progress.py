"""Progress of long steps on stderr: bars on a terminal, plain lines elsewhere, or JSON for programs."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")

LINE_S = 60.0
"""Seconds between two lines of a step where stderr is not a terminal. A shorter step prints none."""
JSON_LINE_S = 1.0
"""Seconds between two lines of a step as JSON."""
VARIABLE = "GEOGRAFT_PROGRESS"
"""Environment variable that tells this process and its children to write JSON; `report_as_json` sets it."""


class RateColumn(ProgressColumn):
    """Column of the rate, in units of the task per second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text, empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


class StepProgress:
    """The progress of a step in lines: amount done, total, rate, time left; at most one line every `line_s` seconds."""

    def __init__(self, description: str, total: float, unit: str, done: float, line_s: float) -> None:
        self._description, self._total, self._unit, self._line_s = description, total, unit, line_s
        self._done = self._before = done
        self._started = self._printed = time.monotonic()
        self._json = json_progress()
        self.figures: Mapping[str, float] = {}
        """Figures of the step so far, for lines of JSON."""

    def advance(self, amount: float) -> None:
        """Add `amount`, and print a line if the last one is old enough."""
        self._done += amount
        now = time.monotonic()
        if now - self._printed >= self._line_s:
            self._printed = now
            if self._json:
                self.write("progress", self.figures)
            else:
                announce(self._line(now))

    def write(self, event: str, figures: Mapping[str, float]) -> None:
        """Write the progress and `figures` as a line of JSON."""
        rate = self._rate(time.monotonic())
        write_event(
            event,
            step=self._description,
            done=self._done,
            total=self._total,
            unit=self._unit,
            rate=rate or None,
            seconds_left=self._seconds_left(rate) if rate else None,
            figures=figures,
        )

    def _line(self, now: float) -> str:
        rate = self._rate(now)
        line = f"{self._description}: {self._done:,.5g} of {self._total:,.5g} {self._unit}"
        if not rate:
            return line
        left = timedelta(seconds=round(self._seconds_left(rate)))
        return f"{line}, {rate:,.3g} {self._unit}/s, {left} left"

    def _rate(self, now: float) -> float:
        # Over this process's time, without what an interrupted job did before.
        return (self._done - self._before) / (now - self._started) if now > self._started else 0.0

    def _seconds_left(self, rate: float) -> float:
        # timedelta overflows beyond years.
        return min(max(0.0, self._total - self._done) / rate, 1e9)


class ProgressBar:
    """A progress bar with a short note at its end; lines where stderr is not a terminal."""

    def __init__(self, bar: Progress, description: str, total: float, unit: str, done: float) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, unit=unit, note="")
        bar.update(self._task, completed=done)
        self.lines: StepProgress | None = None
        """Set where lines are printed in place of the bar."""

    def advance(self, amount: float = 1) -> None:
        """Advance the bar by `amount` units."""
        self._bar.advance(self._task, amount)
        if self.lines is not None:
            self.lines.advance(amount)

    def set_note(self, text: str, **figures: float) -> None:
        """Show `text` at the end of the bar, or `figures` in the following lines of JSON."""
        self._bar.update(self._task, note=text)
        if self.lines is not None:
            self.lines.figures = figures

    def end_epoch(self, text: str, figures: Mapping[str, float]) -> None:
        """Print a line about an epoch where stderr is not a terminal: `text`, or `figures` as JSON."""
        if self.lines is None:
            return
        if json_progress():
            self.lines.write("epoch", figures)
        else:
            announce(text)


class UnitsShown:
    """The progress of a job on a bar: the units that are done, by all workers, and a part of those in hand."""

    def __init__(self, bar: ProgressBar, done: float) -> None:
        self._bar, self._shown, self._done, self._part = bar, float(done), float(done), 0.0

    def update(self, done: int) -> None:
        """Show the number of units that are done, with none in hand."""
        self._done, self._part = done, 0.0
        self._advance()

    def add(self, fraction: float) -> None:
        """Add a fraction of a unit in hand."""
        self._part += fraction
        self._advance()

    def _advance(self) -> None:
        self._bar.advance(max(0.0, self._done + self._part - self._shown))
        self._shown = max(self._shown, self._done + self._part)


@contextmanager
def progress_bar(
    description: str, total: float, unit: str, enabled: bool = True, done: float = 0, line_s: float | None = None
) -> Iterator[ProgressBar]:
    """Show the progress of the block on stderr, if `enabled`: a bar on a terminal, elsewhere a line every minute.

    `done` is the amount that an earlier job did. `line_s` is the time between two lines in seconds, LINE_S by default.
    Within `report_as_json`, a line of JSON at the start, every JSON_LINE_S and at the end.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    as_json = json_progress()
    with_bar = enabled and console.is_terminal and not as_json
    with Progress(*columns, console=console, disable=not with_bar, transient=True) as bar:
        shown = ProgressBar(bar, description, total, unit, done)
        if not enabled or with_bar:
            yield shown
            return
        every = JSON_LINE_S if as_json else LINE_S if line_s is None else line_s
        shown.lines = StepProgress(description, total, unit, done, every)
        if as_json:
            shown.lines.write("progress", {})
        yield shown
        if as_json:
            shown.lines.write("progress", shown.lines.figures)


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield `items` one by one with a progress bar."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def announce(text: str) -> None:
    """Print a line on stderr, above later progress bars."""
    if json_progress():
        write_event("message", text=text)
    else:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


@contextmanager
def report_as_json(enabled: bool = True) -> Iterator[None]:
    """Write progress and messages of the block as JSON, if `enabled`: one object a line on stderr (docs/programs.md).

    Also those of processes that start within the block.
    """
    before = os.environ.get(VARIABLE)
    if enabled:
        os.environ[VARIABLE] = "json"
    try:
        yield
    finally:
        if enabled:
            os.environ.pop(VARIABLE)
            os.environ.update({} if before is None else {VARIABLE: before})


def json_progress() -> bool:
    """Return whether progress is written as JSON."""
    return os.environ.get(VARIABLE) == "json"


def write_event(event: str, **content: object) -> None:
    """Write an object with `event` and `content` as a line of JSON on stderr.

    Numbers that JSON does not have (NaN, infinity) become null. A program that no longer reads does not stop a command.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write(json.dumps({"event": event} | _finite(content), allow_nan=False) + "\n")
        sys.stderr.flush()


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content
