"""Reading while something else computes."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield the same items in the same order; while one is used, the next is made in a thread of its own.

    All items are made in that one thread, so an open file is never used by two. An error comes up where its item would.
    Closing waits for the item that is being made.
    """
    end = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
