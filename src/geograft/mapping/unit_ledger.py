"""The units of a job that several workers compute: a folder, or a bucket, that they share.

    OUT/job.json                        what determines the result, written once by the first worker
    OUT/sample-DIGEST.npz               what its network computes for a few windows
    OUT/units/r00000-c00012.tif         a finished unit of a map, with the files beside it
    OUT/units/s00003-u00012.npz         one of several scenes: number of the scene, and of the unit in it
    OUT/units/j2-r00000-c00003.npz      a join of units: its level, row and column
    OUT/state/r00000-c00012.done.json   its receipt: digest, files, counts, and who computed it where
    OUT/state/r00000-c00012.lease-1.json    who computes it; the second lease after the first has expired
    OUT/state/r00000-c00012.failed-1.json   why that failed
    OUT/state/result.done.json          what was made of all units, if one worker makes it; also leases and failures
    OUT/state/stopped.json              why the job must not go on
    OUT/state/accepted/DIGEST.json      a worker that was accepted with --tolerance, and how it differs
    OUT/state/differing/UNIT-DIGEST.json    a unit that such a worker has computed a second time, with other values

All but leases are written if absent, so that nothing that is finished is ever replaced. Leases avoid that two workers
compute one unit, but nothing depends on that: the second one to arrive must have the same values.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from geograft.errors import InputError, OutputError
from geograft.files import json_digest, to_json
from geograft.locations import Place
from geograft.mapping.environment import Environment, content_digest
from geograft.mapping.units import JoinTree, SceneUnits, UnitGrid
from geograft.storage import LocalFolder, open_storage

JOB, STATE, UNITS = "job.json", "state", "units"
ACCEPTED, DIFFERING = "accepted", "differing"
"""Folders of records in that of the state."""
STOPPED, RESULT = "stopped.json", "result"
"""Name of the file of a stopped job; the name that stands for the result where others are of units."""
Verb: TypeAlias = Literal["predict", "polygons", "evaluate", "suggest"]
UNITS_OF: dict[Verb, type] = {
    "predict": UnitGrid,
    "polygons": JoinTree,
    "evaluate": SceneUnits,
    "suggest": SceneUnits,
}
"""How the job of each command is divided."""
LAYOUT = 1
"""Version of the folder's layout."""
ENTRY = re.compile(r"((?:(?:j\d+-)?r\d{5,}-c|s\d{5,}-u)\d{5,}|result)\.(?:(done)|(lease|failed)-(\d+))\.json")
ABOUT = "A job that workers share. Every worker with the same command goes on with it; `geograft jobs` shows its state."


@dataclass(frozen=True)
class Job:
    """What determines the result of a job, and how it is divided."""

    origin: dict[str, Any]
    """Inputs and settings, as those of one process (of a map, `geograft.mapping.plan.origin`)."""
    precision: str
    """The precision of the network in words, for the tags of maps."""
    units: UnitGrid | JoinTree | SceneUnits
    """Those of its command (`UNITS_OF`)."""
    environment: Environment
    """Of the first worker."""
    sample: str
    """Key of what its network computes for a few windows; empty if there is no network."""
    started_by: str
    """Its name."""
    outputs: tuple[str, ...] = ("",)
    """Kinds of files of each unit of a map: "" for the class map, "probabilities" and so on."""
    verb: Verb = "predict"
    """The command that computes it."""
    layout: int = LAYOUT
    about: str = ABOUT

    @property
    def grid(self) -> UnitGrid:
        """The units of a map."""
        assert isinstance(self.units, UnitGrid), "checked where the job was read"
        return self.units


@dataclass(frozen=True)
class Receipt:
    """What was written of one unit, and by whom."""

    unit: str
    digest: str
    """SHA-256 of the values of all files; equal for workers that agree."""
    files: dict[str, int]
    """Names and bytes of its files; none for a unit without a mapped pixel."""
    windows: int
    """Windows that were predicted."""
    seconds: float
    pixels: int
    """Mapped pixels."""
    classes: dict[str, int]
    """Mapped pixels by class."""
    applicability: tuple[int, int] | None
    """Mapped pixels with an index, and those outside the area of applicability; None if it was not requested."""
    worker: str
    environment: Environment
    difference: float = 0.0
    """Largest difference of the worker's probabilities from those of the first worker, on the sample."""
    flips: int = 0
    """Pixels of the sample whose class differs."""


@dataclass(frozen=True)
class Accepted:
    """A worker that takes part although it differs from the first one."""

    worker: str
    how: tuple[str, ...]
    """In what it differs, one line each."""
    difference: float
    """Largest difference of its probabilities on the sample."""
    flips: int
    """Pixels of the sample whose class differs."""
    pixels: int
    """Pixels of the sample; 0 if there is no network."""


@dataclass(frozen=True)
class Differing:
    """A unit that two workers computed with other values. Those of the first one to arrive are kept."""

    unit: str
    kept: str
    """The worker whose values are kept."""
    other: str
    flips: int
    """Pixels whose class differs."""
    pixels: int
    """Mapped pixels."""


@dataclass(frozen=True)
class Lease:
    """A worker's claim of a unit."""

    worker: str
    host: str
    process: int
    token: str
    """A random text, by which a worker recognises its own."""
    beat: int = 0
    """How often it was renewed."""


@dataclass(frozen=True)
class Failure:
    """Why a unit was not computed, or why a job was stopped."""

    worker: str
    reason: str


@dataclass
class UnitState:
    """What the listing tells of one unit."""

    done: bool = False
    attempts: int = 0
    """Number of the last lease or failure."""
    lease: str = ""
    """ETag of the last lease; empty if the last attempt has none or failed."""
    renewed: datetime | None = None
    """When it was written, by the clock of the storage."""
    failed: bool = False
    """Whether the last attempt failed."""


@dataclass
class JobState:
    """What the listing tells of a job."""

    units: dict[str, UnitState] = field(default_factory=dict)
    """By name; units that nobody has claimed are missing."""
    stopped: bool = False

    def of(self, name: str) -> UnitState:
        """Return the state of a unit."""
        return self.units.get(name) or UnitState()

    @property
    def done(self) -> int:
        """Number of finished units."""
        return sum(unit.done for name, unit in self.units.items() if name != RESULT)


class UnitLedger:
    """The folder of a job: what is done, claimed and failed. All but `clean` is safe beside other workers."""

    def __init__(self, out: Place) -> None:
        """Use a local folder or a bucket with a prefix, which need not exist.

        Raises:
            InputError, SettingError: as `open_storage`.
        """
        self.out = out
        self.files = open_storage(out)
        self._state = open_storage(out / STATE)

    # ---------------------------------------------------------------------------------------------------------- the job

    def read_job(self, verb: Verb | None = None) -> Job | None:
        """Return the job; None before the first worker has written it.

        Raises:
            InputError: if it cannot be read, was written by another version, or is of another command than `verb`.
        """
        try:
            content = self.files.get(JOB)
        except FileNotFoundError:
            return None
        job: Job = self._parsed(Job, content, JOB)
        if job.layout != LAYOUT:
            raise InputError(
                f"{self.out}/{JOB} has layout {job.layout}; this version needs {LAYOUT}. Use the version of geograft "
                "that wrote it, or another --out."
            )
        if not isinstance(job.units, UNITS_OF[job.verb]):
            raise InputError(f"{self.out}/{JOB} is corrupt: units. Remove {self.out} to start over.")
        if verb is not None and job.verb != verb:
            raise InputError(
                f"{self.out} is a job of `geograft {job.verb}`; nothing was changed. Choose another --out."
            )
        return job

    def create_job(self, job: Job, sample: bytes) -> Job:
        """Write the job, unless another worker was faster; return the one that holds.

        Raises:
            OutputError: if the folder has other files, or cannot be written.
        """
        others = [one.key for one in self.files.list() if not _is_ours(one.key)]
        if others and self.files.head(JOB) is None:
            raise OutputError(
                f"{self.out} has other files ({others[0]}); nothing was changed. Choose an empty folder as --out."
            )
        if job.sample:
            self.files.put_new(job.sample, sample)
        self.files.put_new(JOB, _json(job))
        found = self.read_job(job.verb)
        assert found is not None, "the job was just written"
        if job.sample and found.sample != job.sample:
            self.files.delete(job.sample)
        return found

    def read_sample(self, job: Job) -> bytes:
        """Return the file of the job's sample.

        Raises:
            InputError: if it is missing or cannot be read.
        """
        try:
            return self.files.get(job.sample)
        except (FileNotFoundError, ValueError) as error:
            raise InputError(
                f"{self.out} has lost its {job.sample}. Remove {self.out} and start over, or restore the file."
            ) from error

    # ------------------------------------------------------------------------------------------------------------ state

    def state(self) -> JobState:
        """Return the state of all units, by one listing."""
        found = JobState()
        for entry in self._state.list():
            if entry.key == STOPPED:
                found.stopped = True
            if match := ENTRY.fullmatch(entry.key):
                unit = found.units.setdefault(match[1], UnitState())
                if match[2]:
                    unit.done = True
                    continue
                number = int(match[4])
                # Of one attempt, the failure comes before the lease in a listing, and is what counts.
                if number > unit.attempts:
                    unit.attempts, unit.failed, unit.lease = number, match[3] == "failed", ""
                if number == unit.attempts and match[3] == "lease" and not unit.failed:
                    unit.lease, unit.renewed = entry.etag, entry.modified
        return found

    def is_done(self, name: str) -> bool:
        """Return whether a unit has a receipt."""
        return self._state.head(f"{name}.done.json") is not None

    def claim(self, name: str, attempt: int, lease: Lease) -> bool:
        """Claim a unit for this worker; return whether it was the first to make this attempt."""
        key, content = f"{name}.lease-{attempt}.json", _json(lease)
        if self._state.put_new(key, content):
            return True
        # A request whose answer was lost is repeated, and finds what it has written.
        return self._read(key) == content

    def renew(self, name: str, attempt: int, lease: Lease) -> None:
        """Show that a claim still holds."""
        self._state.put(f"{name}.lease-{attempt}.json", _json(lease))

    def release(self, name: str, attempt: int) -> None:
        """Give up a claim, or remove that of a finished unit."""
        self._state.delete(f"{name}.lease-{attempt}.json")

    def lease(self, name: str, attempt: int) -> Lease | None:
        """Return who has claimed a unit; None if the claim was released."""
        key = f"{name}.lease-{attempt}.json"
        content = self._read(key)
        return self._parsed(Lease, content, key) if content else None

    def leases(self, name: str) -> list[Lease]:
        """Return who has claimed a unit, in order."""
        found = [one.key for one in self._state.list(f"{name}.lease-")]
        return [self._parsed(Lease, content, key) for key in found if (content := self._read(key))]

    def fail(self, name: str, attempt: int, failure: Failure) -> None:
        """Record that an attempt failed."""
        self._state.put_new(f"{name}.failed-{attempt}.json", _json(failure))

    def failures(self, state: JobState) -> dict[str, Failure]:
        """Return why units failed, by name."""
        keys = {name: f"{name}.failed-{unit.attempts}.json" for name, unit in state.units.items() if unit.failed}
        found = {name: (key, self._read(key)) for name, key in keys.items() if not state.of(name).done}
        return {name: self._parsed(Failure, content, key) for name, (key, content) in found.items() if content}

    def stop(self, failure: Failure) -> None:
        """Let all workers stop: what they compute cannot become one map."""
        self._state.put_new(STOPPED, _json(failure))

    def stopped(self) -> Failure | None:
        """Return why the job was stopped; None if it was not."""
        content = self._read(STOPPED)
        return self._parsed(Failure, content, STOPPED) if content else None

    def accept(self, worker: Accepted) -> None:
        """Record that a worker takes part although it differs."""
        self._add_record(ACCEPTED, "", worker)

    def accepted(self) -> tuple[Accepted, ...]:
        """Return the workers that take part although they differ, by name.

        Raises:
            InputError: if a record cannot be read.
        """
        return tuple(sorted(self._records(ACCEPTED, Accepted), key=lambda one: one.worker))

    def add_differing(self, unit: Differing) -> None:
        """Record that a unit was computed twice with other values."""
        self._add_record(DIFFERING, f"{unit.unit}-", unit)

    def differing(self) -> tuple[Differing, ...]:
        """Return the units that were computed twice with other values, in order.

        Raises:
            InputError: if a record cannot be read.
        """
        return tuple(sorted(self._records(DIFFERING, Differing), key=lambda one: one.unit))

    def _add_record(self, folder: str, prefix: str, record: Any) -> None:
        content = _json(record)
        self._state.put_new(f"{folder}/{prefix}{hashlib.sha256(content).hexdigest()[:16]}.json", content)

    def _records(self, folder: str, kind: Any) -> list[Any]:
        keys = [one.key for one in self._state.list(f"{folder}/")]
        return [self._parsed(kind, content, key) for key in keys if (content := self._read(key))]

    def clean(self, state: JobState) -> int:
        """Remove leases, failures and the stop, so that what is not done is claimed again; return their number."""
        keys = [one.key for one in self._state.list() if one.key == STOPPED or _is_attempt(one.key)]
        for key in keys:
            self._state.delete(key)
        done = [name for name, unit in state.units.items() if unit.done and name != RESULT]
        own = {file for name in done for file in self.receipt(name).files}
        orphans = [one.key for one in self.files.list(f"{UNITS}/") if one.key.rpartition("/")[2] not in own]
        for key in orphans:
            self.files.delete(key)
        return len(keys) + len(orphans)

    # --------------------------------------------------------------------------------------------------------- receipts

    def add_receipt(self, receipt: Receipt) -> Receipt:
        """Record that a unit is finished, and return the receipt that holds: this one, or that of a faster worker."""
        if self._state.put_new(f"{receipt.unit}.done.json", _json(receipt)):
            return receipt
        return self.receipt(receipt.unit)

    def receipt(self, name: str) -> Receipt:
        """Return the receipt of a finished unit.

        Raises:
            InputError: if it is missing or cannot be read.
        """
        key = f"{name}.done.json"
        content = self._read(key)
        if content is None:
            raise InputError(f"{self.out}/{STATE}/{key} is missing. Give the command of the workers again.")
        found: Receipt = self._parsed(Receipt, content, key)
        if found.unit != name or any("/" in file or not file.startswith(name) for file in found.files):
            raise InputError(f"{self.out}/{STATE}/{key} is of another unit. Remove it to compute the unit again.")
        return found

    def unit_file(self, unit: str, suffix: str, scratch: Path) -> Path | None:
        """Return the file of a finished unit on this machine, compared with its receipt; None if it has none.

        That of a bucket is downloaded into `scratch`.

        Raises:
            InputError: if it cannot be read, or has other values than its receipt says.
        """
        receipt, name = self.receipt(unit), f"{unit}{suffix}"
        if name not in receipt.files:
            return None
        local = self.files.root if isinstance(self.files, LocalFolder) else None
        path = local / UNITS / name if local else scratch / name
        try:
            if not local:
                self.files.download(f"{UNITS}/{name}", path)
            digest = json_digest({name: content_digest(path)}) if path.exists() else ""
        except (FileNotFoundError, InputError):
            digest = ""
        if digest != receipt.digest:
            raise self._unit_error(unit, name)
        return path

    def check_files(self, receipts: Iterable[Receipt]) -> None:
        """Raise InputError if a raster of a finished unit is missing, or has another size than its receipt says."""
        there = {one.key.rpartition("/")[2]: one.size for one in self.files.list(f"{UNITS}/")}
        for receipt in receipts:
            for name in (name for name in receipt.files if name.endswith(".tif")):
                if there.get(name) != receipt.files[name]:
                    raise self._unit_error(receipt.unit, name)

    def _unit_error(self, unit: str, name: str) -> InputError:
        return InputError(
            f"{self.out}/{UNITS}/{name} is not the file that its receipt describes. Remove it and "
            f"{self.out}/{STATE}/{unit}.done.json, and give the command of the workers again."
        )

    def add_result(self, content: Mapping[str, Any]) -> None:
        """Record that the result of all units is made, and what it is, as JSON."""
        self._state.put_new(f"{RESULT}.done.json", to_json(content).encode())

    def read_result(self) -> dict[str, Any] | None:
        """Return what the result of all units is; None if it is not made.

        Raises:
            InputError: if it cannot be read.
        """
        key = f"{RESULT}.done.json"
        content = self._read(key)
        return self._parsed(dict[str, Any], content, key) if content else None

    def _read(self, key: str) -> bytes | None:
        try:
            return self._state.get(key)
        except FileNotFoundError:
            return None

    def _parsed(self, kind: Any, content: bytes, key: str) -> Any:
        try:
            return TypeAdapter(kind).validate_json(content)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            path = f"{self.out}/{key}" if key == JOB else f"{self.out}/{STATE}/{key}"
            remedy = f"Remove {self.out} to start over" if key == JOB else "Remove the file"
            raise InputError(f"{path} is corrupt: {where or 'content'}: {fault['msg']}. {remedy}.") from error


def combined_counts(receipts: Iterable[Receipt]) -> Mapping[str, int]:
    """Return the mapped pixels of all units by class."""
    total: dict[str, int] = {}
    for receipt in receipts:
        for name, count in receipt.classes.items():
            total[name] = total.get(name, 0) + count
    return total


def _json(content: Any) -> bytes:
    return to_json(asdict(content)).encode()


def _is_ours(key: str) -> bool:
    return key == JOB or key.startswith(("sample-", f"{STATE}/", f"{UNITS}/"))


def _is_attempt(key: str) -> bool:
    match = ENTRY.fullmatch(key)
    return match is not None and match[2] is None
