"""Training by torchrun on two machines, which are two network namespaces, over gloo."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from geograft.card import STATE, WEIGHTS
from geograft.config import Recipe, recipe_toml
from geograft.training.checkpoint import LAST
from tests.support.machines import Machine, NoNamespacesError, two_machines

Machines = tuple[Machine, Machine]
LIMIT_S = 300
"""Time within which all processes end: less than `PATIENCE`, so none waits for another one that is gone."""


@pytest.fixture
def machines() -> Iterator[Machines]:
    try:
        with two_machines() as both:
            yield both
    except NoNamespacesError as error:
        pytest.skip(f"no network namespaces: {error}")


def torchrun(machines: Machines, logs: Path, program: list[str], arguments: list[str]) -> list[tuple[int, str]]:
    """Run a program in one process a machine; return the exit status of each torchrun, and stderr of its process."""
    # Quiet about names of hosts, which a namespace does not resolve.
    changes = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"} | changes
    running = []
    for number, machine in enumerate(machines):
        place = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)]
        place += ["--master-addr", machines[0].address, "--master-port", "29400"]
        kept = ["--log-dir", str(logs / str(number)), "--redirects", "3"]
        command = machine.command(sys.executable, "-m", "torch.distributed.run", *place, *kept, "-m", *program)
        running.append(subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.DEVNULL))
    codes = [process.wait(timeout=LIMIT_S) for process in running]
    said = [next((logs / str(number)).rglob("stderr.log")).read_text() for number in range(2)]
    return list(zip(codes, said, strict=True))


@pytest.mark.slow
def test_a_process_killed_on_one_machine_ends_the_other_in_one_line_and_resumes(
    machines: Machines, tiles: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 2, "batch_size": 4, "device": "cpu", "workers": 0, "save_minutes": 1e-9, "devices": 2}
    recipe, run, whole = tmp_path / "recipe.toml", tmp_path / "run", tmp_path / "whole"
    recipe.write_text(recipe_toml(Recipe().with_settings(model={"architecture": "unet"}, train=settings)))
    program = [sys.executable, "-m", "tests.support.forked_ranks"]
    here = subprocess.run([*program, tiles, whole, recipe], capture_output=True, text=True, check=True)
    assert "--resume" in here.stdout, "a process waits without end for one that is silent"
    # In the second of two epochs of ten steps.
    arguments = ["train", str(tiles), "--out", str(run), "--recipe", str(recipe)]
    arguments += ["--devices", "1", "--nodes", "2", "--resume"]
    killed = torchrun(machines, tmp_path / "killed", ["tests.support.kill_rank", "0", "14"], arguments)
    assert [code for code, _ in killed] == [1, 1]
    (line,) = killed[1][1].splitlines()
    assert line.startswith("geograft: ")
    assert "--resume" in line
    progress = torch.load(run / STATE, weights_only=True)["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 4)
    resumed = torchrun(machines, tmp_path / "resumed", ["geograft"], arguments)
    assert [code for code, _ in resumed] == [0, 0]
    assert resumed[1][1] == ""
    for file in (LAST, WEIGHTS):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
