"""Backends compared in a child process: the same trials and graphs, and torch stays out of the process that maps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from geograft.inference.backends import compare_in_child
from geograft.inference.predictor import scaled_pixels
from geograft.inference.runners import TORCH, TrainedNetwork
from tests.inference.test_backends import LIGHT, OTHERS, make_run, tiles

SCRIPT = """
import json, sys
from pathlib import Path
{before}
from geograft.inference.predictor import EnsemblePredictor, typical_tile
from geograft.card import read_card
run = Path(sys.argv[1])
model = EnsemblePredictor.load([run], device="cpu", backend={backend!r})
layers = model(*typical_tile(read_card(run), 128))
print(json.dumps([model.backend, model.difference, layers.tobytes().hex(), "torch" in sys.modules, model.notes]))
"""


def load_in_process(run: Path, backend: str, before: str = "", cwd: Path | None = None) -> list[object]:
    """Return what a fresh process finds: the backend, its difference, the layers' bytes, whether it imports torch."""
    script = SCRIPT.format(before=before, backend=backend)
    done = subprocess.run([sys.executable, "-P", "-c", script, str(run)], capture_output=True, check=True, cwd=cwd)
    assert not done.stderr, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("backend", OTHERS)
def test_a_first_map_does_not_import_torch(backend: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LIGHT)
    (tmp_path / "torch.py").write_text("raise SystemExit('not torch')")
    first = load_in_process(run, backend, cwd=tmp_path)
    assert first[0] == backend and not first[3] and first[4] == []
    assert {file.name.split("-")[0] for file in (run / "exported").iterdir()} == {backend, "trials"}
    again = load_in_process(run, backend)
    assert again == first
    for file in (run / "exported").glob("trials-*"):
        file.unlink()
    here = load_in_process(run, backend, before="import torch")
    assert here[3]
    assert here[:3] == first[:3]


def test_a_child_that_fails_leaves_the_reason_to_the_caller(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LIGHT)
    (run / "model.safetensors").write_bytes(b"no weights")
    script = f"""
from pathlib import Path
from geograft.errors import InputError
from geograft.inference.predictor import EnsemblePredictor
try:
    EnsemblePredictor.load([Path({str(run)!r})], device="cpu", backend="onnx")
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert "model.safetensors" in done.stdout and not done.stderr


def test_no_child_where_it_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is loaded already; the program is not Python; the run folder cannot cache graphs."""
    run = make_run(tmp_path / "run", LIGHT)
    network = TrainedNetwork(run, LIGHT, scaled_pixels(*tiles(LIGHT), LIGHT.mean, LIGHT.std))
    monkeypatch.setattr(subprocess, "run", lambda *_given, **_options: pytest.fail("a child was started"))
    assert "torch" in sys.modules
    assert compare_in_child(network, OTHERS, 1) is None
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "executable", "/usr/bin/qgis")
    assert compare_in_child(network, OTHERS, 1) is None
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(os, "access", lambda *_given: False)
    assert compare_in_child(network, OTHERS, 1) is None


def test_trials_of_a_child_include_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LIGHT)
    load_in_process(run, "auto")
    (record,) = run.glob("exported/trials-*.json")
    trials = json.loads(record.read_bytes())
    assert set(trials) == {TORCH, *OTHERS}
    assert all(trial["seconds"] > 0 and not trial["problem"] for trial in trials.values())
