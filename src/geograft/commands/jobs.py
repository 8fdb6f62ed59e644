"""`geograft jobs`: the units that workers compute of one job, from one listing of the folder that they share."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from geograft.errors import InputError
from geograft.files import StrPath
from geograft.locations import Place, to_place
from geograft.locks import lock_output
from geograft.mapping.claims import MAX_ATTEMPTS
from geograft.mapping.unit_ledger import RESULT, Accepted, Differing, Failure, Job, JobState, UnitLedger
from geograft.mapping.unit_outputs import Summary, read_summary
from geograft.mapping.worker import TIMING
from geograft.text import pluralise

MAX_SHOWN = 20
"""Running and failed units that are listed."""


@dataclass(frozen=True)
class RunningUnit:
    """A unit that a worker has claimed."""

    name: str
    worker: str
    silent_s: float
    """Seconds since its last sign of life, by the clocks of this machine and of the storage."""


@dataclass(frozen=True)
class JobStatus:
    """The state of a job."""

    path: Place
    job: Job
    done: int
    running: tuple[RunningUnit, ...]
    failed: dict[str, Failure]
    """Units whose last attempt failed, and why; workers try again up to MAX_ATTEMPTS times."""
    ended: int
    """Units that are given up: every attempt failed, or ended without a word."""
    stopped: Failure | None
    summary: Summary | None
    """Counts of the map, once all units are done."""
    cleaned: int | None = None
    """Files that were removed; None if none were to be."""
    accepted: tuple[Accepted, ...] = ()
    """Workers that take part although they differ from the first one."""
    differing: tuple[Differing, ...] = ()
    """Units that two workers computed with other values."""

    def lines(self) -> list[str]:
        """Return the state as text."""
        busy = {*(one.name for one in self.running), *self.failed} - {RESULT}
        waiting = len(self.job.units) - self.done - len(busy)
        text = [
            f"{self.path}: `geograft {self.job.verb}`, {self.job.units.description}, started by {self.job.started_by}",
            f"  done     {self.done:,}",
            f"  running  {len(self.running):,}",
            f"  failed   {len(self.failed):,}" + (f", {self.ended:,} of them for good" if self.ended else ""),
            f"  waiting  {max(0, waiting):,}",
        ]
        if self.stopped:
            text.append(f"Stopped by {self.stopped.worker}: {self.stopped.reason}")
        text += [self._running_line(one) for one in self.running[:MAX_SHOWN]]
        text += [f"{name} failed ({why.worker}): {why.reason}" for name, why in list(self.failed.items())[:MAX_SHOWN]]
        return text + self._summary_lines() + self._accepted_lines() + self._cleaned_lines()

    def _running_line(self, unit: RunningUnit) -> str:
        late = unit.silent_s > TIMING.expiry_s
        told = f"no sign of life for {unit.silent_s:,.0f} s" if late else f"alive {max(0, unit.silent_s):.0f} s ago"
        return f"{unit.name} by {unit.worker}, {told}"

    def _summary_lines(self) -> list[str]:
        found = self.summary
        if found is None:
            return []
        workers = pluralise(len(found.workers), "worker")
        lines = [f"{found.windows:,} windows by {workers} in {found.seconds:,.0f} s of their time together"]
        lines += [f"  {name} {count / max(found.pixels, 1):.1%}" for name, count in found.classes.items()]
        if found.accepted_pixels:
            fraction = found.accepted_pixels / max(found.pixels, 1)
            lines.append(f"{fraction:.1%} of the map is by workers that differ from the first one")
        return lines

    def _accepted_lines(self) -> list[str]:
        """Return a line for each worker that differs from the first one, and for all units with other values."""
        lines = []
        for one in self.accepted[:MAX_SHOWN]:
            measured = (
                f"; on {one.pixels:,} pixels of the raster probabilities differ by at most {one.difference:.2g}, and "
                f"the class of {one.flips:,} ({one.flips / one.pixels:.2g})"
                if one.pixels
                else ""
            )
            lines.append(f"Note: {one.worker} differs from the first one, and was accepted{measured}")
        if self.differing:
            units, flips = len(self.differing), sum(one.flips for one in self.differing)
            pixels = sum(one.pixels for one in self.differing)
            lines.append(
                f"Note: {pluralise(units, 'unit')} had other values from a second worker; those of the first one stay. "
                f"The class of {flips:,} of {pixels:,} pixels differs"
            )
        return lines

    def _cleaned_lines(self) -> list[str]:
        return [] if self.cleaned is None else [f"{pluralise(self.cleaned, 'file')} removed"]


def jobs(out: StrPath, clean: bool = False) -> JobStatus:
    """Return the state of the job that workers share in `out`, a folder or a bucket.

    With `clean`, claims, failures, a stop, and files of units without a receipt are removed, so that workers compute
    again what is not done. In a folder this needs that no worker is running; in a bucket nothing tells.

    Raises:
        InputError: if there is no job, or one of its files cannot be read.
        OutputError: if workers are running while the folder is to be cleaned.
    """
    place = to_place(out)
    ledger = UnitLedger(place)
    job = ledger.read_job()
    if job is None:
        raise InputError(
            f"{place} is not a job of workers: it has no job.json. Give the --out of a command with --worker."
        )
    cleaned = None
    if clean:
        with lock_output(Path(str(place)), enabled=isinstance(place, Path)):
            cleaned = ledger.clean(ledger.state())
    state = ledger.state()
    failed = ledger.failures(state)
    ended = sum(state.of(name).attempts >= MAX_ATTEMPTS for name in failed)
    return JobStatus(
        place,
        job,
        state.done,
        _running(ledger, state),
        failed,
        ended,
        ledger.stopped(),
        read_summary(ledger),
        cleaned,
        ledger.accepted(),
        ledger.differing(),
    )


def _running(ledger: UnitLedger, state: JobState) -> tuple[RunningUnit, ...]:
    now = datetime.now(UTC)
    found = []
    for name, unit in state.units.items():
        lease = ledger.lease(name, unit.attempts) if unit.lease and not unit.done else None
        if lease is not None and unit.renewed is not None:
            found.append(RunningUnit(name, lease.worker, (now - unit.renewed).total_seconds()))
    return tuple(found)
