"""The folder of a job that is not finished: what it keeps, what it says, and that it goes when it keeps nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.errors import InputError, OutputError
from geograft.resume import (
    LEDGER,
    as_json,
    begun,
    check_same,
    differences,
    is_complete,
    keeping,
    origin_of,
    save_arrays,
    write_ledger,
)

PLAIN = st.recursive(
    st.integers() | st.text(max_size=4) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner),
    max_leaves=8,
)
ORIGINS = st.dictionaries(st.text("abc", min_size=1, max_size=2), PLAIN, max_size=4)


@given(ORIGINS)
def test_nothing_differs_from_itself(origin: dict[str, Any]) -> None:
    assert differences(origin, as_json(origin)) == []


@given(ORIGINS, st.integers())
def test_an_entry_more_is_named_both_ways(origin: dict[str, Any], value: int) -> None:
    assert differences(origin, {**origin, "new": value}) == [f"new was None, is {value}"]
    assert differences({**origin, "new": value}, origin) == [f"new was {value}, is None"]


def test_a_folder_without_a_ledger_has_begun_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert begun(folder) is None and origin_of(folder) is None and not is_complete(folder)


def test_a_ledger_says_what_it_was_made_from(tmp_path: Path) -> None:
    write_ledger(tmp_path, {"origin": {"size": (1, 2)}, "complete": True})
    assert origin_of(tmp_path) == {"size": [1, 2]} and is_complete(tmp_path)
    with pytest.raises(InputError, match="cannot be understood: KeyError"):
        begun(tmp_path, ("origin", "rows"))


def test_at_most_three_differences_are_shown(tmp_path: Path) -> None:
    before, now = dict.fromkeys("abcd", 1), dict.fromkeys("abcd", 2)
    check_same(tmp_path, "a map", before, before)
    with pytest.raises(InputError, match=r"holds a map .*: a was 1, is 2; b was 1, is 2; c was 1, is 2; \.{4} Remove"):
        check_same(tmp_path, "a map", before, now)


def test_what_is_kept_is_said_and_what_keeps_nothing_goes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for held in ("3 of 5 rows are", ""):
        folder.mkdir(exist_ok=True)
        write_ledger(folder, {})
        save_arrays(folder / "part.npz", {"a": np.arange(3)})
        said = rf"^full 3 of 5 rows are kept in {folder}; the same command" if held else "^full$"
        with pytest.raises(OutputError, match=said), keeping(folder, lambda held=held: held):  # type: ignore[misc]
            raise OutputError("full")
        assert (folder / LEDGER).exists() == bool(held)
    assert not folder.exists()
    with pytest.raises(OutputError, match=r"^full$"), keeping(folder, lambda: pytest.fail("asked")):
        raise OutputError("full")


def test_a_mistake_of_the_program_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match=r"^division by zero$"), keeping(tmp_path, lambda: ""):
        _ = 1 / 0
    assert tmp_path.exists()
