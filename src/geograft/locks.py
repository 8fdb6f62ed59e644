"""One process per output, or several that share it, by locks that end with their processes.

The lock is `flock` on the file `.OUT.geograft-lock` next to the output, which names the process and is removed at the
end. The kernel releases the lock however the process ends: a file that a killed process left behind stops nobody, and
the next job removes it. Workers that share an output have a shared lock, which a job of one process excludes, and the
other way round; the last one removes the file. Processes that training or data loading start do not keep the lock of
their parent.

There is no lock where there is nothing to lock: on Windows, which has no `flock`, on network file systems without it,
and for an output in a folder that cannot be written, such as a mounted volume. Two jobs on one output are then not
recognised.
"""

import errno
import inspect
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from geograft.errors import OutputError
from geograft.files import translate_write_errors
from geograft.locations import Location, to_place

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

TITLE = "geograft"
"""First word of a lock file; the process and its machine follow."""
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NO_FILE = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
ATTEMPTS, PAUSE_S = 5, 0.02
"""Attempts to get a lock: a process that has just got or released it may not have written or removed the file yet."""

_held: set[int] = set()
"""Descriptors of the lock files of this process."""


def _close_in_child() -> None:
    """Close the lock files in a forked child, so that the lock ends with its parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_in_child)


def locks_output(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wrap a command so that it holds the lock of its argument `out` while it runs; None needs no lock.

    Raises:
        OutputError: from the wrapped command, as `lock_output`.
    """
    signature = inspect.signature(command)

    @wraps(command)
    def locked(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        out = bound.arguments["out"]
        with nullcontext() if out is None else lock_output(Path(out)):
            return command(*args, **options)

    return locked


@contextmanager
def lock_output(path: Path, enabled: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold the lock of the output `path`, a file or folder that need not exist; nothing if not `enabled`.

    The lock is exclusive, or `shared` with other processes that ask for a shared one.

    Missing parent folders are created, and removed again if nothing was written to them.

    Raises:
        OutputError: if another process, or another thread of this one, holds the lock, naming the process; if
            something else has the lock's name; on any other OSError.
    """
    if enabled and isinstance(to_place(path), Location):
        raise OutputError(f"{to_place(path)} cannot be written: this output must be a local path. Choose one.")
    if fcntl is None or not enabled:
        yield
        return
    lock = _lock_path(path)
    missing = [parent for parent in lock.parents if not parent.exists()]
    owner, descriptor = os.getpid(), None
    try:
        with translate_write_errors(path):
            descriptor = _acquire_if_possible(lock, path, shared)
        yield
    finally:
        # A forked child has closed its copy, and must not remove the file of its parent.
        if os.getpid() == owner:
            if descriptor is not None:
                _release(descriptor, lock, shared)
            with suppress(OSError):
                for parent in missing:
                    parent.rmdir()


def _lock_path(path: Path) -> Path:
    """Return the lock file of an output, the same for all ways to write its path.

    Raises:
        OutputError: if the path is a link that leads to itself.
    """
    try:
        real = path.resolve()
    except RuntimeError as error:
        # Until Python 3.12; later the path is returned as it is.
        raise OutputError(f"{path} is a link that leads to itself. Remove it or choose another --out.") from error
    return real.parent / f".{real.name}.geograft-lock"


def _acquire_if_possible(lock: Path, path: Path, shared: bool) -> int | None:
    """Return the descriptor of the locked file; None where there can be no lock."""
    try:
        return _acquire(lock, path, shared)
    except OSError as error:
        if error.errno in NO_FILE and not os.path.lexists(lock):
            return None
        if error.errno not in NO_LOCK:
            raise
        lock.unlink(missing_ok=True)
        return None


def _acquire(lock: Path, path: Path, shared: bool) -> int:
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S if attempt else 0)
        # Another process may just have removed the folder that it had made. In /proc there is none to make.
        with suppress(FileNotFoundError) if attempt < ATTEMPTS - 1 else nullcontext():
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                if _try_lock(descriptor, lock, shared):
                    _held.add(descriptor)
                    return descriptor
            finally:
                if descriptor not in _held:
                    os.close(descriptor)
    raise _held_error(lock, path)


def _try_lock(descriptor: int, lock: Path, shared: bool) -> bool:
    """Lock an open file and write this process into it; return whether it was free, and still is the lock file."""
    _check_own(os.pread(descriptor, 1000, 0), lock)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # The process before may have removed the file between opening and locking.
    if not _is_open_file(descriptor, lock):
        return False
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{TITLE} {os.getpid()} {platform.node()}\n".encode(), 0)
    except OSError:
        lock.unlink(missing_ok=True)
        raise
    return True


def _check_own(content: bytes, lock: Path) -> None:
    """Raise OutputError if a file of that name is no lock; one that is being written is empty."""
    if content and not content.startswith(f"{TITLE} ".encode()):
        raise OutputError(f"{lock} is not a lock of geograft, which needs this name; nothing was changed. Rename it.")


def _is_open_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _held_error(lock: Path, path: Path) -> OutputError:
    holder = "another process"
    with suppress(OSError, ValueError):
        _, process, *machine = lock.read_text(encoding="utf-8").split()
        elsewhere = f" on {machine[0]}" if machine and machine[0] != platform.node() else ""
        holder = f"process {process}{elsewhere}"
    return OutputError(
        f"{path} is being written by {holder}; nothing was changed. Wait until it has finished or choose another --out."
    )


def _release(descriptor: int, lock: Path, shared: bool) -> None:
    """Remove the lock file, while it is locked and by nobody else, and close it."""
    with suppress(OSError):
        if shared:
            # Fails while others share it.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_open_file(descriptor, lock):
            lock.unlink()
    _held.discard(descriptor)
    os.close(descriptor)
