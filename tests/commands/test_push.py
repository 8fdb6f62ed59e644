"""`geograft push`, and runs read by their name on the hub; the hub is a server on this machine."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given
from hypothesis import strategies as st

from geograft.bundle import THUMBNAIL, Origin, TrainingData
from geograft.card import WEIGHTS, read_card
from geograft.commands.predict import predict
from geograft.commands.push import model_card, push
from geograft.commands.show import Description, RunScores, Units
from geograft.commands.train import train
from geograft.config import PredictConfig, Recipe
from geograft.errors import SettingError
from geograft.runs import HUB_FILE, read_members
from tests.support.hub import TOKEN, HubServer, hub
from tests.support.runs import make_run

SMALL = Recipe().with_settings(model={"architecture": "unet"}, train={"epochs": 1, "batch_size": 4, "device": "cpu"})
NAME = "user/fields"


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "fields", SMALL).run


PROGRAM = """
import contextlib, io, json, sys
from geograft.cli import main
for arguments in json.loads(sys.argv[1]):
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main(arguments)
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, out.getvalue(), error.getvalue()]))
"""


def geograft(server: HubServer, cache: Path, *commands: list[object], token: str = TOKEN) -> list[tuple[Any, str, str]]:
    """Run commands in one process with the hub in its environment; return exit code or message, stdout and stderr."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([[str(word) for word in words] for words in commands])]
    settings = server.settings(cache, token)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_a_pushed_run_is_read_by_its_name(run: Path, fields: Path, tmp_path: Path) -> None:
    scene, maps, name = fields / "scene.tif", [tmp_path / "hub.tif", tmp_path / "folder.tif"], f"hf:{NAME}"
    with hub() as server:
        pushed, mapped = geograft(
            server,
            tmp_path / "hub",
            ["push", run, NAME, "--license", "cc-by-4.0", "--private"],
            ["predict", name, scene, "--out", maps[0], "--backend", "torch"],
        )
        files = server.repositories[NAME]
    assert pushed[0] == mapped[0] == 0, (pushed, mapped)
    assert f"geograft show {name}" in pushed[1]
    assert server.private[NAME]
    assert set(files) == {"README.md", HUB_FILE, THUMBNAIL}
    (tmp_path / "pushed.graft").write_bytes(files[HUB_FILE])
    members = read_members(tmp_path / "pushed.graft")
    assert members[WEIGHTS] == (run / WEIGHTS).read_bytes()
    assert members[THUMBNAIL] == files[THUMBNAIL]
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["license"] == "cc-by-4.0"
    predict(run, [scene], maps[1], PredictConfig(backend="torch"))
    with rasterio.open(maps[0]) as ours, rasterio.open(maps[1]) as theirs:
        assert np.array_equal(ours.read(), theirs.read())
    # The server has gone: the file comes from the cache of the hub's client.
    ((code, out, _),) = geograft(server, tmp_path / "hub", ["show", name, "--json"])
    assert code == 0
    assert json.loads(out)["task"] == "binary segmentation of fields"


def test_what_cannot_be_pushed_or_read_is_one_line(run: Path, tmp_path: Path) -> None:
    with hub() as server:
        server.repositories["user/other"] = {"README.md": b""}
        commands: list[list[object]] = [["show", "hf:user/absent"], ["show", "hf:user/other"], ["push", run, NAME]]
        absent, other, refused = geograft(server, tmp_path, *commands, token="hf_wrong")
        assert NAME not in server.repositories
    ((offline),) = geograft(server, tmp_path, ["show", f"hf:{NAME}"])
    for (message, out, _), facts in (
        (absent, ("hf:user/absent", server.address)),
        (other, ("hf:user/other", HUB_FILE)),
        (refused, (NAME, server.address, "hf auth login")),
        (offline, (f"hf:{NAME}", server.address)),
    ):
        assert out == ""
        assert message.startswith("geograft: ")
        assert "\n" not in message
        assert all(fact in message for fact in facts), message


@pytest.mark.parametrize("name", ["fields", "user/fields/more", "user/", "hf:user/fields", "../fields"])
def test_a_wrong_name_is_refused_before_anything_is_sent(name: str, run: Path) -> None:
    with pytest.raises(SettingError, match="USER/NAME"):
        push(run, name)


def described(folder: Path) -> Description:
    table = RunScores(
        "test", "test", "/data/fields", 12, {"iou": 0.5, "f1": None}, {"iou": (0.4, 0.6)}, Units(7, "block")
    )
    card = read_card(make_run(folder / "run"))
    return Description(folder / "run", card, Origin("mit", TrainingData(2, 30, 10, 12)), 1000, 4000, (table,), False)


def test_the_model_card_has_what_the_hub_reads(tmp_path: Path) -> None:
    description = described(tmp_path)
    _, head, text = model_card(description, NAME, "apache-2.0", True).split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "geograft"
    assert found["pipeline_tag"] == "image-segmentation"
    (index,) = found["model-index"]
    (result,) = index["results"]
    assert index["name"] == description.card.name
    assert result["task"]["type"] == "image-segmentation"
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("fields", "test")
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("iou", 0.5)
    assert "0.400-0.600" in metric["name"]
    for fact in (f"hf:{NAME}", "trees", "red, green, blue", "uint8", "0.1 m", "mit", "2 scenes", THUMBNAIL):
        assert fact in text


@given(name=st.text(min_size=1), origin=st.text())
def test_no_name_breaks_the_model_card(name: str, origin: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    description = described(tmp_path_factory.mktemp("card"))
    odd = replace(description, card=replace(description.card, name=name, weights_from=origin))
    text = model_card(odd, NAME, "mit")
    found = yaml.safe_load(text.split("---\n", 2)[1])
    assert found["model-index"][0]["name"] == name
    assert [line for line in text.splitlines() if line.startswith("# ")]
    assert "<script" not in text
