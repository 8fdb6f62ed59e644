"""Jobs of a project: their progress, their end, and what is left when the server is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from geograft.dataset.tileset import TileSet
from geograft.server import jobs as module
from geograft.server.jobs import RECORD, ROUNDS, BusyError, Job, Jobs, Latest, MissingJobError, Rounds
from tests.support.serving import WRITE, client_of, make_project

JOB = """
import json, os, sys, time
def say(**event):
    print(json.dumps(event), file=sys.stderr, flush=True)
say(event="start", command="go", schema=1)
say(event="progress", step="training", done=1, total=4, unit="tiles", rate=2.0, seconds_left=1.5, figures={})
"""
ENDS = {
    "done": JOB + 'print("a warning of a library", file=sys.stderr); say(event="result", exit_code=0, text="all done")',
    "fails": JOB + 'say(event="error", exit_code=1, text="no labelled training area"); sys.exit(1)',
    "crashes": JOB + "raise RuntimeError('a bug')",
    "killed": JOB + "sys.stderr.flush(); os.kill(os.getpid(), 9)",
    "odd": JOB + 'print("{not json", file=sys.stderr); say(event="progress", step=3, done="x", total=True); '
    'print("{" * 10000, file=sys.stderr); say(event="result", text="fine"); print("x" * 200000, file=sys.stderr)',
}
WAITS = (
    JOB
    + """
sys.stdin.read()
open(sys.argv[1], "w").write("saved")
try:
    say(event="interrupted", exit_code=143, text="2 of 4 epochs are kept")
except OSError:
    pass
sys.exit(143)
"""
)
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(300)
"""


class Recorder:
    """The states that a job has gone through."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        assert kind == "job"
        self.seen.append(data)


def jobs_of(folder: Path, script: str, recorder: Recorder | None = None) -> Jobs:
    return Jobs(folder, recorder or Recorder(), (sys.executable, "-c", script, str(folder / "mark")))


def wait_for(jobs: Jobs) -> Job:
    while jobs.all[0].is_active:
        time.sleep(0.01)
    return jobs.all[0]


def wait_until(path: Path) -> str:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize(
    ("end", "state", "message"),
    [
        ("done", "done", "all done"),
        ("fails", "failed", "no labelled training area"),
        ("crashes", "failed", "RuntimeError: a bug"),
        ("killed", "failed", "exit code -9"),
        ("odd", "done", "x" * 500),
    ],
)
def test_a_job_tells_its_progress_and_how_it_ended(tmp_path: Path, end: str, state: str, message: str) -> None:
    recorder = Recorder()
    jobs = jobs_of(tmp_path, ENDS[end], recorder)
    assert jobs.start().state == "running"
    job = wait_for(jobs)
    assert (job.state, job.id) == (state, 1) and message in job.message
    assert job.step == ("3" if end == "odd" else "training")
    progress = [data for data in recorder.seen if data["step"] == "training"]
    assert (progress[0]["done"], progress[0]["total"], progress[0]["rate"]) == (1, 4, 2)
    assert recorder.seen[0]["state"] == "running" and recorder.seen[-1]["state"] == state
    json.dumps(recorder.seen, allow_nan=False)
    assert json.loads((tmp_path / RECORD).read_text())["state"] == state
    # Another server knows it, and the next job has another number.
    again = jobs_of(tmp_path, ENDS["done"])
    assert again.all == [job] and again.start().id == 2
    wait_for(again)


def test_one_job_at_a_time_and_cancelling_lets_it_save(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, WAITS)
    jobs.start()
    with pytest.raises(BusyError):
        jobs.start()
    with pytest.raises(MissingJobError):
        jobs.cancel(7)
    jobs.cancel(1)
    job = wait_for(jobs)
    assert (job.state, job.message) == ("cancelled", "2 of 4 epochs are kept")
    assert (tmp_path / "mark").read_text() == "saved"
    assert jobs.cancel(1) == job


def test_a_job_that_does_not_end_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    jobs = jobs_of(tmp_path, STUBBORN)
    jobs.start()
    child = int(wait_until(tmp_path / "mark"))
    jobs.cancel(1)
    assert wait_for(jobs).state == "cancelled"
    while Path(f"/proc/{child}").exists() and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.01)


def test_the_end_of_the_server_ends_the_job(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, WAITS)
    jobs.start()
    jobs.close()
    assert jobs.all[0].state == "cancelled" and (tmp_path / "mark").read_text() == "saved"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX")
def test_kill_9_of_the_server_loses_nothing(tmp_path: Path) -> None:
    """The job notices that its standard input is closed, and the next server knows of it."""
    code = (
        "import sys, time; from pathlib import Path; from geograft.server.jobs import Jobs\n"
        "folder, script = Path(sys.argv[1]), sys.argv[2]\n"
        "jobs = Jobs(folder, lambda *_: None, (sys.executable, '-c', script, str(folder / 'mark'))); jobs.start()\n"
        "while jobs.all[0].step != 'training': time.sleep(0.01)\n"
        "print('ready', flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), WAITS], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        server.send_signal(signal.SIGKILL)
    assert wait_until(tmp_path / "mark") == "saved"
    jobs = jobs_of(tmp_path, ENDS["done"])
    job = jobs.all[0]
    assert job.state == "cancelled" and "continues" in job.message
    assert jobs.start().id == 2 and wait_for(jobs).state == "done"


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", '{"id": "x"}', '{"id": 1, "kind": "rm", "state": "running"}'])
def test_a_damaged_record_is_no_job(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    assert jobs_of(tmp_path, ENDS["done"]).all == []


def test_a_program_that_is_not_there_is_a_failed_job(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, Recorder(), (str(tmp_path / "missing"),))
    jobs.start()
    assert wait_for(jobs).state == "failed"


def test_events_are_the_latest_of_each_kind() -> None:
    latest = Latest()
    assert latest.since(0) == (0, [])
    latest.publish("a", {"x": 1})
    latest.publish("b", {"x": 1})
    latest.publish("a", {"x": 2})
    count, changes = latest.since(0)
    assert changes == [("b", {"x": 1}), ("a", {"x": 2})]
    latest.publish("a", {"x": 2})
    assert latest.since(count) == (count, [])


def test_a_page_follows_a_job_over_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the server is the real one, on a project whose labels do not suffice."""
    with client_of(make_project(tmp_path)) as client:
        assert client.get("/api/jobs").json() == []
        assert client.delete("/api/jobs/1", headers=WRITE).status_code == 404
        assert client.post("/api/jobs", json={"kind": "rm"}, headers=WRITE).status_code == 422
        started = client.post("/api/jobs", json={"kind": "go"}, headers=WRITE)
        assert started.json()["state"] == "running"
        assert client.post("/api/jobs", json={}, headers=WRITE).status_code == 409
        while client.get("/api/jobs").json()[0]["state"] == "running":
            time.sleep(0.05)
        (job,) = client.get("/api/jobs").json()
        assert job["state"] == "failed" and job["message"]
        assert client.delete("/api/jobs/1", headers=WRITE).json() == job
        with client.stream("GET", "/api/events") as stream:
            lines = stream.iter_lines()
            seen = {}
            while len(seen) < 3:
                line = next(lines)
                if line.startswith("event: "):
                    seen[line.removeprefix("event: ")] = json.loads(next(lines).removeprefix("data: "))
        assert seen["job"] == job
        assert seen["labels"]["revision"] == client.get("/api/labels").json()["revision"]
        assert seen["project"]["revision"] == client.get("/api/project").json()["revision"]


def write_scores(folder: Path, iou: float | None, interval: list[float] | None) -> None:
    (folder / "run").mkdir(exist_ok=True)
    content = {"overall": {"iou": iou}, "overall_intervals": {"iou": interval}}
    (folder / "run" / "scores-test.json").write_text(json.dumps(content))


def test_scores_that_change_are_rounds_that_a_new_server_knows(tmp_path: Path, tiles: Path) -> None:
    assert Rounds(tmp_path).update() == []
    (tmp_path / "tiles").symlink_to(tiles)
    write_scores(tmp_path, 0.5, [0.4, 0.6])
    rounds = Rounds(tmp_path)
    assert rounds.update() == rounds.update()
    write_scores(tmp_path, None, None)
    first, second = Rounds(tmp_path).update()
    assert (first["round"], first["iou"], first["iou_low"], first["iou_high"]) == (1, 0.5, 0.4, 0.6)
    assert first["tiles"] == len(TileSet.open(tiles).split("train"))
    assert (second["round"], second["iou"], second["iou_low"]) == (2, None, None)
    for damaged in ("", "[]", "{}", '{"overall": 3}', '{"overall": {}, "overall_intervals": {}}'):
        (tmp_path / "run" / "scores-test.json").write_text(damaged)
        assert Rounds(tmp_path).update() == [first, second]
    (tmp_path / ROUNDS).write_text("[1]")
    assert Rounds(tmp_path).update() == []
