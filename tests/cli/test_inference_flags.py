"""The flags of prediction are the same for every command that predicts pixels, and reach it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geograft.cli import app
from geograft.config import EvaluateConfig, InferenceConfig, PredictConfig, ReviewConfig, SuggestConfig

FLAGS = ("--tta", "4", "--overlap", "0.25", "--window-px", "48", "--batch-size", "3", "--backend", "torch")
GIVEN = {"tta": 4, "overlap": 0.25, "window_px": 48, "batch_size": 3, "backend": "torch", "device": "cpu"}
COMMANDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "predict": (("run", "scene.tif", "--out", "map.tif"), PredictConfig),
    "evaluate": (("run", "--split", "val"), EvaluateConfig),
    "calibrate": (("run",), InferenceConfig),
    "review": (("run", "--out", "folder"), ReviewConfig),
    "suggest": (("run", "scene.tif", "--out", "next.gpkg"), SuggestConfig),
}


def given_to(command: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[Any]:
    """Return the arguments that the function of a command gets from the command line."""
    calls: list[Any] = []

    def called(*arguments: Any) -> SimpleNamespace:
        calls.extend(arguments)
        return SimpleNamespace(lines=list, failures=())

    monkeypatch.setattr(f"geograft.commands.{command}.{command}", called)
    app([command, *COMMANDS[command][0], *flags], result_action="return_value")
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_reach_the_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = COMMANDS[command][1]
    assert config(**GIVEN) in given_to(command, monkeypatch, *FLAGS, "--device", "cpu")


@pytest.mark.parametrize("command", COMMANDS)
def test_by_default_the_run_decides(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = (each for each in given_to(command, monkeypatch) if isinstance(each, InferenceConfig))
    assert (config.window_px, config.overlap, config.batch_size, config.tta) == (0, None, 0, 1)


@pytest.mark.parametrize("command", ["predict", "evaluate", "suggest"])
def test_several_runs_are_one_model(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = given_to(command, monkeypatch, "--ensemble", "second", "third")
    assert found[0] == (Path("run"), Path("second"), Path("third"))
