"""The one job of a project or run: training and mapping, or the export of a model, as a process of its own.

The process writes its progress as JSON (docs/programs.md) and is cancelled by closing its standard input, whose other
end this process holds: however the server ends, the job saves what is finished and stops. All results are in the
project's folder, and `go` continues from there. The state of the last job is kept in a small file: a job that had not
ended when the server did is resumed when the server starts again; one that a user cancelled is not.
"""

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from geograft.bundle import SUFFIX
from geograft.card import CARD
from geograft.errors import GeograftError, InputError, OutputError
from geograft.files import file_digest, write_json
from geograft.geo.grid import Window
from geograft.interrupts import reap_group, signal_group
from geograft.locks import lock_output
from geograft.progress import announce
from geograft.server.layers import Subject

State = Literal["queued", "running", "done", "failed", "cancelled"]
ExportKind = Literal["bundle", "onnx", "deepness"]
Kind = Literal["go", ExportKind]
RECORD, EXPORTS = ".last-job.json", "exports"
START = (sys.executable, "-P", "-m", "geograft")
MODEL_FILES: Mapping[ExportKind, tuple[str, str]] = {
    "bundle": ("Model for Geograft", SUFFIX),
    "onnx": ("Model for other programs (ONNX)", ".onnx"),
    "deepness": ("Model for Deepness in QGIS (ONNX)", "-deepness.onnx"),
}
"""Title, and end of the name, of the files that a run can be exported to."""
DIGEST_LENGTH = 8
MAX_LINE = 2**16
MAX_MESSAGE = 500
GRACE_S = 15.0
"""Time that a cancelled job has to save its work, before it is terminated, and again before it is killed."""
POLL_S = 0.2
SUSPENDED = "The server ended before this job did. It is resumed when the server starts again."
RESUMED = "Resumed after the end of the server."
NUMBERS = ("done", "total", "rate", "seconds_left")


class BusyError(GeograftError):
    """A job is running already."""


class MissingJobError(GeograftError):
    """There is no job with this id."""


@dataclass(frozen=True)
class Job:
    """A job and its progress."""

    id: int
    kind: Kind
    state: State = "queued"
    """Queued: it waits for the server to start again."""
    step: str = ""
    done: float | None = None
    total: float | None = None
    rate: float | None = None
    """Units per second."""
    seconds_left: float | None = None
    message: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class Task:
    """What a job runs."""

    command: Sequence[str]
    output: Path
    """What the command locks while it writes."""


def task_of(subject: Subject, kind: Kind, first: Mapping[str, Window]) -> Task:
    """Return what a job of a kind runs for a project or a run; the windows in `first` of images are mapped first.

    Raises:
        InputError: if there is no run to export, or its file is there already.
    """
    if kind == "go":
        folder = subject.folder
        assert folder is not None, "only projects are trained"
        return Task((*START, "go", str(folder), *(_first_option(*each) for each in first.items())), folder)
    path = model_files(subject).get(kind)
    if subject.run is None or path is None:
        raise InputError("There is no run to export yet. Train first.")
    if path.exists():
        raise InputError(f"{path.name} exists already. Download it, or delete it to export again.")
    return Task((*START, "export", str(subject.run), "--out", str(path), "--for", kind), path)


def _first_option(name: str, window: Window) -> str:
    return f"--first={name}@{window.row},{window.col},{window.height},{window.width}"


def model_files(subject: Subject) -> dict[ExportKind, Path]:
    """Return the files that the run, as it is now, can be exported to; they need not exist. Empty without a run.

    Names have a digest of the run: the file of an older run is never taken for that of a newer one.
    """
    home = subject.folder or subject.run
    try:
        digest = file_digest(subject.run / CARD)[:DIGEST_LENGTH] if subject.run else ""
    except OSError:
        return {}
    if not digest or home is None:
        return {}
    name = home.resolve().name
    return {kind: home / EXPORTS / f"{name}-{digest}{MODEL_FILES[kind][1]}" for kind in get_args(ExportKind)}


class Latest:
    """The latest data of each kind of event, numbered in the order of their changes. Memory does not grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._data: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.closed = False
        """Whether the server is about to end."""

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        """Replace the data of a kind, if they differ."""
        with self._lock:
            if kind not in self._data or self._data[kind][1] != data:
                self._count += 1
                self._data[kind] = self._count, data

    def since(self, count: int) -> tuple[int, list[tuple[str, Mapping[str, Any]]]]:
        """Return the number of the last change, and the data that have changed after change `count`, in order."""
        with self._lock:
            newer = sorted((number, kind) for kind, (number, _) in self._data.items() if number > count)
            return self._count, [(kind, self._data[kind][1]) for _, kind in newer]


class Jobs:
    """Runs the jobs of a project or a run, one at a time."""

    def __init__(
        self, folder: Path, publish: Callable[[str, Mapping[str, Any]], None], task: Callable[[Kind], Task]
    ) -> None:
        """Take where the state is kept, where to report progress, and what is run for each kind of job."""
        self._folder, self._publish, self._task = folder, publish, task
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._cancelled, self._closing, self._ended = threading.Event(), False, threading.Event()
        self._job = self._last_job()
        if self._job:
            publish("job", asdict(self._job))

    @property
    def all(self) -> list[Job]:
        """The last job, if there was any."""
        with self._lock:
            return [self._job] if self._job else []

    @property
    def is_running(self) -> bool:
        """Whether this server runs a job now."""
        return self._job is not None and self._job.state == "running" and self._thread is not None

    def start(self, kind: Kind) -> Job:
        """Start a job and return it.

        Raises:
            BusyError: if one is running.
            InputError: if there is nothing to do for a job of this kind.
        """
        with self._lock:
            if self.is_running:
                raise BusyError("A job is running already. Wait for it or cancel it.")
            task = self._task(kind)
            return self._launch(Job(self._job.id + 1 if self._job else 1, kind, "running"), task, resumed=False)

    def resume(self) -> None:
        """Start the job again that had not ended when an earlier server did, if there is one."""
        with self._lock:
            job = self._job
            if job is None or not job.is_active or self.is_running:
                return
            try:
                task = self._task(job.kind)
            except InputError as error:
                self._change(state="failed", message=str(error))
                return
            announce("Resuming the job that had not finished when the server ended.")
            self._launch(replace(job, state="running", message=RESUMED), task, resumed=True)

    def _launch(self, job: Job, task: Task, resumed: bool) -> Job:
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._set(job)
        self._thread = threading.Thread(target=self._run, args=(task, resumed), name="geograft-job", daemon=True)
        self._thread.start()
        return job

    def cancel(self, identity: int) -> Job:
        """Cancel a job, which then saves what is finished; return it. One that has ended stays as it is.

        Raises:
            MissingJobError: if there is none with this id.
        """
        with self._lock:
            if self._job is None or self._job.id != identity:
                raise MissingJobError(f"There is no job {identity}.")
            if self.is_running:
                self._cancelled.set()
                self._close_input()
                threading.Thread(target=self._enforce, daemon=True).start()
            elif self._job.is_active:
                self._change(state="cancelled")
            return self._job

    def close(self) -> None:
        """Let the job that is running save its work, to be resumed by the next server, and wait until it has ended."""
        with self._lock:
            job, thread = self._job, self._thread
            if job is None or thread is None or not self.is_running:
                return
            self._closing = not self._cancelled.is_set()
        self.cancel(job.id)
        thread.join(3 * GRACE_S)

    def _run(self, task: Task, resumed: bool) -> None:
        if resumed:
            self._wait_for_output(task.output)
        try:
            process = subprocess.Popen(
                [*task.command, "--progress", "json"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._change(state="failed", message=f"The job cannot be started: {error.strerror}.")
            return
        with self._lock:
            self._process = process
            if self._cancelled.is_set():
                self._close_input()
        threading.Thread(target=self._reap, args=(process,), daemon=True).start()
        last = self._follow(process)
        self._ended.wait()
        code = process.returncode
        with self._lock:
            self._close_input()
            self._process = None
            cancelled = self._cancelled.is_set() or code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
            stopped: State = "queued" if self._closing else "cancelled"
            state: State = "done" if code == 0 else stopped if cancelled else "failed"
            message = SUSPENDED if state == "queued" else last or f"The job ended with exit code {code}."
            self._change(state=state, message=message, seconds_left=None)

    def _wait_for_output(self, output: Path) -> None:
        """Wait while the job of a server that was killed saves its work, but not for ever: another may work there."""
        for _ in range(int(GRACE_S / POLL_S)):
            try:
                with lock_output(output):
                    return
            except OutputError:
                if self._cancelled.wait(POLL_S):
                    return

    def _follow(self, process: "subprocess.Popen[bytes]") -> str:
        """Report the progress of a process until it ends, and return the last thing that it said."""
        assert process.stderr is not None
        last = ""
        with process.stderr as stream:
            for line in _lines(stream):
                event = _parse(line)
                if event is None:
                    last = line.strip()[:MAX_MESSAGE] or last
                elif event.get("event") in ("progress", "epoch"):
                    numbers = {name: number_or_none(event.get(name)) for name in NUMBERS}
                    self._change(step=str(event.get("step", ""))[:MAX_MESSAGE], **numbers)
                elif "text" in event:
                    last = str(event["text"])[:MAX_MESSAGE]
                    self._change(message=last)
        return last

    def _change(self, **values: Any) -> None:
        with self._lock:
            if self._job:
                self._set(replace(self._job, **values))

    def _set(self, job: Job) -> None:
        before, self._job = self._job, job
        if before is None or (before.id, before.state) != (job.id, job.state):
            # A disk without space does not stop a job; its state is then not known after a restart.
            with suppress(GeograftError):
                write_json(self._folder / RECORD, asdict(job))
        self._publish("job", asdict(job))

    def _close_input(self) -> None:
        if self._process and self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()

    def _reap(self, process: "subprocess.Popen[bytes]") -> None:
        reap_group(process)
        self._ended.set()

    def _enforce(self) -> None:
        """End the process group of a cancelled job that does not end by itself."""
        for kill in (False, True):
            if self._ended.wait(GRACE_S):
                return
            with self._lock:
                if self._process and not self._ended.is_set():
                    signal_group(self._process, kill)

    def _last_job(self) -> Job | None:
        """Return the job of an earlier server, if it is known."""
        try:
            return TypeAdapter(Job).validate_json((self._folder / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None


def _lines(stream: IO[bytes]) -> Any:
    """Yield lines, cut after MAX_LINE bytes."""
    while line := stream.readline(MAX_LINE):
        yield line.decode("utf-8", "replace")


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def number_or_none(value: Any) -> float | None:
    """Return a finite number of JSON as float; None for anything else, such as NaN, which JSON for a browser lacks."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None
