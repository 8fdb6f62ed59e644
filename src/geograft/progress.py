"""Progress bars with rate and time left, on a terminal only."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")


class RateColumn(ProgressColumn):
    """Column of the rate, in units of the task per second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text, empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


class ProgressBar:
    """A progress bar with a short note at its end."""

    def __init__(self, bar: Progress, total: float, description: str, unit: str) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, unit=unit, note="")

    def advance(self, amount: float = 1) -> None:
        """Advance the bar by `amount` units."""
        self._bar.advance(self._task, amount)

    def set_note(self, text: str) -> None:
        """Show `text` at the end of the bar."""
        self._bar.update(self._task, note=text)


@contextmanager
def progress_bar(description: str, total: float, unit: str, enabled: bool = True) -> Iterator[ProgressBar]:
    """Show a progress bar on stderr during the block, if `enabled` and stderr is a terminal."""
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
        yield ProgressBar(bar, total, description, unit)


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield `items` one by one with a progress bar."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def announce(text: str) -> None:
    """Print a line on stderr, above later progress bars, if stderr is a terminal."""
    console = Console(stderr=True, highlight=False, markup=False)
    if console.is_terminal:
        console.print(text)
