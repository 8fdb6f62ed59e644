"""A worker: one of any number of processes that compute the units of one job, on one machine or many.

Workers know of each other by the folder that they share (`geograft.mapping.unit_ledger`). Each claims the next unit
that nobody works on, computes it, and puts it there. A worker may be killed at any moment: what it claimed is claimed
again when it no longer shows signs of life.

What is computed of a unit is the matter of a `UnitWriter`; the units of a map are in `geograft.mapping.map_units`.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from geograft.config import PartConfig
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.files import json_digest
from geograft.inference.runners import EXPORT_BACKENDS, TORCH
from geograft.interrupts import note_kept
from geograft.locations import Place
from geograft.mapping.claims import Claim, Claims, Timing
from geograft.mapping.environment import (
    DIGESTED,
    NO_DIFFERENCE,
    Agreement,
    Environment,
    check_agreement,
    content_digest,
    count_flips,
    worker_name,
)
from geograft.mapping.unit_ledger import (
    JOB,
    RESULT,
    UNITS,
    Accepted,
    Differing,
    Failure,
    Job,
    JobState,
    Receipt,
    UnitLedger,
    Verb,
)
from geograft.mapping.units import JoinTree, SceneUnits, UnitGrid, UnitResult, parse_part, unit_order
from geograft.progress import UnitsShown, announce, progress_bar
from geograft.resume import MAX_SHOWN, differences, to_json_types

MAX_FAILURES = 3
"""Units in a row that fail, after which a worker gives up."""


TIMING = Timing()


@runtime_checkable
class UnitWriter(Protocol):
    """Computes the units of one job, in any order."""

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        """Compute a unit and write its files, whose names begin with that of the unit, into the folder `scratch`.

        `advance` is called with the fractions of the unit that are finished.

        Raises:
            InputError: if an input cannot be read, or has changed since the job was planned.
            OutputError: if a file cannot be written.
        """

    def check_unchanged(self) -> None:
        """Raise InputError if an input has changed since the job was planned."""


Writer = TypeVar("Writer", bound=UnitWriter)


@dataclass
class Worker(Generic[Writer]):
    """Computes units of a job until none is left."""

    ledger: UnitLedger
    job: Job
    writer: Writer
    environment: Environment
    agreement: Agreement = NO_DIFFERENCE
    tolerance: float | None = None
    part: tuple[int, int] = (0, 1)
    timing: Timing = field(default_factory=lambda: TIMING)
    computed: list[str] = field(default_factory=list)
    """Names of the units that this worker has finished."""

    def run(self) -> JobState:
        """Compute units until all are done or failed, and return the last state. Waits for other workers.

        Raises:
            OutputError: if the job is stopped, or several units in a row cannot be written.
            InputError: if a raster has changed, or several units in a row cannot be read.
        """
        units = self.job.units
        order = unit_order(len(units), *self.part)
        claims = Claims.of_job(self.ledger, self.job, self.timing, order)
        done, failures = claims.refresh().done, 0

        def kept() -> str:
            return f"{claims.state.done:,} of {len(units):,} units are" if claims.state.done else ""

        with (
            progress_bar(f"{self.job.verb} {self.ledger.out}", len(units), "units", done=done) as bar,
            note_kept("the job", kept, lambda: None),
        ):
            shown = UnitsShown(bar, done)
            while True:
                claim = claims.next()
                shown.update(claims.state.done)
                if claim is not None:
                    error = self.try_claimed(claim, shown.add)
                    failures = failures + 1 if error else 0
                    (claims.give_up if error else claims.mark_done)(claim.name)
                    if error and failures == MAX_FAILURES:
                        raise error
                elif self._waited(claims):
                    return claims.state

    def make_result(self, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """Let one worker make the result of all units, while the others wait for it.

        `make` writes its files, if they are not there, and returns what the others need to know, as JSON; it comes back
        with whether this worker made it. The result of a worker that was killed is made by another.

        Raises:
            GeograftError: from `make`.
            InputError: if the other workers have failed.
        """
        claims, told = Claims(self.ledger, {RESULT: len(self.job.units)}, self.timing), False
        while (found := self.ledger.read_result()) is None:
            claims.refresh()
            claim = claims.next()
            if claim is not None:
                with self._recorded(claim):
                    self.ledger.add_result(make())
                return self.ledger.read_result() or {}, True
            if claims.are_settled() and self.ledger.read_result() is None:
                raise _result_error(self.ledger, claims.state)
            if not told:
                announce(f"{self.ledger.out}: all units are done; waiting for another worker, which puts them together")
            told = True
            time.sleep(self.timing.poll_s)
        return found, False

    def _waited(self, claims: Claims) -> bool:
        """Look again; wait for others if there is nothing to claim, and return whether there is nothing to wait for."""
        claims.refresh()
        if claims.are_settled():
            return True
        if not claims.any_free:
            time.sleep(self.timing.poll_s)
        return False

    def try_claimed(self, claim: Claim, advance: Callable[[float], None]) -> GeograftError | None:
        """Compute a claimed unit and put it into the folder; return why that failed, which is recorded.

        Raises:
            OutputError, InputError: if the job is stopped, because pixels differ or an input has changed.
        """
        try:
            with self._recorded(claim):
                self.compute(claim.index, advance)
        except GeograftError as error:
            if self.ledger.stopped():
                raise
            self._stop_if_changed()
            return error
        self.computed.append(claim.name)
        return None

    @contextmanager
    def _recorded(self, claim: Claim) -> Iterator[None]:
        """Hold a claim while the block runs; release it at the end, or record why the block failed."""
        try:
            with self._heartbeat(claim):
                yield
        except GeograftError as error:
            self.ledger.fail(claim.name, claim.attempt, Failure(worker_name(), str(error)))
            raise
        except KeyboardInterrupt:
            # Others need not wait until it expires.
            self.ledger.release(claim.name, claim.attempt)
            raise
        except Exception as error:
            self.ledger.fail(claim.name, claim.attempt, Failure(worker_name(), repr(error)))
            raise
        self.ledger.release(claim.name, claim.attempt)

    def compute(self, index: int, advance: Callable[[float], None] = lambda fraction: None) -> Receipt:
        """Compute a unit and put it into the folder, claimed or not; return the receipt that holds.

        That is the receipt of another worker, if one was faster.

        Raises:
            InputError, OutputError: as `UnitWriter.write`.
            OutputError: if the other worker has other values; the job is then stopped, unless they are tolerated.
        """
        started, name = time.perf_counter(), self.job.units.name(index)
        with TemporaryDirectory(prefix="geograft-unit-") as folder:
            scratch = Path(folder)
            result = self.writer.write(index, scratch, advance)
            files = sorted(file for file in scratch.iterdir() if file.is_file())
            digests = {file.name: content_digest(file) for file in files if file.suffix in DIGESTED}
            receipt = self._receipt(name, result, digests, time.perf_counter() - started)
            receipt = replace(receipt, files={file.name: file.stat().st_size for file in files})
            replaced = [file for file in files if self._put(file, digests.get(file.name, ""), receipt)]
            holding = self.ledger.add_receipt(receipt)
            if holding.digest != receipt.digest:
                self._refuse_or_keep(receipt, holding)
                for file in replaced:
                    # Of a worker that was not killed, but slower with its receipt than this one with the file.
                    self.ledger.files.put(f"{UNITS}/{file.name}", _there(file))
                self._record_flips(receipt, holding, scratch)
        return holding

    def _record_flips(self, own: Receipt, holding: Receipt, scratch: Path) -> None:
        """Record how many classes of a unit differ between the worker that was faster and this one."""
        name = f"{own.unit}.tif"
        if name not in own.files or name not in holding.files:
            return
        there = _there(scratch / name)
        self.ledger.files.download(f"{UNITS}/{name}", there)
        flips = count_flips(there, scratch / name)
        self.ledger.add_differing(Differing(own.unit, holding.worker, own.worker, flips, holding.pixels))

    def _put(self, file: Path, digest: str, receipt: Receipt) -> bool:
        """Put a file of a unit into the folder, unless the same values are there; return whether others were replaced.

        What was replaced is then in `_there`.
        """
        key, there, replaced = f"{UNITS}/{file.name}", _there(file), False
        there.parent.mkdir(exist_ok=True)
        while not self.ledger.files.put_new(key, file):
            with suppress(FileNotFoundError):  # another worker may have replaced it
                self.ledger.files.download(key, there)
                if not digest or content_digest(there) == digest:
                    return False
                holding = self.ledger.receipt(receipt.unit) if self.ledger.is_done(receipt.unit) else None
                self._refuse_or_keep(receipt, holding)
                if holding is not None:
                    return False
                # Of a worker that was killed before it could write its receipt.
                self.ledger.files.delete(key)
                replaced = True
        return replaced

    def _refuse_or_keep(self, own: Receipt, holding: Receipt | None) -> None:
        """Stop the job if a unit was computed with other values before, unless differences are tolerated."""
        if self.tolerance is not None or (holding is not None and holding.difference):
            return
        before = [lease.worker for lease in self.ledger.leases(own.unit) if lease.worker != own.worker]
        other = holding.worker if holding else " or ".join(before) or "a worker that was killed"
        named = holding.environment.differences(own.environment) if holding else []
        how = "; ".join(named) or "their hardware and libraries have the same names"
        reason = (
            f"unit {own.unit} has other values from {own.worker} than from {other} ({how}). Use workers of one kind, "
            f"or accept differences with --tolerance; `geograft jobs {self.ledger.out} --clean` lets the job go on."
        )
        self.ledger.stop(Failure(own.worker, reason))
        raise OutputError(f"{self.ledger.out}: {reason}")

    def _receipt(self, name: str, result: UnitResult, digests: Mapping[str, str], seconds: float) -> Receipt:
        return Receipt(
            unit=name,
            digest=json_digest(digests),
            files={},
            windows=result.windows,
            seconds=round(seconds, 3),
            pixels=result.pixels,
            classes=result.classes,
            applicability=result.applicability,
            worker=worker_name(),
            environment=self.environment,
            difference=self.agreement.difference,
            flips=self.agreement.flips,
        )

    def _stop_if_changed(self) -> None:
        try:
            self.writer.check_unchanged()
        except InputError as error:
            self.ledger.stop(Failure(worker_name(), str(error)))
            raise

    @contextmanager
    def _heartbeat(self, claim: Claim) -> Iterator[None]:
        """Renew a claim in a thread while the block runs."""
        ended = threading.Event()

        def beat() -> None:
            lease = claim.lease
            while not ended.wait(self.timing.heartbeat_s):
                lease = replace(lease, beat=lease.beat + 1)
                # If it fails for too long, another worker takes the unit, which is a waste and no fault.
                with suppress(GeograftError, OSError):
                    self.ledger.renew(claim.name, claim.attempt, lease)

        thread = threading.Thread(target=beat, name=f"lease {claim.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _there(file: Path) -> Path:
    """Return where the file of a unit that another worker has put is downloaded to."""
    return file.parent / "there" / file.name


@dataclass(frozen=True)
class Proposal(Generic[Writer]):
    """A job as this process would start it, and how it computes the units of the job that holds."""

    job: Job
    writer: Callable[[Job], Writer]
    sample: bytes = b""
    """What the network computes for a few windows, if there is a network (`geograft.mapping.environment.Sample`)."""
    compare: Callable[[bytes], Agreement] = lambda content: NO_DIFFERENCE
    """Compares the sample of the job's first worker with this process's."""


def new_job(
    verb: Verb,
    origin: Mapping[str, Any],
    units: UnitGrid | JoinTree | SceneUnits,
    environment: Environment,
    sample: bytes = b"",
) -> Job:
    """Return a job that this process would start; `sample` as of a `Proposal`."""
    return Job(
        origin=to_json_types(origin),
        precision="",
        units=units,
        environment=environment,
        sample=f"sample-{hashlib.sha256(sample).hexdigest()[:16]}.npz" if sample else "",
        started_by=worker_name(),
        verb=verb,
    )


def join_job(
    out: Place, verb: Verb, propose: Callable[[str], Proposal[Writer]], options: PartConfig, backend: str = ""
) -> Worker[Writer]:
    """Join the job of a folder, or start it; return a worker of it.

    `propose` returns the job for a backend. Where `backend` is auto, it is that of the first worker.

    Raises:
        InputError: if the job is of another command, or has other inputs or settings.
        SettingError: if this worker differs from the first one, and `options` have no tolerance for that.
        OutputError: if the folder has other files, or cannot be written.
    """
    ledger = UnitLedger(out)
    part = parse_part(options.part, os.environ)
    job = ledger.read_job(verb)
    while True:
        own = propose(_job_backend(ledger, job) if job and backend == "auto" else backend)
        if job is None:
            job = ledger.create_job(own.job, own.sample)
            if job != own.job and backend == "auto" and job.origin.get("backend") != own.job.origin["backend"]:
                # Another worker was faster, with another backend.
                continue
        break
    _check_same_job(ledger, job, own.job)
    agreement = own.compare(ledger.read_sample(job)) if job.sample else NO_DIFFERENCE
    how = check_agreement((job.started_by, job.environment), own.job.environment, agreement, options.tolerance)
    if how:
        ledger.accept(Accepted(worker_name(), how, agreement.difference, agreement.flips, agreement.pixels))
    return Worker(ledger, job, own.writer(job), own.job.environment, agreement, options.tolerance, part)


def _job_backend(ledger: UnitLedger, job: Job) -> str:
    found = job.origin.get("backend")
    if found not in (TORCH, *EXPORT_BACKENDS):
        raise InputError(
            f"{ledger.out}/{JOB} is corrupt: origin.backend is {found!r}. Remove {ledger.out} to start over."
        )
    return str(found)


def _check_same_job(ledger: UnitLedger, job: Job, own: Job) -> None:
    """Raise InputError if a job has other inputs or settings than this process's. Paths may differ between machines."""
    before, now = (_inputs(one.origin) | {"units": asdict(one.units)} for one in (job, own))
    differing = differences(before, now)
    if differing:
        raise InputError(
            f"{ledger.out} is a job with other inputs or settings: {'; '.join(differing[:MAX_SHOWN])}. Give the "
            "command of the other workers, or another --out."
        )


def _inputs(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs and settings in an origin, without what belongs to one machine."""
    settings = {
        name: value for name, value in _mapping(origin.get("settings")).items() if name not in ("backend", "device")
    }
    inputs = {name: _without_path(entry) for name, entry in origin.items() if name not in OF_A_WORKER}
    return inputs | {"settings": settings}


OF_A_WORKER = ("settings", "backend", "precision", "versions", "notes")
"""Entries of an origin that are compared by the environment, or in part."""


def _without_path(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_without_path(one) for one in entry]
    if isinstance(entry, Mapping):
        return {name: _without_path(value) for name, value in entry.items() if name != "path"}
    return entry


def _mapping(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, Mapping) else {}


def _result_error(ledger: UnitLedger, state: JobState) -> InputError:
    """Return the error for a result that no worker makes any more."""
    why = next((f" {one.reason}" for one in ledger.failures(state).values()), "")
    return InputError(
        f"{ledger.out}: all units are done, but workers could not put them together.{why} `geograft jobs {ledger.out} "
        "--clean` lets them try again."
    )


def check_done(ledger: UnitLedger, state: JobState, units: int) -> None:
    """Raise InputError if not all units are done, with the reason of one."""
    if state.done == units:
        return
    failures = ledger.failures(state)
    why = next((f" {name}: {one.reason}" for name, one in failures.items()), "")
    raise InputError(
        f"{ledger.out}: {units - state.done:,} of {units:,} units could not be computed.{why} `geograft jobs "
        f"{ledger.out}` lists them, and with --clean lets workers try again."
    )


def check_file_name(file: str) -> None:
    """Raise SettingError if the file that a job makes in its folder has not a plain name."""
    if not file or Path(file).name != file or file.startswith("."):
        raise SettingError(f"--file {file} is not the name of a file. Give a name without folders, as polygons.gpkg.")
