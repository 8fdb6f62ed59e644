"""Maps on Ray: nodes and the driver may be killed, nodes may be slow or differ; the map is that of one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from geograft.commands.evaluate import evaluate
from geograft.commands.jobs import jobs
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.commands.suggest import suggest
from geograft.dataset.tileset import TileSet
from geograft.files import write_text
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.unit_outputs import read_receipts
from tests.support.overlapping import overlapping_set
from tests.support.rasters import textured, write_raster
from tests.support.ray_map import BLOCKED, LIMIT, SCORED, done
from tests.support.runs import COVERS, BandMeans, ContextPredictor, make_run

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'geograft[ray]'"),
]
ROOT = Path(__file__).parents[2]
VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
}
UNITS, BATCH_S = 30, 0.03
FOREVER_S = 1000


@dataclass
class Cluster:
    """A cluster with a token: its head, and nodes that come and go."""

    process: "subprocess.Popen[str]"
    address: str = ""

    def ask(self, line: str) -> str:
        """Send a line to the process that holds the nodes, and return its answer."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        found = self.process.stdout.readline().strip()
        assert found, "the cluster has ended"
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    command = [sys.executable, "-m", "tests.support.ray_nodes"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | VARIABLES, **pipes) as process:
        found = Cluster(process)
        found.address = found.answer()
        yield found
        process.communicate(timeout=60)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a scene of 30 units, and its map by one process."""
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    make_run(tmp_path / "run", COVERS)
    write_raster(tmp_path / "scene.tif", textured(3, 300, 380))
    predict(tmp_path / "run", tmp_path / "scene.tif", tmp_path / "plain" / "map.tif")
    return tmp_path


def start_driver(address: str, place: Path, what: float | str = BATCH_S, **variables: str) -> "subprocess.Popen[str]":
    """Map the scene with batches of so many seconds, or trace the polygons of its map."""
    command = [sys.executable, "-m", "tests.support.ray_map", address, str(place), str(what)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | VARIABLES | variables, **pipes)


def ended(driver: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what a driver that succeeds prints."""
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    return out, err


def wait_for(place: Path, units: int, driver: "subprocess.Popen[str]") -> None:
    while done(place) < units:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)


def check_map(place: Path) -> None:
    for path in sorted((place / "plain").iterdir()):
        assert (place / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_nodes_and_the_driver_may_be_killed_at_any_moment(cluster: Cluster, place: Path) -> None:
    draw = random.Random(int(os.environ.get("RAY_TEST_SEED", "0")))
    cluster.ask("add")
    driver = start_driver(cluster.address, place)
    for kill in range(3):
        units = done(place) + draw.randint(2, 5)
        write_text(place / LIMIT, str(units))
        wait_for(place, units, driver)
        time.sleep(draw.random() * 0.5)
        cluster.ask("kill")
        assert done(place) < UNITS
        if kill == 1:
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
            driver = start_driver(cluster.address, place)
        cluster.ask("add")
    (place / LIMIT).unlink()
    out, _ = ended(driver)
    cluster.ask("kill")
    assert out.split()[0] == str(UNITS)
    check_map(place)
    assert len({receipt.worker for receipt in receipts(place)}) >= 3


def receipts(place: Path) -> list[Any]:
    ledger = UnitLedger(place / "out")
    job = ledger.read_job()
    assert job is not None
    return read_receipts(ledger, job)


def test_units_of_a_slow_node_are_computed_by_another(cluster: Cluster, place: Path) -> None:
    cluster.ask(f"add BATCH_S={FOREVER_S}")
    out, _ = ended(start_driver(cluster.address, place, what=0.01))
    cluster.ask("kill")
    assert out.split() == [str(UNITS), str(UNITS)]
    check_map(place)
    # The slow node had a unit in hand, and nobody waits for it.
    assert jobs(place / "out").running == ()


def test_a_node_that_differs_is_refused_by_name(cluster: Cluster, place: Path) -> None:
    cluster.ask("add INSTRUCTION_SET=other")
    _, err = ended(start_driver(cluster.address, place))
    cluster.ask("kill")
    check_map(place)
    assert "takes no part" in err
    assert "instruction_set was" in err
    assert len({receipt.worker for receipt in receipts(place)}) == 1


def test_polygons_are_those_of_one_process(cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in BLOCKED:
        monkeypatch.setattr(f"geograft.{module}.BLOCK_PX", 64)
    polygons(place / "plain" / "map.tif", place / "plain" / "polygons.gpkg")
    cluster.ask("add")
    out, _ = ended(start_driver(cluster.address, place, "polygons"))
    cluster.ask("kill")
    # Nine units, and five joins of them.
    assert out.split() == ["14", "14"]
    assert (place / "traced" / "polygons.gpkg").read_bytes() == (place / "plain" / "polygons.gpkg").read_bytes()
    assert jobs(place / "traced").running == ()


def test_suggestions_are_those_of_one_process(cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.commands.suggest.load_cell_encoder", lambda *_: BandMeans())
    suggest(place / "run", place / "scene.tif", place / "plain.gpkg")
    cluster.ask("add")
    out, _ = ended(start_driver(cluster.address, place, "suggest"))
    cluster.ask("kill")
    assert out.split() == [str(UNITS), str(UNITS)]
    assert (place / "next" / "suggestions.gpkg").read_bytes() == (place / "plain.gpkg").read_bytes()
    assert jobs(place / "next").running == ()


def test_scores_are_those_of_one_process(cluster: Cluster, place: Path) -> None:
    tile_set = TileSet.open(overlapping_set(place / "tiles", scenes=2))
    run = make_run(place / "scored", tile_set.meta.legend, data_fingerprint=tile_set.meta.fingerprint)
    write_text(run / "tiles.json", json.dumps({"tiles": str(place / "tiles")}))
    evaluate(run, out=place / "scores.json", config=SCORED)
    cluster.ask("add")
    units, computed = ended(start_driver(cluster.address, place, "evaluate"))[0].split()
    cluster.ask("kill")
    assert int(units) == int(computed) > 1
    assert (place / "scores" / "scores.json").read_bytes() == (place / "scores.json").read_bytes()
    assert jobs(place / "scores").running == ()


def test_a_driver_without_the_token_is_told_in_one_line(cluster: Cluster, place: Path) -> None:
    driver = start_driver(cluster.address, place, RAY_AUTH_TOKEN="0" * 32)
    out, err = driver.communicate(timeout=120)
    assert (driver.returncode, out, err.count("\n")) == (1, "", 1), err
    assert cluster.address in err


def test_a_local_cluster_listens_on_loopback_alone_and_leaves_nothing(place: Path) -> None:
    psutil = pytest.importorskip("psutil", reason="psutil is not installed")
    before = set(Path("/tmp").glob("geograft-ray-*"))
    write_text(place / LIMIT, "5")
    driver = start_driver("local", place)
    wait_for(place, 3, driver)
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in psutil.Process(driver.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert 3 <= done(place) < UNITS
    (place / LIMIT).unlink()
    # Claims were given back.
    assert jobs(place / "out").running == ()
    ended(start_driver("local", place, what=0.0))
    check_map(place)
    assert set(Path("/tmp").glob("geograft-ray-*")) <= before
