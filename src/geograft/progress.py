"""Progress with rate and time left on a terminal; silence anywhere else."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")


class RateColumn(ProgressColumn):
    """Units per second, in the unit that the task names."""

    def render(self, task: Task) -> Text:
        """Return the rate, once it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


class Meter:
    """One bar: `advance` moves it, `note` shows a short text at its end."""

    def __init__(self, bar: Progress, total: float, description: str, unit: str) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, unit=unit, note="")

    def advance(self, amount: float = 1) -> None:
        """Move the bar by `amount` units."""
        self._bar.advance(self._task, amount)

    def note(self, text: str) -> None:
        """Show `text` at the end of the bar."""
        self._bar.update(self._task, note=text)


@contextmanager
def meter(description: str, total: float, unit: str, shown: bool = True) -> Iterator[Meter]:
    """Show one progress bar on stderr while the block runs; nothing when stderr is not a terminal, or not `shown`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as bar:
        yield Meter(bar, total, description, unit)


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield `items` one by one under a progress bar."""
    with meter(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def announce(text: str) -> None:
    """Show one line on stderr that stays above the bars to come; nothing when stderr is not a terminal."""
    console = Console(stderr=True, highlight=False, markup=False)
    if console.is_terminal:
        console.print(text)
