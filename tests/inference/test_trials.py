"""Comparisons of backends are remembered, for equal weights and threads, and spare the import of torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geograft.card import WEIGHTS
from geograft.config import ModelConfig
from geograft.networks.network import build
from geograft.training.checkpoint import save_weights
from tests.support.rasters import textured, write_raster
from tests.support.runs import make_run

HEAVY = {"torch", "timm", "torchvision"}
PREDICT = """
import sys
from geograft.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sorted({"torch", "timm", "torchvision"} & set(sys.modules)), file=sys.stderr)
"""
pytest.importorskip("openvino")


def save_network(run: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_weights(run / WEIGHTS, build(ModelConfig(architecture="unet"), 3, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a raster that fits into one window, and a first map."""
    folder = tmp_path_factory.mktemp("trials")
    save_network(make_run(folder / "run", resolution_m=None), 0)
    write_raster(folder / "scene.tif", textured(3, 30, 28))
    assert map_in_process(folder, "first") == set()
    return folder


def map_in_process(folder: Path, name: str, threads: int = 1) -> set[str]:
    """Map the scene on the command line, and return which heavy libraries that imported."""
    words = ["predict", folder / "run", folder / "scene.tif", "--out", folder / f"{name}.tif", "--device", "cpu"]
    words += ["--backend", "openvino", "--probabilities", "float16"]
    command = [sys.executable, "-c", PREDICT, *map(str, words)]
    variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert "predicted with openvino in float32" in done.stdout
    return set(done.stderr.splitlines()[-1].split()) & HEAVY


def contents(folder: Path, name: str) -> list[bytes]:
    return [(folder / f"{name}{kind}.tif").read_bytes() for kind in ("", ".probabilities")]


def trials(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "exported").glob("trials-*.json"))


def test_the_first_and_the_second_map_import_no_torch_and_have_the_same_bytes(folder: Path) -> None:
    assert map_in_process(folder, "second") == set()
    assert contents(folder, "second") == contents(folder, "first")
    (file,) = trials(folder)
    assert set(json.loads(file.read_bytes())) == {"torch", "openvino"}
