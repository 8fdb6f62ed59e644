"""The one job of a project, `geograft go`, as a process of its own, the scores of its rounds, and events for pages.

The process writes its progress as JSON (docs/programs.md) and is cancelled by closing its standard input, whose other
end this process holds: however the server ends, the job saves what is finished and stops. All results are in the
project's folder, and `go` continues from there. The state of the last job is kept in a small file, so that a server
that starts again can say that a job was interrupted.
"""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import TypeAdapter, ValidationError

from geograft.config.recipes import RUN, TILES
from geograft.errors import GeograftError
from geograft.files import file_digest, write_json
from geograft.geo.vectors.label_edits import read_features
from geograft.interrupts import reap_group, signal_group

State = Literal["queued", "running", "done", "failed", "cancelled"]
RECORD, ROUNDS = ".last-job.json", ".rounds.json"
SCORES, TILE_INDEX = Path(RUN, "scores-test.json"), Path(TILES, "tiles.gpkg")
MAX_LINE = 2**16
MAX_MESSAGE = 500
GRACE_S = 15.0
"""Time that a cancelled job has to save its work, before it is terminated, and again before it is killed."""
INTERRUPTED = "The server ended before this job did. Start it again: it continues where it stopped."
NUMBERS = ("done", "total", "rate", "seconds_left")


class BusyError(GeograftError):
    """A job is running already."""


class MissingJobError(GeograftError):
    """There is no job with this id."""


@dataclass(frozen=True)
class Job:
    """A job and its progress."""

    id: int
    kind: Literal["go"]
    state: State = "queued"
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
    """Runs the jobs of a project, one at a time."""

    def __init__(self, folder: Path, publish: Callable[[str, Mapping[str, Any]], None], command: Sequence[str] = ()):
        """Take the project's folder and where to report progress; `command` is run in place of `geograft go`."""
        self._folder, self._publish = folder, publish
        self._command = tuple(command) or (sys.executable, "-P", "-m", "geograft", "go", str(folder))
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._cancelled, self._ended = False, threading.Event()
        self._job = self._interrupted_job()
        if self._job:
            publish("job", asdict(self._job))

    @property
    def all(self) -> list[Job]:
        """The last job, if there was any."""
        with self._lock:
            return [self._job] if self._job else []

    def start(self) -> Job:
        """Start a job and return it.

        Raises:
            BusyError: if one is running.
        """
        with self._lock:
            if self._job and self._job.is_active:
                raise BusyError(f"Job {self._job.id} is running already. Wait for it or cancel it.")
            self._cancelled = False
            self._ended = threading.Event()
            self._set(Job(self._job.id + 1 if self._job else 1, "go", "running"))
            assert self._job is not None
            self._thread = threading.Thread(target=self._run, name="geograft-job", daemon=True)
            self._thread.start()
            return self._job

    def cancel(self, identity: int) -> Job:
        """Cancel a job, which then saves what is finished; return it. One that has ended stays as it is.

        Raises:
            MissingJobError: if there is none with this id.
        """
        with self._lock:
            if self._job is None or self._job.id != identity:
                raise MissingJobError(f"There is no job {identity}.")
            if self._job.is_active:
                self._cancelled = True
                self._close_input()
                threading.Thread(target=self._enforce, daemon=True).start()
            return self._job

    def close(self) -> None:
        """Cancel the job that is running, and wait until it has ended."""
        with self._lock:
            job, thread = self._job, self._thread
        if job and job.is_active and thread:
            self.cancel(job.id)
            thread.join(3 * GRACE_S)

    def _run(self) -> None:
        try:
            process = subprocess.Popen(
                [*self._command, "--progress", "json"],
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
            if self._cancelled:
                self._close_input()
        threading.Thread(target=self._reap, args=(process,), daemon=True).start()
        last = self._follow(process)
        self._ended.wait()
        code = process.returncode
        with self._lock:
            self._close_input()
            self._process = None
            cancelled = self._cancelled or code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
            state: State = "done" if code == 0 else "cancelled" if cancelled else "failed"
            self._change(state=state, message=last or f"The job ended with exit code {code}.", seconds_left=None)

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
                    numbers = {name: _number(event.get(name)) for name in NUMBERS}
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

    def _interrupted_job(self) -> Job | None:
        """Return the job of an earlier server, if it is known; one that had not ended is cancelled now."""
        try:
            job = TypeAdapter(Job).validate_json((self._folder / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None
        return replace(job, state="cancelled", message=INTERRUPTED, seconds_left=None) if job.is_active else job


@dataclass(frozen=True)
class Round:
    """The scores of a project after one round of labelling and training."""

    round: int
    tiles: int | None
    """Number of training tiles; None if unknown."""
    iou: float | None
    iou_low: float | None
    iou_high: float | None
    """95 % confidence interval."""
    scores: str
    """Digest of the file of scores."""
    area_m2: float | None = None


class Rounds:
    """The rounds of a project, in a file of its folder: scores that have changed since the last one are a new round."""

    def __init__(self, folder: Path, store: bool = True) -> None:
        self._folder, self._store, self._lock = folder, store, threading.Lock()

    def update(self) -> list[dict[str, Any]]:
        """Return all rounds, with the present scores if there are any; a round that is new is stored."""
        with self._lock:
            rounds = self._known()
            digest = self._scores_digest()
            latest = None if digest in ["", *(each.scores for each in rounds[-1:])] else self._latest(rounds, digest)
            if latest:
                rounds.append(latest)
                # In a folder that cannot be written, rounds are known only until the next scores.
                with suppress(GeograftError):
                    if self._store:
                        write_json(self._folder / ROUNDS, [asdict(each) for each in rounds])
        return [{name: value for name, value in asdict(each).items() if name != "scores"} for each in rounds]

    def _known(self) -> list[Round]:
        try:
            return TypeAdapter(list[Round]).validate_json((self._folder / ROUNDS).read_bytes())
        except (OSError, ValidationError):
            return []

    def _scores_digest(self) -> str:
        try:
            return file_digest(self._folder / SCORES)
        except OSError:
            return ""

    def _latest(self, rounds: Sequence[Round], digest: str) -> Round | None:
        try:
            content = json.loads((self._folder / SCORES).read_bytes())
            iou, interval = content["overall"]["iou"], content["overall_intervals"]["iou"] or (None, None)
            low, high = (_number(value) for value in interval)
            return Round(len(rounds) + 1, self._training_tiles(), _number(iou), low, high, digest)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _training_tiles(self) -> int | None:
        try:
            with read_features(self._folder / TILE_INDEX, None) as file:
                rows = [row for layer in file.layers for row in file.rows(layer)]
        except GeograftError:
            return None
        return sum(row.values.get("split") == "train" for row in rows)


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


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
