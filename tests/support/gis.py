"""QGIS without a screen, for tests: how it shows layers, and its command `qgis_process`."""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PYTHON = "/usr/bin/python3"
"""The Python that Debian's QGIS is installed for."""
REQUIRED = "GEOGRAFT_REQUIRE_QGIS"
"""Environment variable that makes a missing QGIS a failure."""
ELSEWHERE = ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "QGIS_CUSTOM_CONFIG_PATH")
"""Environment variables that place the profiles of QGIS outside the user's folder."""


@cache
def _missing() -> str:
    """Return why QGIS cannot be used; empty if it can."""
    try:
        run_qgis([PYTHON, "-c", "import qgis.core"])
    except (OSError, subprocess.SubprocessError) as error:
        return f"QGIS is not installed for {PYTHON}: {error}"
    return ""


def require_qgis() -> None:
    """Skip the test where QGIS is not installed; fail instead if the environment requires it."""
    if _missing() and os.environ.get(REQUIRED):
        pytest.fail(_missing())
    if _missing():
        pytest.skip(_missing())


def run_qgis(command: list[str], home: Path | None = None) -> str:
    """Run a command with QGIS without a screen and return its standard output; `home` is the user's folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    environment |= {"QT_QPA_PLATFORM": "offscreen"}
    if home is not None:
        environment = {name: value for name, value in environment.items() if name not in ELSEWHERE}
        environment["HOME"] = str(home)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600).stdout


def start_qgis(command: list[str]) -> "subprocess.Popen[str]":
    """Start a command with QGIS without a screen, with pipes as its standard input and output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    environment |= {"QT_QPA_PLATFORM": "offscreen"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def qgis_layers(*paths: Path | str, picture: Path | None = None) -> list[dict[str, Any]]:
    """Return how QGIS shows layers with their default styles, and draw them if `picture` is given."""
    require_qgis()
    script = Path(__file__).with_name("qgis_layers.py")
    drawn = ["--picture", str(picture)] if picture else []
    found: list[dict[str, Any]] = json.loads(run_qgis([PYTHON, str(script), *map(str, paths), *drawn]))
    return found


def qgis_project(path: Path, *options: str) -> dict[str, Any]:
    """Return what QGIS reads from a project; `options` are those of qgis_project.py."""
    require_qgis()
    script = Path(__file__).with_name("qgis_project.py")
    found: dict[str, Any] = json.loads(run_qgis([PYTHON, str(script), str(path), *options]))
    return found
