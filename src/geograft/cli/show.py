"""Printing what a verb returns."""

from typing import Protocol, runtime_checkable

from rich.console import Console


@runtime_checkable
class Printable(Protocol):
    """Whatever a verb returns for people to read."""

    def lines(self) -> list[str]:
        """Return the text, line by line."""


def show(result: Printable) -> None:
    """Print a verb's result on stdout as plain text."""
    Console(highlight=False, markup=False, soft_wrap=True).print("\n".join(result.lines()))
