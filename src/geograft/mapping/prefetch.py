"""Iterators that compute their next items in a thread while the current one is used."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from geograft.interrupts import postpone_interrupts

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], depth: int = 1) -> Generator[Item, None, None]:
    """Yield the same items in the same order; up to `depth` of them are computed in advance in a thread.

    All items are computed in that one thread, so an open file is never used by two threads at once. An error is raised
    at the position of its item. Closing the generator waits for the item that is being computed, and so does an
    interrupt: the caller may then close the file.
    """
    end = object()
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        # An interrupt while the thread starts would leave it out of those that `shutdown` waits for.
        with postpone_interrupts():
            pending = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            pending.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        with postpone_interrupts():
            thread.shutdown(cancel_futures=True)
