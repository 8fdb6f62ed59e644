"""Threads before and behind: order, errors where they belong, and nothing left running."""

import threading
import time
from collections.abc import Iterator

import pytest

from geograft.errors import InputError, OutputError
from geograft.mapping.prefetch import ahead, behind


def failing() -> Iterator[int]:
    yield from range(3)
    raise InputError("the fourth")


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("ahead", "behind"))]


def test_ahead_keeps_order_and_raises_where_the_item_would_be() -> None:
    assert list(ahead(iter(range(50)))) == list(range(50))
    found = []
    with pytest.raises(InputError, match="the fourth"):
        found.extend(ahead(failing()))
    items = ahead(failing())
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(InputError):
        next(items)
    assert not running()


def test_behind_uses_all_items_in_order() -> None:
    used: list[int] = []
    with behind(used.extend) as put:
        for item in range(50):
            put(item)
    assert used == list(range(50))
    assert not running()


def test_an_error_behind_comes_up_at_a_later_item_or_at_the_end() -> None:
    def use(items: Iterator[int]) -> None:
        assert next(items) == 0
        raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="full"), behind(use) as put:
        for item in range(10**6):
            put(item)
    with pytest.raises(OutputError, match="full"), behind(use) as put:
        put(0)
    assert not running()


def test_when_the_block_fails_what_was_passed_on_is_used_and_no_end_is_seen() -> None:
    used: list[object] = []

    def use(items: Iterator[int]) -> None:
        for item in items:
            time.sleep(0.01)
            used.append(item)
        used.append("end")

    with pytest.raises(InputError, match="the fourth"), behind(use) as put:
        for item in failing():
            put(item)
    assert used == [0, 1, 2]
    assert not running()


def test_the_error_of_the_block_comes_before_one_behind_it() -> None:
    def use(items: Iterator[int]) -> None:
        list(items)
        raise OutputError("never reached")

    with pytest.raises(InputError, match="the fourth"), behind(use) as put:
        for item in failing():
            put(item)
