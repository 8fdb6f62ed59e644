"""Progress of long steps on stderr: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")

LINE_S = 60.0
"""Seconds between two lines of a step where stderr is not a terminal. A shorter step prints none."""


class RateColumn(ProgressColumn):
    """Column of the rate, in units of the task per second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text, empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


class PlainProgress:
    """The progress of a step as lines: amount done, total, rate, time left; at most one every `line_s` seconds."""

    def __init__(self, description: str, total: float, unit: str, done: float, line_s: float) -> None:
        self._description, self._total, self._unit, self._line_s = description, total, unit, line_s
        self._done = self._before = done
        self._started = self._printed = time.monotonic()

    def advance(self, amount: float) -> None:
        """Add `amount`, and print a line if the last one is old enough."""
        self._done += amount
        now = time.monotonic()
        if now - self._printed >= self._line_s:
            self._printed = now
            announce(self._line(now))

    def _line(self, now: float) -> str:
        # Over this process's time, without what an interrupted job did before.
        rate = (self._done - self._before) / (now - self._started) if now > self._started else 0.0
        line = f"{self._description}: {self._done:,.5g} of {self._total:,.5g} {self._unit}"
        if not rate:
            return line
        # timedelta overflows beyond years.
        left = timedelta(seconds=round(min(max(0.0, self._total - self._done) / rate, 1e9)))
        return f"{line}, {rate:,.3g} {self._unit}/s, {left} left"


class ProgressBar:
    """A progress bar with a short note at its end; lines where stderr is not a terminal."""

    def __init__(self, bar: Progress, description: str, total: float, unit: str, done: float) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, unit=unit, note="")
        bar.update(self._task, completed=done)
        self.plain: PlainProgress | None = None
        """Set where lines are printed in place of the bar."""

    def advance(self, amount: float = 1) -> None:
        """Advance the bar by `amount` units."""
        self._bar.advance(self._task, amount)
        if self.plain is not None:
            self.plain.advance(amount)

    def set_note(self, text: str) -> None:
        """Show `text` at the end of the bar."""
        self._bar.update(self._task, note=text)

    def print_line(self, text: str) -> None:
        """Print a line of its own where stderr is not a terminal."""
        if self.plain is not None:
            announce(text)


@contextmanager
def progress_bar(
    description: str, total: float, unit: str, enabled: bool = True, done: float = 0, line_s: float | None = None
) -> Iterator[ProgressBar]:
    """Show the progress of the block on stderr, if `enabled`: a bar on a terminal, elsewhere a line every minute.

    `done` is the amount that an earlier job did. `line_s` is the time between two lines in seconds, LINE_S by default.
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
    with Progress(*columns, console=console, disable=not (enabled and console.is_terminal), transient=True) as bar:
        shown = ProgressBar(bar, description, total, unit, done)
        if enabled and not console.is_terminal:
            shown.plain = PlainProgress(description, total, unit, done, LINE_S if line_s is None else line_s)
        yield shown


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield `items` one by one with a progress bar."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def announce(text: str) -> None:
    """Print a line on stderr, above later progress bars."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)
