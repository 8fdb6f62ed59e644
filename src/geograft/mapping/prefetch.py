"""Reading and writing while something else computes."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import Full, Queue
from typing import Any, TypeVar

Item = TypeVar("Item")
WAITING = 2
"""Items that wait for what is behind."""
LOOK_S = 0.2
"""How often the one who waits looks whether what is behind has failed."""
_END, _STOP = object(), object()


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


@contextmanager
def behind(use: Callable[[Iterator[Item]], None]) -> Iterator[Callable[[Item], None]]:
    """Give a function that passes an item on to `use`, which takes all of them, in order, in a thread of its own.

    A few items wait at most; then passing on takes until there is room. An error of `use` comes up at the next item, or
    when the block ends. When the block fails, what was passed on is still used; then `use` is left where it waits.
    """
    waiting: Queue[Any] = Queue(WAITING)
    with ThreadPoolExecutor(1, "behind") as thread:
        working = thread.submit(_use_all, use, waiting)

        def put(item: Any) -> None:
            while not working.done():
                with suppress(Full):
                    waiting.put(item, timeout=LOOK_S)
                    return
            working.result()

        try:
            yield put
        except BaseException:
            with suppress(Exception):
                put(_STOP)
            raise
        put(_END)
        working.result()


class _StopError(Exception):
    """The one who passed items on has failed."""


def _use_all(use: Callable[[Iterator[Any]], None], waiting: "Queue[Any]") -> None:
    with suppress(_StopError):
        use(_taken(waiting))


def _taken(waiting: "Queue[Any]") -> Iterator[Any]:
    while (item := waiting.get()) is not _END:
        if item is _STOP:
            raise _StopError
        yield item
