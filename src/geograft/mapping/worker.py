"""A worker: one of any number of processes that compute the units of one map, on one machine or many.

Workers know of each other by the folder that they share (`geograft.mapping.unit_ledger`). Each claims the next unit
that nobody works on, computes it, and puts it there. A worker may be killed at any moment: what it claimed is claimed
again when it no longer shows signs of life.
"""

import hashlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.files import json_digest
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.inference.predictor import EnsemblePredictor
from geograft.inference.runners import EXPORT_BACKENDS, TORCH
from geograft.interrupts import is_running, note_kept
from geograft.mapping.environment import Agreement, Environment, Sample, describe_environment, worker_name
from geograft.mapping.job import no_pixel_error
from geograft.mapping.plan import MapTask
from geograft.mapping.unit_ledger import (
    JOB,
    UNITS,
    Failure,
    Job,
    JobState,
    Lease,
    LeaseWatch,
    Receipt,
    UnitLedger,
    UnitState,
)
from geograft.mapping.units import UnitGrid, UnitResult, UnitWriter, plan_units, unit_order
from geograft.progress import ProgressBar, progress_bar
from geograft.resume import MAX_SHOWN, differences, to_json_types

if TYPE_CHECKING:
    from geograft.mapping.applicability import ApplicabilityMapper

MAX_ATTEMPTS = 5
"""Leases of a unit without a receipt after which it is not tried again: a unit may kill its worker."""
MAX_FAILURES = 3
"""Units in a row that fail, after which a worker gives up."""
DIGEST_ROWS = 512


@dataclass(frozen=True)
class Timing:
    """Times in seconds."""

    heartbeat_s: float = 15.0
    """Between two signs of life of a claim."""
    expiry_s: float = 120.0
    """Without a sign of life, after which a claim no longer holds."""
    poll_s: float = 3.0
    """Between two listings of a worker that waits for others."""
    list_s: float = 20.0
    """Between two listings of a worker that works."""


TIMING = Timing()


@dataclass(frozen=True)
class Claim:
    """A unit that this worker has claimed."""

    index: int
    name: str
    attempt: int
    lease: Lease


class Claims:
    """What this worker knows of a job, and which unit it takes next."""

    def __init__(self, ledger: UnitLedger, units: UnitGrid, order: list[int], timing: Timing) -> None:
        self._ledger, self._units, self._order, self._timing = ledger, units, order, timing
        self._watch = LeaseWatch(timing.expiry_s)
        self._given_up: set[str] = set()
        self._listed = -float("inf")
        self.state = JobState()

    def refresh(self) -> JobState:
        """List the job again.

        Raises:
            OutputError: if it was stopped.
        """
        self.state, self._listed = self._ledger.state(), time.monotonic()
        self._watch.observe(self.state)
        for name, attempt in self._watch.new:
            lease = self._ledger.lease(name, attempt)
            if lease is not None and lease.host == platform.node() and not is_running(lease.process):
                self._watch.end(name, attempt)
        if self.state.stopped and (why := self._ledger.stopped()):
            raise OutputError(f"{self._ledger.out} was stopped by {why.worker}: {why.reason}")
        return self.state

    def next(self) -> Claim | None:
        """Claim a unit; None if there is none to claim now.

        Raises:
            OutputError: as `refresh`.
        """
        if time.monotonic() - self._listed >= self._timing.list_s:
            self.refresh()
        for index in self._order:
            name = self._units.name(index)
            unit = self.state.of(name)
            if not self._is_free(name, unit):
                continue
            claim = Claim(index, name, unit.attempts + 1, _new_lease())
            if not self._ledger.claim(name, claim.attempt, claim.lease):
                # Of another worker; the next listing tells more.
                self.state.units[name] = UnitState(attempts=claim.attempt, lease="new")
            elif self._ledger.is_done(name):
                self._ledger.release(name, claim.attempt)
                self.mark_done(name)
            else:
                return claim
        return None

    def mark_done(self, name: str) -> None:
        """Take note of a finished unit before the next listing."""
        self.state.units.setdefault(name, UnitState()).done = True

    def give_up(self, name: str) -> None:
        """Leave a unit that failed to other workers."""
        self._given_up.add(name)

    def are_settled(self) -> bool:
        """Return whether this worker has nothing left to do or to wait for."""
        return all(self._is_settled(self._units.name(index)) for index in self._order)

    def _is_free(self, name: str, unit: UnitState) -> bool:
        if unit.done or name in self._given_up or unit.attempts >= MAX_ATTEMPTS:
            return False
        return not unit.lease or self._watch.has_expired(name, unit)

    def _is_settled(self, name: str) -> bool:
        unit = self.state.of(name)
        if unit.done:
            return True
        running = bool(unit.lease) and not self._watch.has_expired(name, unit)
        return not running and (name in self._given_up or unit.attempts >= MAX_ATTEMPTS)


def _new_lease() -> Lease:
    return Lease(worker_name(), platform.node(), os.getpid(), uuid4().hex)


@dataclass
class Worker:
    """Computes units of a job until none is left."""

    ledger: UnitLedger
    job: Job
    writer: UnitWriter
    environment: Environment
    agreement: Agreement
    tolerance: float | None
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
        claims = Claims(self.ledger, units, unit_order(len(units), *self.part), self.timing)
        done, failures = claims.refresh().done, 0

        def kept() -> str:
            return f"{claims.state.done:,} of {len(units):,} units of the map are" if claims.state.done else ""

        with (
            progress_bar(f"predict {self.ledger.out}", len(units), "units", done=done) as bar,
            note_kept("the map", kept, lambda: None),
        ):
            shown = _Shown(bar, done)
            while True:
                claim = claims.next()
                shown.update(claims.state.done)
                if claim is not None:
                    error = self._compute(claim, claims, shown)
                    failures = failures + 1 if error else 0
                    if error and failures == MAX_FAILURES:
                        raise error
                elif self._waited(claims):
                    return claims.state

    def _waited(self, claims: Claims) -> bool:
        """Look again; wait for others if there is nothing to claim, and return whether there is nothing to wait for."""
        claims.refresh()
        if claims.are_settled():
            return True
        time.sleep(self.timing.poll_s)
        return False

    def _compute(self, claim: Claim, claims: Claims, shown: "_Shown") -> GeograftError | None:
        """Compute a claimed unit and put it into the folder; return why that failed."""
        try:
            with TemporaryDirectory(prefix="geograft-unit-") as scratch, self._heartbeat(claim):
                self._deliver(claim, Path(scratch), shown)
        except GeograftError as error:
            self.ledger.fail(claim.name, claim.attempt, Failure(worker_name(), str(error)))
            if self.ledger.stopped():
                raise
            self._stop_if_changed()
            claims.give_up(claim.name)
            return error
        except KeyboardInterrupt:
            # Others need not wait until it expires.
            self.ledger.release(claim.name, claim.attempt)
            raise
        except Exception as error:
            self.ledger.fail(claim.name, claim.attempt, Failure(worker_name(), repr(error)))
            raise
        self.ledger.release(claim.name, claim.attempt)
        self.computed.append(claim.name)
        claims.mark_done(claim.name)
        return None

    def _deliver(self, claim: Claim, scratch: Path, shown: "_Shown") -> None:
        started, window = time.perf_counter(), self.job.units.window(claim.index)
        path = scratch / f"{claim.name}.tif"
        result = self.writer.write(window, path, lambda px: shown.add(px / (window.height * window.width)))
        files = sorted(file for file in scratch.iterdir() if file.is_file())
        digests = {file.name: pixels_digest(file) for file in files if file.suffix == ".tif"}
        receipt = self._receipt(claim.name, result, digests, time.perf_counter() - started)
        receipt = replace(receipt, files={file.name: file.stat().st_size for file in files})
        for file in files:
            self._put(file, digests.get(file.name, ""), receipt)
        holding = self.ledger.add_receipt(receipt)
        if holding.digest != receipt.digest:
            self._refuse_or_keep(receipt, holding)

    def _put(self, file: Path, digest: str, receipt: Receipt) -> None:
        """Put a file of a unit into the folder, unless the same pixels are there."""
        key = f"{UNITS}/{file.name}"
        while not self.ledger.files.put_new(key, file):
            there = file.parent / "there" / file.name
            there.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another worker may have replaced it
                self.ledger.files.download(key, there)
                if not digest or pixels_digest(there) == digest:
                    return
                holding = self.ledger.receipt(receipt.unit) if self.ledger.is_done(receipt.unit) else None
                self._refuse_or_keep(receipt, holding)
                if holding is not None:
                    return
                # Of a worker that was killed before it could write its receipt.
                self.ledger.files.delete(key)

    def _refuse_or_keep(self, own: Receipt, holding: Receipt | None) -> None:
        """Stop the job if a unit was computed with other pixels before, unless differences are tolerated."""
        if self.tolerance is not None or (holding is not None and holding.difference):
            return
        before = [lease.worker for lease in self.ledger.leases(own.unit) if lease.worker != own.worker]
        other = holding.worker if holding else " or ".join(before) or "a worker that was killed"
        named = holding.environment.differences(own.environment) if holding else []
        how = "; ".join(named) or "their hardware and libraries have the same names"
        reason = (
            f"unit {own.unit} has other pixels from {own.worker} than from {other} ({how}). Use workers of one kind, "
            f"or accept differences with --tolerance; `geograft jobs {self.ledger.out} --clean` lets the job go on."
        )
        self.ledger.stop(Failure(own.worker, reason))
        raise OutputError(f"{self.ledger.out}: {reason}")

    def _receipt(self, name: str, result: UnitResult, digests: Mapping[str, str], seconds: float) -> Receipt:
        counts = result.counts
        cells = counts.applicability if counts else None
        return Receipt(
            unit=name,
            digest=json_digest(digests),
            files={},
            windows=result.windows,
            seconds=round(seconds, 3),
            pixels=counts.classes.pixels if counts else 0,
            classes=dict(counts.classes.by_class) if counts else {},
            applicability=(cells.pixels_with_index, cells.outside_px) if cells else None,
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


class _Shown:
    """The progress of a job: the units that are done, by all workers, and a part of that in hand."""

    def __init__(self, bar: ProgressBar, done: float) -> None:
        self._bar, self._shown, self._done, self._part = bar, float(done), float(done), 0.0

    def update(self, done: int) -> None:
        """Show the number of units that are done, with none in hand."""
        self._done, self._part = done, 0.0
        self._advance()

    def add(self, fraction: float) -> None:
        """Add a fraction of the unit in hand."""
        self._part += fraction
        self._advance()

    def _advance(self) -> None:
        self._bar.advance(max(0.0, self._done + self._part - self._shown))
        self._shown = max(self._shown, self._done + self._part)


def check_agreement(job: Job, environment: Environment, agreement: Agreement, tolerance: float | None) -> None:
    """Check that this worker gives the bits of the job's first worker, or is tolerated.

    Raises:
        SettingError: if it differs by name or in its results and `tolerance` is None; if the largest difference of
            probabilities exceeds it.
    """
    named = job.environment.differences(environment)
    if not named and agreement.same_bits:
        return
    how = "; ".join(named) or "its hardware and libraries have the same names, but the network gives other bits"
    measured = (
        f"On {agreement.pixels:,} pixels of the raster probabilities differ by at most {agreement.difference:.2g}, and "
        f"the class of {agreement.flips:,}."
    )
    if tolerance is None:
        raise SettingError(
            f"This worker ({worker_name()}) differs from the job's first one ({job.started_by}): {how}. {measured} Use "
            "workers of one kind, or accept the difference with --tolerance."
        )
    if agreement.difference > tolerance:
        raise SettingError(
            f"This worker ({worker_name()}) differs from the job's first one ({job.started_by}) by more than "
            f"--tolerance {tolerance:g}: {how}. {measured} Use workers of one kind, or a larger tolerance."
        )


def pixels_digest(path: Path) -> str:
    """Return the SHA-256 of a raster's pixels, which does not depend on how they are compressed."""
    digest = hashlib.sha256()
    with Image.open(path) as image:
        grid = image.info.grid
        digest.update(f"{image.info.dtype} {image.info.bands} {grid.height} {grid.width}".encode())
        for row in range(0, grid.height, DIGEST_ROWS):
            window = Window(row, 0, min(DIGEST_ROWS, grid.height - row), grid.width)
            digest.update(image.read_raw(window).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Joined:
    """A job that this worker takes part in."""

    job: Job
    task: MapTask
    """With the origin of the job, so that all workers write the same tags."""
    model: EnsemblePredictor
    writer: UnitWriter
    environment: Environment
    agreement: Agreement


def join_job(ledger: UnitLedger, backend: str, load: Callable[[str], tuple[MapTask, EnsemblePredictor]]) -> Joined:
    """Join the job of a folder, or start it.

    `load` returns the task, with its origin, and the predictor for a backend. Where `backend` is auto, it is that of
    the first worker.

    Raises:
        InputError: if the job has other inputs or settings, or no pixel of the rasters is valid.
        OutputError: if the folder has other files, or cannot be written.
    """
    job = ledger.read_job()
    while True:
        task, model = load(_job_backend(ledger, job) if job and backend == "auto" else backend)
        windows = task.sample_windows()
        if windows is None:
            raise no_pixel_error(task.source)
        sample = Sample.compute(model, windows)
        environment = describe_environment(model.backend, model.precision, task.device)
        cells = _applicability(task)
        units = plan_units(task.plan.lanes.tiles, cells.encoder.cell_px if cells else 1)
        if job is None:
            own = _new_job(task, sample, environment, units)
            job = ledger.create_job(own, sample.to_bytes())
            if job != own and backend == "auto" and job.origin.get("backend") != model.backend:
                # Another worker was faster, with another backend.
                continue
        break
    _check_same_job(ledger, job, task, units)
    reference = Sample.from_bytes(ledger.read_sample(job), sample.levels.shape)
    rasters = tuple(task.origin["rasters"])
    shared = replace(task, origin=job.origin, precision=job.precision)
    writer = UnitWriter(shared, model, rasters, cells)
    return Joined(job, shared, model, writer, environment, reference.agreement(sample, task.card))


def _job_backend(ledger: UnitLedger, job: Job) -> str:
    found = job.origin.get("backend")
    if found not in (TORCH, *EXPORT_BACKENDS):
        raise InputError(
            f"{ledger.out}/{JOB} is corrupt: origin.backend is {found!r}. Remove {ledger.out} to start over."
        )
    return str(found)


def _applicability(task: MapTask) -> "ApplicabilityMapper | None":
    if not task.applicability:
        return None
    from geograft.mapping.applicability import ApplicabilityMapper  # noqa: PLC0415  (imports SciPy)

    return ApplicabilityMapper.load(task)


def _new_job(task: MapTask, sample: Sample, environment: Environment, units: UnitGrid) -> Job:
    content = sample.to_bytes()
    kinds = ("probabilities", "uncertainty", "applicability")
    return Job(
        origin=to_json_types(task.origin),
        precision=task.precision,
        units=units,
        environment=environment,
        sample=f"sample-{hashlib.sha256(content).hexdigest()[:16]}.npz",
        started_by=worker_name(),
        outputs=("", *(kind for kind in kinds if getattr(task, kind))),
    )


def _check_same_job(ledger: UnitLedger, job: Job, task: MapTask, units: UnitGrid) -> None:
    """Raise InputError if a job has other inputs or settings than a task. Paths may differ between machines."""
    before, now = _inputs(job.origin), _inputs(to_json_types(task.origin))
    differing = differences(before | {"units": asdict(job.units)}, now | {"units": asdict(units)})
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
    known = {name: origin.get(name) for name in ("places", "known")}
    places = {name: _without_path(origin.get(name)) for name in ("runs", "rasters", "area")}
    return known | places | {"settings": settings}


def _without_path(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_without_path(one) for one in entry]
    return {name: value for name, value in _mapping(entry).items() if name != "path"}


def _mapping(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, Mapping) else {}
