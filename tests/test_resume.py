"""Partial results: what the folder keeps, what its errors say, and that it is removed when it keeps nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.errors import InputError, OutputError
from geograft.resume import (
    LEDGER,
    check_same_origin,
    differences,
    is_complete,
    keep_ledger_on_error,
    read_ledger,
    read_origin,
    save_arrays,
    to_json_types,
    write_ledger,
)

PLAIN = st.recursive(
    st.integers() | st.text(max_size=4) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner),
    max_leaves=8,
)
ORIGINS = st.dictionaries(st.text("abc", min_size=1, max_size=2), PLAIN, max_size=4)


@given(ORIGINS)
def test_an_origin_does_not_differ_from_itself(origin: dict[str, Any]) -> None:
    assert differences(origin, to_json_types(origin)) == []


@given(ORIGINS, st.integers())
def test_an_added_or_removed_entry_is_named(origin: dict[str, Any], value: int) -> None:
    assert differences(origin, {**origin, "new": value}) == [f"new was None, is {value}"]
    assert differences({**origin, "new": value}, origin) == [f"new was {value}, is None"]


def test_a_folder_without_a_ledger_has_no_partial_result(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert read_ledger(folder) is None and read_origin(folder) is None and not is_complete(folder)


def test_a_ledger_records_its_origin(tmp_path: Path) -> None:
    write_ledger(tmp_path, {"origin": {"size": (1, 2)}, "complete": True})
    assert read_origin(tmp_path) == {"size": [1, 2]} and is_complete(tmp_path)
    with pytest.raises(InputError, match=r"ledger\.json.*KeyError"):
        read_ledger(tmp_path, ("origin", "rows"))


def test_at_most_three_differences_are_shown(tmp_path: Path) -> None:
    before, now = dict.fromkeys("abcd", 1), dict.fromkeys("abcd", 2)
    check_same_origin(tmp_path, "a map", before, before)
    with pytest.raises(InputError, match=r": a was 1, is 2; b was 1, is 2; c was 1, is 2; \.{4} "):
        check_same_origin(tmp_path, "a map", before, now)


def test_an_error_names_what_is_kept_and_an_empty_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for held in ("3 of 5 rows are", ""):
        folder.mkdir(exist_ok=True)
        write_ledger(folder, {"origin": {}, "complete": False})
        save_arrays(folder / "part.npz", {"a": np.arange(3)})
        said = rf"^full 3 of 5 rows are kept in {folder}\b" if held else "^full$"
        with pytest.raises(OutputError, match=said), keep_ledger_on_error(folder, lambda held=held: held):  # type: ignore[misc]
            raise OutputError("full")
        assert (folder / LEDGER).exists() == bool(held)
    assert not folder.exists()
    with pytest.raises(OutputError, match=r"^full$"), keep_ledger_on_error(folder, lambda: pytest.fail("asked")):
        raise OutputError("full")


def test_a_bug_leaves_the_folder_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match=r"^division by zero$"), keep_ledger_on_error(tmp_path, lambda: ""):
        _ = 1 / 0
    assert tmp_path.exists()
