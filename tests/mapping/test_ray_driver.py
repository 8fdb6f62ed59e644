"""The driver on Ray, with a simulated Ray: whatever calls fail or are lost, in any order, no unit is forgotten."""

import os
import random
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geograft.config import WorkerConfig
from geograft.errors import GeograftError, InputError, SettingError
from geograft.mapping import ray_workers
from geograft.mapping.claims import MAX_ATTEMPTS, Timing
from geograft.mapping.environment import Environment
from geograft.mapping.ray_cluster import actors_by_node, connect_to_ray
from geograft.mapping.ray_workers import RayDriver
from geograft.mapping.unit_ledger import UnitLedger, Verb
from geograft.mapping.unit_outputs import read_receipts
from geograft.mapping.units import JoinTree, UnitGrid, UnitResult
from geograft.mapping.worker import Proposal, Worker, join_job, new_job

SQUARES = UnitGrid(128, 192, 64)
KINDS: dict[Verb, UnitGrid | JoinTree] = {"predict": SQUARES, "polygons": JoinTree(SQUARES)}
OUTCOMES = ("ok", "ok", "ok", "fail", "lost", "lost late")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(ray_workers, "announce", lambda text: None)
    monkeypatch.setattr(ray_workers, "POLL_S", 0.0)
    monkeypatch.setattr(ray_workers, "NODES_S", 0.0)
    monkeypatch.setattr(ray_workers, "CANCEL_S", 0.0)
    monkeypatch.setattr(ray_workers, "TIMING", Timing(heartbeat_s=9.0, expiry_s=0.0, poll_s=0.0, list_s=0.0))


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"traceback\n{cause!r}")
        self.cause = cause


class Writer:
    """Writes a file for each unit, unless it is told to fail; the units that it needs must be there."""

    def __init__(self, folder: Path, units: UnitGrid | JoinTree, fails: Callable[[], bool]) -> None:
        self.folder, self.units, self.fails = folder, units, fails

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        if self.fails():
            raise InputError(f"unit {index} cannot be read")
        for needed in chain.from_iterable(self.units.joined(index) if isinstance(self.units, JoinTree) else []):
            assert (self.folder / "state" / f"{self.units.name(needed)}.done.json").exists()
        (scratch / f"{self.units.name(index)}.txt").write_text(str(index))
        advance(1.0)
        return UnitResult(1)

    def check_unchanged(self) -> None:
        pass


class Simulation:
    """Stands in for the module ray. A call is made at once; `draw` chooses what becomes of it, and when it answers."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )

    def __init__(self, folder: Path, verb: Verb, nodes: int, draw: random.Random) -> None:
        self.folder, self.verb, self.draw, self.calls = folder, verb, draw, Counter[str]()
        self.alive = {f"node{number}": {"CPU": 8.0} for number in range(nodes)}
        self.outcome = ""

    def nodes(self) -> list[dict[str, Any]]:
        named = {"NodeManagerAddress": "127.0.0.1", "Alive": True}
        return [
            {"NodeID": key, "NodeManagerHostname": key, "Resources": one} | named for key, one in self.alive.items()
        ]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        assert options["scheduling_strategy"] in self.alive
        return lambda kind: SimpleNamespace(remote=lambda *args: Handle(self, kind(*args)))

    def wait(self, calls: list[Any], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Any], list[Any]]:
        self.calls["wait"] += 1
        assert self.calls["wait"] < 2000, "the driver waits for ever"
        ready = [call for call in calls if self.draw.random() < 0.5]
        return ready, [call for call in calls if call not in ready]

    def get(self, call: Any) -> Any:
        if call.raised:
            raise call.value
        return call.value

    def kill(self, handle: Any) -> None:
        handle.dead = True

    def join(self) -> Worker[Writer]:
        environment = Environment("torch", "float32", "x86_64")
        job = new_job(self.verb, {"settings": {}}, KINDS[self.verb], environment)
        writer = Writer(self.folder, KINDS[self.verb], lambda: self.outcome == "fail")
        return join_job(self.folder, self.verb, lambda _: Proposal(job, lambda _: writer), WorkerConfig())


class Handle:
    def __init__(self, ray: Simulation, actor: Any) -> None:
        self.ray, self.actor, self.dead = ray, actor, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: self.call(name, *args))

    def call(self, name: str, *args: Any) -> Any:
        assert not self.dead
        ray = self.ray
        ray.calls[name] += 1
        lossy = name == "compute" and ray.calls[name] < 40
        ray.outcome = ray.draw.choice(OUTCOMES) if lossy else "ok"
        if ray.outcome == "lost":
            return Answer(RayError("the node has died"), raised=True)
        try:
            answer = getattr(self.actor, name)(*args)
        except GeograftError as error:
            return Answer(RayTaskError(error), raised=True)
        return Answer(RayError("the node has died"), raised=True) if ray.outcome == "lost late" else Answer(answer)


class Answer:
    """What a call returned or raised; calls are told apart by identity, as Ray's references."""

    def __init__(self, value: Any, raised: bool = False) -> None:
        self.value, self.raised = value, raised


def test_room_is_that_of_one_kind_of_node() -> None:
    assert actors_by_node({"a": {"CPU": 8, "GPU": 1}, "b": {"CPU": 64}}, use_gpus=True) == {
        "a": (1, {"num_cpus": 4, "num_gpus": 1})
    }
    assert actors_by_node({"a": {"CPU": 8, "GPU": 1}}, use_gpus=False) == {"a": (2, {"num_cpus": 4, "num_gpus": 0})}
    assert actors_by_node({"head": {}}, use_gpus=True) == {}


@settings(max_examples=20)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32), st.integers(1, 3))
def test_no_unit_is_forgotten_whatever_fails_or_is_lost(verb: Verb, seed: int, nodes: int) -> None:
    units = KINDS[verb]
    with TemporaryDirectory() as folder:
        ray = Simulation(Path(folder) / "out", verb, nodes, random.Random(seed))
        ledger = UnitLedger(ray.folder)
        driver = RayDriver[list[str]](ray, ledger, ray.join, use_gpus=True)
        try:
            computed = driver.run(lambda worker: worker.computed)
        except InputError as error:
            computed = None
            assert "could not be computed" in str(error) or "in a row failed" in str(error)
        finally:
            driver.close()
        state = ledger.state()
        if computed is not None:
            assert state.done == len(units)
            assert len(set(computed)) == len(computed) <= len(units)
            assert {receipt.unit for receipt in read_receipts(ledger, ledger.read_job())} == set(  # type: ignore[arg-type]
                map(units.name, range(len(units)))
            )
        assert all(unit.attempts <= MAX_ATTEMPTS for unit in state.units.values())
        # What is not done has failed, and why is known; nothing is claimed for longer.
        for unit in state.units.values():
            assert unit.done or unit.failed or unit.attempts == 0


@pytest.mark.parametrize("address", ["auto", "ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:port", ":6379", "a:99999"])
def test_addresses_that_ray_would_look_up_are_refused(address: str) -> None:
    with pytest.raises(SettingError, match=r"Give HOST:PORT|cannot be reached"), connect_to_ray(address):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SettingError, match=r"geograft\[ray\]"), connect_to_ray("local"):
        pass
