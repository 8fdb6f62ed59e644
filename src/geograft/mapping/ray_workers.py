"""Units computed on the nodes of a Ray cluster, handed out by one process, the driver.

The job is that of `geograft.mapping.worker`: the same folder, claims and receipts, so that workers may take part beside
the driver. On each node actors join the job, which loads the network once, and compute what the driver has claimed for
them. Results go from the actor to the folder; only names of units go through Ray. The driver keeps nothing that is not
in the folder: it may be killed and started again.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from geograft.errors import GeograftError, InputError
from geograft.inference.runners import library_version
from geograft.interrupts import note_kept
from geograft.locations import Place
from geograft.mapping.claims import MAX_ATTEMPTS, Claim, Claims, new_lease
from geograft.mapping.environment import worker_name
from geograft.mapping.ray_cluster import actors_by_node, connect_to_ray
from geograft.mapping.unit_ledger import Failure, Job, UnitLedger, UnitState
from geograft.mapping.worker import MAX_FAILURES, TIMING, Worker, check_done
from geograft.progress import UnitsShown, announce, progress_bar

POLL_S, NODES_S = 0.5, 5.0
"""Seconds between two looks at what actors have done, and at the nodes of the cluster."""
STRAGGLER = 2.0
"""Multiple of the median time of a unit after which a second actor computes it too, if there is nothing else to do."""
CANCEL_S = 5.0
"""Seconds that an actor has to give its unit back at the end, before its process is ended."""
INHERITED = ("GDAL_CACHEMAX", "CPL_LOG", "GOMP_SPINCOUNT")
"""Environment variables that the command line sets for its processes; those of actors belong to Ray."""

Result = TypeVar("Result")


class _Cancelled(KeyboardInterrupt):
    """Ends a unit that is not needed any more, in the way in which a worker is interrupted."""


class UnitActor:
    """Computes units in a process on a node of the cluster, one at a time. Ray calls it in two threads."""

    def __init__(self, join: Callable[[], Worker[Any]], folder: str, variables: Mapping[str, str]) -> None:
        """Use the driver's working directory `folder`, if it exists here, and its environment `variables`."""
        os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
        with suppress(OSError):
            os.chdir(folder)
        self._join = join
        self._worker: Worker[Any] | None = None
        self._claim: Claim | None = None
        self._cancelled: Claim | None = None
        self._part = 0.0

    def join(self) -> tuple[Job, str]:
        """Join the job, and load what its units need; return it, and the version of geograft here."""
        self._worker = self._join()
        return self._worker.job, library_version("geograft")

    def compute(self, claim: Claim) -> GeograftError | None:
        """Compute a unit; return why that failed, which is recorded. None too if it was cancelled."""
        assert self._worker is not None, "joined before"
        self._claim, self._part = claim, 0.0
        try:
            return self._worker.try_claimed(replace(claim, lease=replace(claim.lease, worker=worker_name())), self._add)
        except _Cancelled:
            return None

    def finish(self, finish: Callable[[Worker[Any]], Result], computed: list[str]) -> Result:
        """Make one result of all units; `computed` are those that the actors have finished."""
        assert self._worker is not None, "joined before"
        self._worker.computed[:] = computed
        return finish(self._worker)

    def part(self) -> float:
        """Return the fraction of the unit in hand that is finished. Called while `compute` runs."""
        return self._part

    def cancel(self, claim: Claim) -> None:
        """Give a unit back at the next strip. Called while `compute` runs."""
        self._cancelled = claim

    def _add(self, fraction: float) -> None:
        self._part += fraction
        if self._claim == self._cancelled:
            raise _Cancelled


@dataclass
class _Node:
    """A node of the cluster, and how it behaves."""

    key: str
    name: str
    failed: set[str] = field(default_factory=set)
    """Units that could not be computed here; they are left to other nodes."""
    failures: int = 0
    """Units and actors in a row that failed."""
    refused: bool = False


@dataclass(eq=False)
class _Actor:
    """An actor as the driver sees it."""

    handle: Any
    node: _Node
    call: Any
    """Reference to the answer that it owes, to `join` or `compute`; None if it waits for work."""
    claim: Claim | None = None
    """The unit in hand."""
    started: float = 0.0
    part: float = 0.0
    asked: Any = None
    """Reference to the answer to `part`."""


class RayDriver(Generic[Result]):
    """Starts actors on the nodes of a cluster, and hands units to them until none is left."""

    def __init__(self, ray: Any, ledger: UnitLedger, join: Callable[[], Worker[Any]], use_gpus: bool) -> None:
        """Use the module `ray`, which is connected to a cluster."""
        self._ray, self._ledger, self._join, self._use_gpus = ray, ledger, join, use_gpus
        self._nodes: dict[str, _Node] = {}
        self._actors: list[_Actor] = []
        self._looked = -float("inf")
        self._job: Job | None = None
        self._claims: Claims
        self._seconds: list[float] = []
        """Times of the units that are finished."""
        self._computed: list[str] = []
        self._lost: set[str] = set()
        """Units whose actor was lost; tried last, because they may be the reason."""
        self._bug: Exception | None = None
        """An error in an actor that is none of ours."""

    def run(self, finish: Callable[[Worker[Any]], Result]) -> Result:
        """Compute units until all are done or failed, and return what `finish` makes of them in an actor.

        Raises:
            InputError: if units failed.
            GeograftError: if the job is stopped, or no node of the cluster can take part.
        """
        job = self._started_job()
        claims, units = self._claims, len(job.units)

        def kept() -> str:
            return f"{claims.state.done:,} of {units:,} units are" if claims.state.done else ""

        done = claims.refresh().done
        with (
            progress_bar(f"{job.verb} {self._ledger.out}", units, "units", done=done) as bar,
            note_kept("the job", kept, lambda: None),
        ):
            shown = UnitsShown(bar, done)
            while not self._is_settled(units):
                self._look_at_nodes()
                self._hand_out()
                self._take_answers()
                shown.update(claims.state.done)
                shown.add(self._part_in_hand())
            if self._bug is not None and claims.state.done < units:
                raise self._bug
            check_done(self._ledger, claims.state, units)
            return self._finish(finish)

    def _started_job(self) -> Job:
        """Wait until an actor has joined the job, or started it."""
        while self._job is None:
            self._look_at_nodes()
            self._take_answers()
        return self._job

    def _is_settled(self, units: int) -> bool:
        """Return whether nothing is left to compute or to wait for, by a listing if the actors have nothing to do."""
        if any(actor.claim and not self._is_done(actor.claim) for actor in self._actors):
            return False
        waiting = [actor.node.failed for actor in self._actors if actor.call is None]
        for name in set[str].intersection(*waiting) if waiting else ():
            self._claims.give_up(name)
        if self._claims.state.done < units:
            self._claims.refresh(TIMING.poll_s)
        return self._claims.are_settled()

    def _is_done(self, claim: Claim) -> bool:
        return self._claims.state.of(claim.name).done

    def _hand_out(self) -> None:
        """Give each actor that waits a unit that nobody works on, or one that takes another actor too long."""
        left = True
        for actor in [one for one in self._actors if one.call is None]:
            failed = actor.node.failed
            claim = (self._claims.next(failed | self._lost) or self._claims.next(failed)) if left else None
            # Each look at all units takes time, if there are many.
            left = claim is not None or bool(failed)
            claim = claim or self._claim_straggler(actor)
            if claim is not None:
                actor.claim, actor.started, actor.part = claim, time.monotonic(), 0.0
                actor.call = actor.handle.compute.remote(claim)

    def _claim_straggler(self, idle: _Actor) -> Claim | None:
        """Claim the unit that has been computed for longest, if that is unusually long and nobody else does."""
        busy = [(one.started, one.claim) for one in self._actors if one.claim and not self._is_done(one.claim)]
        limit = STRAGGLER * statistics.median(self._seconds) if self._seconds else float("inf")
        for started, slow in sorted(busy, key=lambda one: one[0]):
            name, attempt = slow.name, self._claims.state.of(slow.name).attempts + 1
            copies = sum(claim.name == name for _, claim in busy)
            if time.monotonic() - started <= limit or copies > 1 or attempt > MAX_ATTEMPTS or name in idle.node.failed:
                continue
            copy = Claim(slow.index, name, attempt, new_lease())
            if self._ledger.claim(name, attempt, copy.lease):
                self._claims.state.units[name] = UnitState(attempts=attempt, lease="own")
                return copy
        return None

    def _part_in_hand(self) -> float:
        """Return how much of the units in hand is finished, as far as the actors have said."""
        busy = {actor.claim.name: actor for actor in self._actors if actor.claim and not self._is_done(actor.claim)}
        for actor in busy.values():
            if actor.asked is None:
                actor.asked = actor.handle.part.remote()
            elif self._ray.wait([actor.asked], timeout=0)[0]:
                with suppress(self._ray.exceptions.RayError):
                    actor.part = self._ray.get(actor.asked)
                actor.asked = None
        return sum(actor.part for actor in busy.values())

    # ---------------------------------------------------------------------------------------------------------- answers

    def _take_answers(self) -> None:
        """Wait a moment for answers of actors, and take note of all that are there."""
        owed = {actor.call: actor for actor in self._actors if actor.call is not None}
        if not owed:
            time.sleep(POLL_S)
            return
        for call in self._ray.wait(list(owed), timeout=POLL_S)[0]:
            # With its node, an actor may have ended since.
            if (actor := owed[call]) in self._actors:
                self._take_answer(actor)
                if actor.node.refused and actor in self._actors:
                    self._end(actor)

    def _take_answer(self, actor: _Actor) -> None:
        call, claim = actor.call, actor.claim
        actor.call = actor.claim = None
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._note_error(actor, claim, error)
            return
        if claim is None:
            self._note_joined(actor.node, *answer)
        elif answer is None:
            self._note_done(actor, claim)
        else:
            self._note_failed(actor.node, claim, answer)

    def _note_joined(self, node: _Node, job: Job, version: str) -> None:
        own = library_version("geograft")
        if self._job is None and (found := self._ledger.read_job(job.verb)):
            self._job = found
            self._claims = Claims.of_job(self._ledger, found, TIMING)
        if version != own:
            self._refuse(node, f"it has geograft {version}, the driver {own}. Install one version on all nodes.")
        elif job != self._job:
            self._refuse(node, f"its {self._ledger.out} is not the driver's. Choose a folder that all nodes share.")

    def _note_done(self, actor: _Actor, claim: Claim) -> None:
        if not self._is_done(claim):
            self._claims.mark_done(claim.name)
            self._computed.append(claim.name)
            self._seconds.append(time.monotonic() - actor.started)
        actor.node.failures = 0
        for other in self._actors:
            if other.claim is not None and other.claim.name == claim.name:
                other.handle.cancel.remote(other.claim)

    def _note_failed(self, node: _Node, claim: Claim, error: GeograftError) -> None:
        """Take note of a unit that failed, which the actor has recorded, and leave it to other nodes."""
        self._note_free(claim)
        node.failed.add(claim.name)
        self._count_failure(node, str(error))

    def _note_error(self, actor: _Actor, claim: Claim | None, error: Any) -> None:
        """Take note of a call that raised: the actor cannot join, has ended, or has a bug."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, GeograftError):
            if claim is not None:
                # The job was stopped: what is computed cannot become one result.
                raise cause
            self._refuse(actor.node, str(cause), type(cause))
            return
        self._bug = error if isinstance(error, self._ray.exceptions.RayTaskError) else self._bug
        reason = f"the process ended ({_last_line(error)})"
        self._end(actor)
        self._looked = -float("inf")
        if claim is not None:
            self._ledger.fail(claim.name, claim.attempt, Failure(actor.node.name, reason))
            self._note_free(claim)
            self._lost.add(claim.name)
        self._count_failure(actor.node, reason)

    def _note_free(self, claim: Claim) -> None:
        """Take note that an attempt has ended; another one may go on."""
        if self._claims.state.of(claim.name).attempts == claim.attempt and not self._is_done(claim):
            self._claims.mark_failed(claim.name, claim.attempt)

    def _count_failure(self, node: _Node, reason: str) -> None:
        node.failures += 1
        if node.failures == MAX_FAILURES:
            self._refuse(node, f"{MAX_FAILURES} units or processes in a row failed; the last one: {reason}")

    def _refuse(self, node: _Node, reason: str, kind: type[GeograftError] = InputError) -> None:
        """Leave a node out from now on.

        Raises:
            GeograftError: of this kind, if no other node takes part.
        """
        node.refused = True
        for actor in [one for one in self._actors if one.node is node and one.claim is None]:
            self._end(actor)
        if node.key in self._nodes and all(one.refused for one in self._nodes.values()):
            raise self._bug or kind(reason if len(self._nodes) == 1 else f"{node.name}: {reason}")
        announce(f"{node.name} takes no part: {reason}")

    # ----------------------------------------------------------------------------------------------------------- actors

    def _look_at_nodes(self) -> None:
        """Start as many actors on each node as it has room for; nodes may have come and gone."""
        if time.monotonic() - self._looked < NODES_S:
            return
        alive = {one["NodeID"]: one for one in self._ray.nodes() if one["Alive"]}
        room = actors_by_node({key: one["Resources"] for key, one in alive.items()}, self._use_gpus)
        if not room and (self._nodes or self._looked < 0):
            announce("The Ray cluster has no node with a processor core; waiting for one.")
        self._looked = time.monotonic()
        self._nodes = {key: self._nodes.get(key) or _Node(key, _node_name(alive[key])) for key in room}
        for key, (actors, options) in room.items():
            node = self._nodes[key]
            there = sum(actor.node is node for actor in self._actors)
            for _ in range(0 if node.refused else actors - there):
                self._start(node, options)

    def _start(self, node: _Node, options: Mapping[str, float]) -> None:
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.key, soft=False)
        placed = self._ray.remote(scheduling_strategy=strategy, max_concurrency=2, **options)(UnitActor)
        variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
        handle = placed.remote(self._join, str(Path.cwd()), variables)
        self._actors.append(_Actor(handle, node, handle.join.remote()))

    def _finish(self, finish: Callable[[Worker[Any]], Result]) -> Result:
        """Make one result of the units in an actor, or in another one if that is lost."""
        while True:
            self._look_at_nodes()
            self._take_answers()
            actor = next((one for one in self._actors if one.call is None), None)
            if actor is None:
                continue
            try:
                result: Result = self._ray.get(actor.handle.finish.remote(finish, self._computed))
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, GeograftError) else error from None
            except self._ray.exceptions.RayError as error:
                self._note_error(actor, None, error)
            else:
                return result

    def close(self) -> None:
        """End all actors, and give up their claims."""
        busy = [(actor.handle, actor.call, actor.claim) for actor in self._actors if actor.claim]
        with suppress(self._ray.exceptions.RayError):
            for handle, _, claim in busy:
                handle.cancel.remote(claim)
            if busy:
                self._ray.wait([call for _, call, _ in busy], num_returns=len(busy), timeout=CANCEL_S)
        for actor in list(self._actors):
            self._end(actor)
        for _, _, claim in busy:
            # Others need not wait until it expires.
            self._ledger.release(claim.name, claim.attempt)

    def _end(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)


def _node_name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def run_on_ray(
    address: str, out: Place, join: Callable[[], Worker[Any]], finish: Callable[[Worker[Any]], Result], use_gpus: bool
) -> Result:
    """Compute the units of a job on a Ray cluster, and return its result.

    `address` is HOST:PORT of a cluster, or local for one that is started on this machine and ended again. `join` joins
    the job of the folder or bucket `out`, and `finish` makes one result of its units: both are called in actors, so
    they can be pickled. All nodes must see the inputs and `out` by the same paths.

    Raises:
        SettingError: if Ray is not installed, or the cluster cannot be reached or used.
        GeograftError: as `RayDriver.run`.
    """
    with connect_to_ray(address) as ray:
        driver = RayDriver[Result](ray, UnitLedger(out), join, use_gpus)
        try:
            return driver.run(finish)
        finally:
            driver.close()
