"""Which unit a worker takes next: claims, and when those of others no longer hold."""

import os
import platform
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from uuid import uuid4

from geograft.errors import OutputError
from geograft.interrupts import is_running
from geograft.mapping.environment import worker_name
from geograft.mapping.unit_ledger import Job, JobState, Lease, UnitLedger, UnitState
from geograft.mapping.units import JoinTree

MAX_ATTEMPTS = 5
"""Leases of a unit without a receipt after which it is not tried again: a unit may kill its worker."""


NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})


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


class LeaseWatch:
    """Tells which leases have expired: those that were not renewed while this process watched them for a time.

    Only the clock of this process is used. Clocks of machines may differ.
    """

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._seen: dict[tuple[str, int], tuple[str, float]] = {}
        """ETag of each lease, and when it was first seen."""
        self.new: list[tuple[str, int]] = []
        """Units and attempts of the leases that the last observation found for the first time."""

    def observe(self, state: JobState) -> None:
        """Take note of the leases of a listing."""
        now = time.monotonic()
        current = {
            (name, unit.attempts): unit.lease for name, unit in state.units.items() if unit.lease and not unit.done
        }
        self.new = [key for key in current if key not in self._seen]
        self._seen = {
            key: self._seen[key] if key in self._seen and self._seen[key][0] == etag else (etag, now)
            for key, etag in current.items()
        }

    def end(self, name: str, attempt: int) -> None:
        """Let a lease expire now: its worker is known to have ended."""
        if (name, attempt) in self._seen:
            self._seen[name, attempt] = (self._seen[name, attempt][0], -float("inf"))

    def has_expired(self, name: str, unit: UnitState) -> bool:
        """Return whether the lease of a unit has expired."""
        seen = self._seen.get((name, unit.attempts))
        return seen is not None and time.monotonic() - seen[1] >= self._expiry_s


@dataclass(frozen=True)
class Claim:
    """A unit that this worker has claimed, or the result of all units."""

    index: int
    """Of a unit; of the result the number of units."""
    name: str
    attempt: int
    lease: Lease


class Claims:
    """What this worker knows of a job, and which unit it takes next."""

    def __init__(
        self, ledger: UnitLedger, units: Mapping[str, int], timing: Timing, needs: Mapping[str, Sequence[str]] = NOTHING
    ) -> None:
        """`units` are the indices of units by name, in the order in which this worker takes them.

        A unit in `needs` can be computed when those that it needs are done.
        """
        self._ledger, self._units, self._timing, self._needs = ledger, units, timing, needs
        self._watch = LeaseWatch(timing.expiry_s)
        self._given_up: set[str] = set()
        self._free: deque[str] = deque()
        """Units that were free at the last listing and were not tried since, in order."""
        self._listed = -float("inf")
        self.state = JobState()

    @classmethod
    def of_job(cls, ledger: UnitLedger, job: Job, timing: Timing, order: Sequence[int] | None = None) -> "Claims":
        """Return the claims of a job's units, by default in their own order."""
        units = job.units
        names = {units.name(index): index for index in (range(len(units)) if order is None else order)}
        if not isinstance(units, JoinTree):
            return cls(ledger, names, timing)
        joined = {name: list(chain.from_iterable(units.joined(index))) for name, index in names.items()}
        return cls(ledger, names, timing, {name: [*map(units.name, below)] for name, below in joined.items()})

    def refresh(self, after_s: float = 0.0) -> JobState:
        """List the job again, if the last listing is at least `after_s` old.

        Raises:
            OutputError: if it was stopped.
        """
        if time.monotonic() - self._listed < after_s:
            return self.state
        self.state, self._listed = self._ledger.state(), time.monotonic()
        self._watch.observe(self.state)
        for name, attempt in self._watch.new:
            lease = self._ledger.lease(name, attempt)
            if lease is not None and lease.host == platform.node() and not is_running(lease.process):
                self._watch.end(name, attempt)
        if self.state.stopped and (why := self._ledger.stopped()):
            raise OutputError(f"{self._ledger.out} was stopped by {why.worker}: {why.reason}")
        self._free = deque(name for name in self._units if self._is_free(name))
        return self.state

    def next(self, avoided: Collection[str] = ()) -> Claim | None:
        """Claim a unit that is not `avoided`; None if there is none to claim now.

        Raises:
            OutputError: as `refresh`.
        """
        self.refresh(self._timing.list_s)
        left = []
        try:
            while self._free:
                name = self._free.popleft()
                if name in avoided:
                    left.append(name)
                elif self._is_free(name) and (claim := self._claim(name)):
                    return claim
        finally:
            self._free.extendleft(reversed(left))
        return None

    def _claim(self, name: str) -> Claim | None:
        """Claim a unit; None if another worker has it, or has finished it."""
        claim = Claim(self._units[name], name, self.state.of(name).attempts + 1, new_lease())
        if not self._ledger.claim(name, claim.attempt, claim.lease):
            # The next listing tells more.
            self.state.units[name] = UnitState(attempts=claim.attempt, lease="new")
            return None
        if self._ledger.is_done(name):
            self._ledger.release(name, claim.attempt)
            self.mark_done(name)
            return None
        self.state.units[name] = UnitState(attempts=claim.attempt, lease="own")
        return claim

    def mark_done(self, name: str) -> None:
        """Take note of a finished unit before the next listing."""
        self.state.units.setdefault(name, UnitState()).done = True

    def mark_failed(self, name: str, attempt: int) -> None:
        """Take note that an attempt has ended without result, before the next listing: the unit is free."""
        self.state.units[name] = UnitState(attempts=attempt, failed=True)
        self._free.append(name)

    def give_up(self, name: str) -> None:
        """Leave a unit that failed to other workers."""
        self._given_up.add(name)

    @property
    def any_free(self) -> bool:
        """Whether a unit was free at the last listing and was not tried since."""
        return bool(self._free)

    def are_settled(self) -> bool:
        """Return whether this worker has nothing left to do or to wait for."""
        return all(map(self._is_settled, self._units))

    def _is_free(self, name: str) -> bool:
        unit = self.state.of(name)
        if unit.done or name in self._given_up or unit.attempts >= MAX_ATTEMPTS:
            return False
        if not all(self.state.of(needed).done for needed in self._needs.get(name, ())):
            return False
        return not unit.lease or self._watch.has_expired(name, unit)

    def _is_settled(self, name: str) -> bool:
        unit = self.state.of(name)
        if unit.done:
            return True
        running = bool(unit.lease) and not self._watch.has_expired(name, unit)
        if not running and (name in self._given_up or unit.attempts >= MAX_ATTEMPTS):
            return True
        # What it needs cannot be had any more.
        return any(not self.state.of(needed).done and self._is_settled(needed) for needed in self._needs.get(name, ()))


def new_lease() -> Lease:
    """Return a claim of this process."""
    return Lease(worker_name(), platform.node(), os.getpid(), uuid4().hex)
