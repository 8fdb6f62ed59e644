"""Outputs of commands: one process for each, and those in a bucket written here first, then put there.

    ~/.cache/geograft/outputs/DIGEST/map.tif    the output and its partial results; DIGEST is of the address
    s3://bucket/.map.tif.geograft-lock          says which process writes s3://bucket/map.tif

A process that was killed leaves both. The same command on the same machine resumes from there; on another one it is
refused, since what was finished is not there.
"""

import dataclasses
import inspect
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

from platformdirs import user_cache_path

from geograft.errors import InputError, OutputError
from geograft.files import json_digest
from geograft.locations import Location, Place, to_place
from geograft.locks import lock_output
from geograft.progress import announce
from geograft.storage import Storage, open_storage

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

OUTPUTS = "outputs"
"""Folder of outputs in progress, in the user's cache folder."""
MAX_EXCLUSIVE_BYTES = 2**28
"""Size up to which the output itself is put if absent, which holds it in memory; the lock guards larger ones alone."""


def writes_output(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap a command so that its argument `out`, a file, may be in a bucket, and is locked while it runs.

    One in a bucket is written on this machine and put there at the end, see `bucket_output`.

    Raises:
        OutputError: from the wrapped command, as `lock_output` and `bucket_output`.
    """
    signature = inspect.signature(command)

    @wraps(command)
    def locked(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        place = to_place(bound.arguments["out"])
        if not isinstance(place, Location):
            with lock_output(place):
                return command(*args, **options)
        with bucket_output(place) as local:
            # What an interrupted upload has left is complete, but it may be of other settings.
            if local.is_file():
                local.unlink()
            bound.arguments["out"] = local
            return _moved(command(*bound.args, **bound.kwargs), local, place)

    return locked


def _moved(result: Result, local: Path, place: Location) -> Result:
    """Return the result of a command with the address of its output in place of the local path."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type) and getattr(result, "path", None) == local:
        return dataclasses.replace(result, path=place)
    return result


@contextmanager
def bucket_output(location: Location) -> Iterator[Path]:
    """Yield the local path of an output in a bucket; put it and the files beside it there at the end of the block.

    After an error or a kill the local files stay for the same command.

    Raises:
        OutputError: if the address is of a web server or has no name; if the output exists; if another process writes
            it; if it cannot be put, which says where it is kept.
        InputError, SettingError: if the bucket cannot be read.
    """
    path = local_path(location)
    storage, name = open_storage(location.parent), location.name
    with lock_output(path.parent):
        _refuse_existing(storage, location)
        with _lock_object(storage, location):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
            _put_all(storage, path, name)
    for file in sorted(path.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.parent.rmdir()


def local_path(location: Location) -> Path:
    """Return where an output in a bucket is written on this machine.

    Raises:
        OutputError: if the address is of a web server, or has no name.
    """
    if location.is_web:
        raise OutputError(
            f"{location} cannot be written: web addresses can only be read. Choose s3://, gs:// or az://."
        )
    if not location.name:
        raise OutputError(f"{location} has no name. Give the address of a file or folder in the bucket.")
    return user_cache_path("geograft", appauthor=False) / OUTPUTS / json_digest(location.url)[:16] / location.name


def local_file(place: Place) -> Path:
    """Return the path of an output that is not in a bucket.

    Raises:
        InputError: if it is in one.
    """
    if isinstance(place, Location):
        raise InputError(f"{place} is not a local file. Download it first.")
    return place


def is_local_copy(path: Path) -> bool:
    """Return whether a path is that of an output in a bucket: a complete one may be left by an interrupted upload."""
    return path.is_relative_to(user_cache_path("geograft", appauthor=False) / OUTPUTS)


def _refuse_existing(storage: Storage, location: Location) -> None:
    if storage.head(location.name) or storage.list(f"{location.name}/"):
        raise OutputError(f"{location} exists already; nothing was changed. Remove it or choose another --out.")


@contextmanager
def _lock_object(storage: Storage, location: Location) -> Iterator[None]:
    """Hold an object beside the output that names this process; removed at the end.

    That of a process of this machine that has ended is replaced: the caller holds the local lock.

    Raises:
        OutputError: if another process holds it.
    """
    key = f".{location.name}.geograft-lock"
    owner = {
        "process": os.getpid(),
        "machine": platform.node(),
        "id": uuid4().hex,
        "since": f"{datetime.now(UTC):%FT%TZ}",
    }
    content = json.dumps(owner).encode()
    if not storage.put_new(key, content) and storage.get(key) != content:
        _refuse_living(storage, key, location)
        storage.delete(key)
        if not storage.put_new(key, content) and storage.get(key) != content:
            raise OutputError(f"{location} is being written by another process; nothing was changed. Wait for it.")
    try:
        yield
    finally:
        storage.delete(key)


def _refuse_living(storage: Storage, key: str, location: Location) -> None:
    """Raise OutputError unless the owner of a lock object is a process of this machine that has ended."""
    try:
        owner = json.loads(storage.get(key))
        process, machine, since = int(owner["process"]), str(owner["machine"]), str(owner["since"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        process, machine, since = 0, "an unknown machine", "an unknown time"
    if machine == platform.node() and process != os.getpid():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass
    raise OutputError(
        f"{location} is being written by process {process} on {machine} since {since}; nothing was changed. Wait until "
        f"it has finished; if it has been killed, remove the object {key} beside it."
    )


def _put_all(storage: Storage, path: Path, name: str) -> None:
    """Put the output and the files beside it; the output, or the files of a folder, last."""
    files = [file for file in sorted(path.parent.rglob("*")) if file.is_file() and not _is_hidden(file, path.parent)]
    announce(f"writing {len(files)} files to {storage}")
    try:
        for file in sorted(files, key=lambda file: file == path):
            key = file.relative_to(path.parent).as_posix()
            if file != path or file.stat().st_size > MAX_EXCLUSIVE_BYTES:
                storage.put(key, file)
            elif not storage.put_new(key, file):
                raise OutputError(f"{storage}/{name} was written by another process meanwhile, and is not replaced.")
    except OutputError as error:
        raise OutputError(f"{error} The result is kept in {path.parent}; the same command writes it again.") from error


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
