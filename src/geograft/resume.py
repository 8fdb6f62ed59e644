"""What is in the making: the folder of a long job, kept until its result is whole, so that a killed job can go on.

Each folder holds a `ledger.json` that a person can read: what is being made, from what (its origin), and whether all is
done but for the last step. What else is in the folder is the business of the ledger's own module.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy import ndarray

from geograft.errors import GeograftError, InputError
from geograft.files import replacing, write_json, writing

LEDGER = "ledger.json"
MOST_SHOWN = 3
"""Differences that one message lists."""
DAMAGE = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)
"""What reading a damaged file of arrays may raise."""


def as_json(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return `origin` as it comes back from a ledger: tuples as lists, keys as text."""
    plain: dict[str, Any] = json.loads(json.dumps(origin))
    return plain


def begun(folder: Path, names: tuple[str, ...] = ("origin", "complete")) -> dict[str, Any] | None:
    """Return the entries `names` of the ledger in `folder`; None where there is no ledger.

    Raises:
        InputError: when there is a ledger that cannot be understood.
    """
    path = folder / LEDGER
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        return {name: kept[name] for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise misunderstood(path, error) from error


def is_complete(folder: Path) -> bool:
    """Return whether `folder` holds a ledger whose result was being put in its place when the job ended.

    Raises:
        InputError: when there is a ledger that cannot be understood.
    """
    kept = begun(folder)
    return kept is not None and bool(kept["complete"])


def origin_of(folder: Path) -> dict[str, Any] | None:
    """Return what the result in `folder` is made from; None where there is no ledger.

    Raises:
        InputError: when there is a ledger that cannot be understood.
    """
    kept = begun(folder)
    return dict(kept["origin"]) if kept is not None else None


def check_same(folder: Path, what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError when the origin of `folder` was another one, naming what differs; `what` is being made there."""
    differing = differences(before, now)
    if differing:
        shown = "; ".join(differing[:MOST_SHOWN]) + ("; ..." if len(differing) > MOST_SHOWN else "")
        raise InputError(f"{folder} holds {what} in the making from something else: {shown}. {_remedy(folder)}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each entry of nested mappings that differs, with its path and both values.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c was 2, is 3']
    """
    old, new = _flat(before), _flat(now)
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in new | old if old.get(key) != new.get(key)]


def write_ledger(folder: Path, content: Mapping[str, Any]) -> None:
    """Write or replace the ledger in `folder`.

    Raises:
        OutputError: when the operating system refuses.
    """
    write_json(folder / LEDGER, content)


def remove_ledger(folder: Path) -> None:
    """Remove a ledger's folder, or what a kill left of it. The ledger itself goes last.

    Raises:
        OutputError: when the operating system refuses.
    """
    with writing(folder):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == LEDGER):
            path.unlink()
        shutil.rmtree(folder)


def save_arrays(path: Path, arrays: Mapping[str, ndarray]) -> None:
    """Write arrays by name, whole or not at all; they have reached the disk when this returns.

    Raises:
        OutputError: when the disk is full.
    """
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def unreadable(path: Path, error: BaseException) -> InputError:
    """Return the error of a file in a ledger's folder that cannot be read."""
    return InputError(f"{path} cannot be read: {error}. {_remedy(path.parent)}")


def misunderstood(path: Path, error: BaseException) -> InputError:
    """Return the error of a file in a ledger's folder that was read and makes no sense."""
    return InputError(f"{path} cannot be understood: {error!r}. {_remedy(path.parent)}")


@contextmanager
def keeping(folder: Path, held: Callable[[], str]) -> Iterator[None]:
    """Say in an error's message what `folder` keeps, and remove the folder when it keeps nothing.

    `held` says what is kept, as in "3 of 5 rows are"; an empty text means nothing.
    """
    try:
        yield
    except GeograftError as error:
        if not folder.exists():
            raise
        kept = held()
        if not kept:
            remove_ledger(folder)
            raise
        goes_on = "the same command with the same files goes on from there."
        raise type(error)(f"{error} {kept} kept in {folder}; {goes_on}") from error


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping | list):
        return {path: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {key: value for name, part in items for key, value in _flat(part, f"{path}.{name}".lstrip(".")).items()}


def _remedy(folder: Path) -> str:
    return f"Remove {folder} to begin anew."
