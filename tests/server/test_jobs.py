"""Jobs of a project: their progress, their end, and what is left when the server is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from geograft.config.recipes import QUICK, VIEWS
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.server import jobs as module
from geograft.server.jobs import RECORD, BusyError, Job, Jobs, Latest, MissingJobError, Task, model_files, task_of
from geograft.server.layers import layers_of
from tests.support.rasters import TENTH_METRE, textured, write_raster
from tests.support.runs import make_run
from tests.support.serving import WRITE, client_of, make_project, write_map

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
    task = Task((sys.executable, "-c", script, str(folder / "mark")), folder / "mark")
    return Jobs(folder, recorder or Recorder(), lambda kind: task)


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
    assert jobs.start("go").state == "running"
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
    assert again.all == [job] and again.start("go").id == 2
    wait_for(again)


def test_one_job_at_a_time_and_cancelling_lets_it_save(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, WAITS)
    jobs.start("go")
    with pytest.raises(BusyError):
        jobs.start("go")
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
    jobs.start("go")
    child = int(wait_until(tmp_path / "mark"))
    jobs.cancel(1)
    assert wait_for(jobs).state == "cancelled"
    while Path(f"/proc/{child}").exists() and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.01)


def test_a_job_is_resumed_after_the_end_of_its_server_but_not_if_it_was_cancelled(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, WAITS)
    jobs.start("go")
    jobs.close()
    assert jobs.all[0].state == "queued" and (tmp_path / "mark").read_text() == "saved"
    # A server that is read-only does not touch it, and so it stays; another resumes it under its number.
    again = jobs_of(tmp_path, ENDS["done"])
    assert again.all == jobs.all
    again.resume()
    assert again.all[0].state == "running"
    assert (wait_for(again).id, again.all[0].state) == (1, "done")
    again.resume()
    assert again.all[0].state == "done"
    cancelled = jobs_of(tmp_path, WAITS)
    cancelled.start("go")
    cancelled.cancel(2)
    cancelled.close()
    last = jobs_of(tmp_path, ENDS["done"])
    last.resume()
    assert last.all[0].state == "cancelled" and not last.is_running


def test_a_job_that_waits_to_be_resumed_can_be_cancelled_or_replaced(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"id": 4, "kind": "go", "state": "running"}')
    assert jobs_of(tmp_path, ENDS["done"]).cancel(4).state == "cancelled"
    (tmp_path / RECORD).write_text('{"id": 4, "kind": "go", "state": "running"}')
    jobs = jobs_of(tmp_path, ENDS["done"])
    assert jobs.start("go").id == 5
    wait_for(jobs)

    def task(kind: str) -> Task:
        raise InputError("nothing to export")

    (tmp_path / RECORD).write_text('{"id": 4, "kind": "onnx", "state": "running"}')
    jobs = Jobs(tmp_path, Recorder(), task)
    jobs.resume()
    assert (jobs.all[0].state, jobs.all[0].message) == ("failed", "nothing to export")


SAVES_SLOWLY = (
    JOB
    + """
from pathlib import Path
from geograft.locks import lock_output
with lock_output(Path(sys.argv[1])):
    say(event="progress", step="locked", done=1, total=4)
    sys.stdin.read()
    time.sleep(0.5)
    open(sys.argv[1], "w").write("saved")
"""
)
CONTINUES = JOB + 'say(event="result", text=open(sys.argv[1]).read())'


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX")
def test_kill_9_of_the_server_loses_nothing(tmp_path: Path) -> None:
    """The job notices that its standard input is closed; the next server waits until it has saved, and resumes it."""
    code = (
        "import sys, time; from pathlib import Path; from geograft.server.jobs import Jobs, Task\n"
        "folder, script = Path(sys.argv[1]), sys.argv[2]\n"
        "task = Task((sys.executable, '-c', script, str(folder / 'mark')), folder / 'mark')\n"
        "jobs = Jobs(folder, lambda *_: None, lambda kind: task); jobs.start('go')\n"
        "while jobs.all[0].step != 'locked': time.sleep(0.01)\n"
        "print('ready', flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), SAVES_SLOWLY], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        server.send_signal(signal.SIGKILL)
    jobs = jobs_of(tmp_path, CONTINUES)
    assert jobs.all[0].state == "running" and not jobs.is_running
    jobs.resume()
    job = wait_for(jobs)
    assert (job.id, job.state, job.message) == (1, "done", "saved")


@pytest.mark.parametrize("content", ["", "{}", "[]", "{", '{"id": "x"}', '{"id": 1, "kind": "rm", "state": "running"}'])
def test_a_damaged_record_is_no_job(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    assert jobs_of(tmp_path, ENDS["done"]).all == []


def test_a_program_that_is_not_there_is_a_failed_job(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, Recorder(), lambda kind: Task((str(tmp_path / "missing"),), tmp_path))
    jobs.start("go")
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
        assert client.post("/api/jobs", json={"kind": "onnx"}, headers=WRITE).status_code == 422
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
            while not {"job", "labels", "project"} <= set(seen):
                line = next(lines)
                if line.startswith("event: "):
                    seen[line.removeprefix("event: ")] = json.loads(next(lines).removeprefix("data: "))
        assert seen["job"] == job
        assert seen["labels"]["revision"] == client.get("/api/labels").json()["revision"]
        assert seen["project"]["revision"] == client.get("/api/project").json()["revision"]


def test_a_model_is_exported_by_a_job_and_then_one_of_the_files(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    subject = replace(subject, run=make_run(tmp_path / "run"))
    with client_of(subject, read_only=True) as client:
        assert {each["kind"] for each in client.get("/api/files").json()} == {""}
    with client_of(subject) as client:
        before = {each["kind"]: each for each in client.get("/api/files").json()}
        assert set(before) == {"", "bundle", "onnx", "deepness"}
        name = before["bundle"]["name"]
        assert before["bundle"]["bytes"] is None and client.get(f"/api/files/{name}").status_code == 404
        assert client.post("/api/jobs", json={"kind": "bundle"}, headers=WRITE).status_code == 200
        while client.get("/api/jobs").json()[0]["state"] == "running":
            time.sleep(0.05)
        (job,) = client.get("/api/jobs").json()
        assert (job["state"], job["kind"]) == ("done", "bundle"), job
        assert client.post("/api/jobs", json={"kind": "bundle"}, headers=WRITE).status_code == 422
        content = client.get(f"/api/files/{name}").content
        assert content == (tmp_path / "exports" / name).read_bytes()
    with client_of(subject, read_only=True) as client:
        shown = {each["kind"]: each["bytes"] for each in client.get("/api/files").json()}
        assert set(shown) == {"", "bundle"} and shown["bundle"] == len(content)
    # The file is that of this run: after another training it is not shown as the new model.
    make_run(tmp_path / "other", epoch=4)
    with client_of(replace(subject, run=tmp_path / "other"), read_only=True) as client:
        assert {each["kind"] for each in client.get("/api/files").json()} == {""}


def test_the_model_of_a_run_without_a_project_is_exported_beside_it_but_not_trained(tmp_path: Path) -> None:
    subject = replace(make_project(tmp_path), kind="run", folder=None, run=make_run(tmp_path / "trees"))
    files = model_files(subject)
    assert {path.parent for path in files.values()} == {tmp_path / "trees" / "exports"}
    assert all(path.name.startswith("trees-") for path in files.values())
    with client_of(subject) as client:
        assert client.post("/api/jobs", json={"kind": "go"}, headers=WRITE).status_code == 403
        can = client.get("/api/project").json()["can"]
        assert can["export"] and not can["train"]
    assert model_files(replace(subject, run=None)) == {} == model_files(replace(subject, run=tmp_path / "none"))


def test_the_map_of_the_view_is_shown_while_the_rest_is_mapped(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    with client_of(subject) as client:
        before = client.get("/api/project").json()
        codes = np.full((64, 64), 255, np.uint8)
        codes[8:24, 8:24] = 200
        (tmp_path / VIEWS).mkdir()
        write_map(tmp_path / VIEWS / "scene.tif", codes)
        during = client.get("/api/project").json()
        assert during["revision"] != before["revision"]
        assert [each["id"] for each in during["layers"]] == [each["id"] for each in before["layers"]]
        titles = {each["id"]: each["title"] for each in during["layers"]}
        assert titles["classes-0-0"] == "Map, so far of the view"
        area = client.get("/api/layers/probability-0-1/area?threshold=0.5").json()
        assert area["pixels"] == 16 * 16
        shutil.rmtree(tmp_path / VIEWS)
        after = client.get("/api/project").json()
        assert after["layers"] == before["layers"] and after["revision"] == before["revision"]
    # Without a map yet, it is shown in place of the quick one.
    (tmp_path / VIEWS).mkdir()
    write_map(tmp_path / VIEWS / "scene.tif", codes)
    (tmp_path / QUICK).mkdir()
    write_map(tmp_path / QUICK / "scene.tif", codes)
    (tmp_path / "maps" / "scene.tif").unlink()
    titles = {each.title for each in layers_of(subject) if each.kind == "classes"}
    assert titles == {"Map, so far of the view"}


def test_the_view_is_mapped_first(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    east = Affine.translation(1000, 0) @ TENTH_METRE
    other = write_raster(tmp_path / "-east of it.tif", textured(3, 64, 64), east)
    subject = replace(subject, images=(*subject.images, ("-east of it", other)))
    with client_of(subject) as client:
        service = client.app._app.state.service  # type: ignore[attr-defined]
        assert service.windows_in_view() == {}
        for layer in client.get("/api/project").json()["layers"][:2]:
            service.view = tuple(layer["bounds"])
            name = layer["group"]
            windows = service.windows_in_view()
            assert windows == {name: Window(0, 0, 64, 64)}
            assert task_of(subject, "go", windows).command[-1] == f"--first={name}@0,0,64,64"
        west, south, east, north = layer["bounds"]
        service.view = (west, south, (3 * west + east) / 4, north)
        (window,) = service.windows_in_view().values()
        assert (window.row, window.col, window.height) == (0, 0, 64) and 15 <= window.width <= 17
        service.view = (-180.0, -85.0, 180.0, 85.0)
        assert list(service.windows_in_view()) == ["scene", "-east of it"]
        for view in ([0, 0, 1], [0, 0, 1, 91], ["a", 0, 0, 0], [0, 0, 1, None]):
            answer = client.post("/api/jobs", json={"kind": "go", "view": view}, headers=WRITE)
            assert answer.status_code == 422
