"""Interrupts: SIGINT (Ctrl-C) and SIGTERM raise `Interrupted`, at once or at the end of a step.

Only the command line installs the handlers (`handle_signals`). Without them nothing here has an effect: in a Python
program Ctrl-C raises KeyboardInterrupt anywhere, and SIGTERM ends the process.
"""

import _thread
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_S = 0.2
"""Time within which a further signal is the same one: `timeout` and Slurm signal a process and then its group."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended a command; its notes say what is kept."""


@dataclass
class _State:
    """The signals of this process."""

    handled: bool = False
    received: int = 0
    """Number of the first signal; 0 before."""
    time: float = 0.0
    postponed: int = 0
    """Depth of `postpone_interrupts`."""
    relayed: int = 0
    """Depth of `relay_interrupts`."""


_state = _State()


@contextmanager
def handle_signals(enabled: bool = True) -> Iterator[None]:
    """Raise `Interrupted` at the first SIGINT or SIGTERM within the block; end the process at a second Ctrl-C.

    A signal that the process ignores stays ignored (`nohup`, background jobs). Does nothing if not `enabled`, if the
    handlers are installed already, or outside the main thread, where Python allows none.
    """
    if not enabled or _state.handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    _state.handled = True
    for number in heeded:
        signal.signal(number, _receive)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number] or signal.SIG_DFL)
        _state.handled, _state.received = False, 0


@contextmanager
def cancel_at_end_of_input(enabled: bool = True) -> Iterator[None]:
    """Send this process SIGTERM when its standard input is closed within the block; whatever is read is ignored.

    Only where standard input is a pipe or a socket, as for a program that another one started: the other end is also
    closed when that program ends. A terminal, a file or the null device are not watched.
    """
    if not enabled or not _is_pipe(0):
        yield
        return
    ended, lock = threading.Event(), threading.Lock()

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with lock:
            if not ended.is_set():
                _signal_process(signal.SIGTERM)

    threading.Thread(target=watch, name="end of input", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            ended.set()


def _is_pipe(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _signal_process(number: signal.Signals) -> None:
    """Send this process a signal; on Windows, where os.kill would end it, run its handler."""
    if os.name == "posix":
        os.kill(os.getpid(), number)
    else:
        _thread.interrupt_main(number)


def handles_signals() -> bool:
    """Return whether `handle_signals` is in effect."""
    return _state.handled


def received_signal() -> int:
    """Return the number of the signal that arrived within `handle_signals`; 0 if none did."""
    return _state.received


@contextmanager
def postpone_interrupts() -> Iterator[None]:
    """Raise `Interrupted` only at the end of the block; inside, `received_signal` tells of an interrupt."""
    _state.postponed += 1
    try:
        yield
    finally:
        _state.postponed -= 1
    if _state.received:
        raise Interrupted


@contextmanager
def relay_interrupts() -> Iterator[None]:
    """Send SIGTERM to all child processes in place of raising `Interrupted`, which they are expected to report."""
    _state.relayed += 1
    try:
        yield
    finally:
        _state.relayed -= 1


@contextmanager
def block_signals_in_children() -> Iterator[None]:
    """Let processes that start within the block never receive SIGINT and SIGTERM, which Ctrl-C sends to all of a job.

    For workers that end with this process. Their signals are blocked from the start, before they can set a handler.
    """
    if not _state.handled or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def note_kept(what: str, describe_progress: Callable[[], str], remove: Callable[[], None]) -> Iterator[None]:
    """Add a note to an interrupt that says how much of `what` is kept; call `remove` if nothing is.

    `describe_progress` returns a text such as "3 of 5 rows are", empty if nothing is kept.
    """
    try:
        yield
    except Interrupted as error:
        kept = describe_progress()
        if not kept:
            remove()
        error.add_note(f"Stopped; {kept} kept" if kept else f"Stopped; no part of {what} was finished")
        raise


def _receive(number: int, _frame: FrameType | None) -> None:
    """Handle a signal: raise, record or relay the first one; a second Ctrl-C ends the process and its children."""
    if _state.received:
        if number == signal.SIGINT and time.monotonic() - _state.time > SAME_SIGNAL_S:
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + number)
        return
    _state.received, _state.time = number, time.monotonic()
    if _state.relayed:
        for child in multiprocessing.active_children():
            child.terminate()
    elif not _state.postponed:
        raise Interrupted


def signal_group(process: "subprocess.Popen[bytes]", kill: bool) -> None:
    """End a process that leads a session of its own, and its children: by SIGTERM, or by SIGKILL if `kill`.

    Where there are no process groups, the process is ended alone.
    """
    with suppress(OSError):
        if hasattr(os, "killpg"):
            # The group has the process's id, also while that is a zombie.
            os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        else:
            (process.kill if kill else process.terminate)()


def is_running(process: int) -> bool:
    """Return whether a process of this machine is running, or may be."""
    if os.name != "posix" or process <= 0:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def reap_group(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of a process that leads a session of its own, and end its children, which may outlive it."""
    if hasattr(os, "waitid"):
        # Until it is reaped, no other process group can have its id.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        signal_group(process, kill=True)
    process.wait()
