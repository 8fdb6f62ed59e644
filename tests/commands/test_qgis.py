"""The QGIS plugin: installed into a profile, it runs every algorithm through the program, and cancels it."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import geopandas
import pytest
import rasterio

from geograft.commands.qgis import COMMAND, METADATA, PLUGIN, qgis
from geograft.config.recipes import read_project
from geograft.dataset.tileset import TileSet
from geograft.errors import OutputError
from tests.support.gis import PYTHON, require_qgis, run_qgis

ROOT = Path(__file__).parents[2]
RECIPE = """
[model]
architecture = "unet"
[train]
epochs = 1
device = "cpu"
"""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    folder = tmp_path / "profiles" / "default"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a profile of QGIS, in which the plugin is installed and calls the tested geograft."""
    require_qgis()
    folder = tmp_path_factory.mktemp("home")
    place = folder / ".local" / "share" / "QGIS" / "QGIS3" / "profiles" / "default"
    place.mkdir(parents=True)
    installed = qgis(str(place)).folder
    source = f"PYTHONPATH={ROOT / 'src'}"
    (installed / COMMAND).write_text(json.dumps(["/usr/bin/env", source, sys.executable, "-m", "geograft"]))
    process(folder, "plugins", "enable", PLUGIN)
    return folder


def process(home: Path, *arguments: str) -> str:
    """Return the output of qgis_process; Debian's is a script that passes an option that the program lacks."""
    program = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    assert program, "qgis_process is not installed"
    return run_qgis([program, *arguments], home)


def run_algorithm(home: Path, name: str, **parameters: object) -> dict[str, Any]:
    """Run `geograft:name` and return its outputs."""
    text = process(
        home, "--json", "run", f"geograft:{name}", *(f"--{key}={value}" for key, value in parameters.items())
    )
    found: dict[str, Any] = json.loads(text[text.index("{") :])["results"]
    return found


# ------------------------------------------------------------------------------------------------------- installation


def test_the_plugin_is_a_folder_that_names_the_program(profile: Path) -> None:
    result = qgis(str(profile))
    assert result.folder == profile / "python" / "plugins" / PLUGIN
    assert json.loads((result.folder / COMMAND).read_text()) == [sys.executable, "-m", "geograft"]
    metadata = (result.folder / METADATA).read_text()
    assert "hasProcessingProvider=yes" in metadata
    assert "version=0\n" not in metadata
    (result.folder / "old.py").write_text("")
    qgis(str(profile))
    assert not (result.folder / "old.py").exists()


def test_profiles_are_found_by_name(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QGIS_CUSTOM_CONFIG_PATH", str(profile.parents[1]))
    assert qgis().folder.is_relative_to(profile)
    with pytest.raises(OutputError, match="other"):
        qgis("other")
    assert not (profile.parent / "other").exists()


def test_another_plugin_of_that_name_stays(profile: Path) -> None:
    other = profile / "python" / "plugins" / PLUGIN
    other.mkdir(parents=True)
    (other / METADATA).write_text("[general]\nname=Something else\n")
    with pytest.raises(OutputError, match=PLUGIN):
        qgis(str(profile))
    assert [path.name for path in other.iterdir()] == [METADATA]


# -------------------------------------------------------------------------------------------------------- the process


@pytest.fixture
def plugin(profile: Path) -> ModuleType:
    """The module of the installed plugin that starts the program; it needs no QGIS."""
    spec = importlib.util.spec_from_file_location("plugin_process", qgis(str(profile)).folder / "process.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PATIENCE_S = 0.5
    return module


class Feedback:
    """Stands for QgsProcessingFeedback; the user cancels once `cancel_after` messages were shown."""

    def __init__(self, cancel_after: int = 1000) -> None:
        self.progress: list[float] = []
        self.said: list[str] = []
        self._cancel_after = cancel_after

    def isCanceled(self) -> bool:  # noqa: N802
        return len(self.said) >= self._cancel_after

    def setProgress(self, percent: float) -> None:  # noqa: N802
        self.progress.append(percent)

    def setProgressText(self, text: str) -> None:  # noqa: N802
        self.said.append(text)

    def pushInfo(self, text: str) -> None:  # noqa: N802
        self.said.append(text)


def stand_in(plugin: ModuleType, *lines: str) -> None:
    """Make the plugin start a Python script in place of geograft."""
    script = "\n".join(
        ("import json, os, signal, sys, time", "say = lambda **e: print(json.dumps(e), file=sys.stderr)", *lines)
    )
    plugin.COMMAND.write_text(json.dumps([sys.executable, "-c", script]))


def test_progress_messages_and_the_result_are_shown(plugin: ModuleType) -> None:
    stand_in(
        plugin,
        "say(event='start', command=sys.argv[1], schema=1)",
        "print('a warning of a library', file=sys.stderr)",
        "say(event='progress', step='one', done=1, total=4, unit='tiles')",
        "say(event='progress', step='one', done=4, total=4, unit='tiles')",
        "say(event='later', figures=1)",
        "say(event='result', exit_code=0, text=' '.join(sys.argv[1:]))",
    )
    feedback = Feedback()
    assert plugin.run(["predict", "a b"], feedback) == "predict a b --progress json"
    assert feedback.progress == [25, 100]
    assert feedback.said == ["one", "predict a b --progress json"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["say(event='error', exit_code=1, text='no such run')", "sys.exit(1)"], "no such run"),
        (["raise ValueError('a bug')"], "ValueError: a bug"),
        (["pass"], "without a result"),
    ],
)
def test_the_error_of_the_program_is_that_of_the_algorithm(
    plugin: ModuleType, lines: Sequence[str], words: str
) -> None:
    stand_in(plugin, *lines)
    with pytest.raises(plugin.ProcessError, match=words):
        plugin.run(["predict"], Feedback())


@pytest.mark.parametrize("content", [None, "{", "[]", '["/nowhere/geograft"]'])
def test_a_program_that_cannot_be_started_is_named(plugin: ModuleType, content: str | None) -> None:
    plugin.COMMAND.unlink()
    if content is not None:
        plugin.COMMAND.write_text(content)
    with pytest.raises(plugin.ProcessError, match="geograft qgis install"):
        plugin.run(["predict"], Feedback())


READY = "say(event='message', text='ready')"
WAIT_FOR_END_OF_INPUT = """
sys.stdin.read()
say(event='interrupted', exit_code=143, text='half of it is kept')
sys.exit(143)
"""
WAIT_FOR_SIGTERM = "signal.pause()"
IGNORE_BOTH = "while True: signal.pause()"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([READY, WAIT_FOR_END_OF_INPUT], "half of it is kept"),
        (["signal.signal(signal.SIGTERM, lambda *_: os._exit(143))", READY, WAIT_FOR_SIGTERM], "exit code 143"),
        (["signal.signal(signal.SIGTERM, signal.SIG_IGN)", READY, IGNORE_BOTH], f"exit code -{signal.SIGKILL.value}"),
    ],
)
def test_a_cancelled_process_ends(plugin: ModuleType, lines: Sequence[str], words: str) -> None:
    """By the end of its input, so that it can save what is finished; else by SIGTERM; else by SIGKILL."""
    stand_in(plugin, *lines)
    with pytest.raises(plugin.ProcessError, match=words):
        plugin.run(["predict"], Feedback(cancel_after=1))


def test_variables_of_qgis_do_not_reach_the_program(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in plugin.OF_QGIS:
        monkeypatch.setenv(name, "")
    stand_in(plugin, "say(event='result', exit_code=0, text=' '.join(os.environ))")
    assert not set(plugin.OF_QGIS) & set(plugin.run([], Feedback()).split())
    assert set(plugin.OF_QGIS) <= set(os.environ)


# --------------------------------------------------------------------------------------------------------- with QGIS


@pytest.fixture(scope="module")
def run(home: Path, fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that QGIS prepared and trained."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    # Of two layers of polygons in one file, QGIS passes the chosen one.
    polygons = geopandas.read_file(fields / "fields.gpkg")
    polygons.to_file(folder / "labels.gpkg", layer="fields")
    polygons.assign(kind="wrong").to_file(folder / "labels.gpkg", layer="other")
    labels = {"LABELS": f"{folder / 'labels.gpkg'}|layername=fields", "CLASS_FIELD": "kind", "TILE_PX": 32}
    tiles = run_algorithm(home, "prepare", RASTERS=fields / "scene.tif", OUTPUT=folder / "tiles", **labels)["OUTPUT"]
    assert TileSet.open(Path(tiles)).meta.legend.names == ("background", "field")
    return Path(run_algorithm(home, "train", TILES=tiles, RECIPE=recipe, OUTPUT=folder / "run")["OUTPUT"])


@pytest.mark.slow
def test_every_algorithm_runs_in_qgis(home: Path, fields: Path, run: Path, tmp_path: Path) -> None:
    scene = fields / "scene.tif"
    maps = run_algorithm(home, "predict", RUN=run, RASTERS=scene, UNCERTAINTY=1, OUTPUT=tmp_path / "map.tif")
    assert set(maps) == {"OUTPUT", "UNCERTAINTY_MAP"}
    with rasterio.open(maps["OUTPUT"]) as raster, rasterio.open(scene) as source:
        assert raster.shape == source.shape
    polygons = run_algorithm(home, "polygons", MAP=maps["OUTPUT"], OUTPUT=tmp_path / "map.gpkg")["OUTPUT"]
    assert "class" in geopandas.read_file(polygons).columns
    found = run_algorithm(home, "suggest", RUN=run, RASTERS=scene, TILES=3, OUTPUT=tmp_path / "next.gpkg")["OUTPUT"]
    assert len(geopandas.read_file(found, layer="suggestions")) <= 3
    scores = run_algorithm(home, "evaluate", RUN=run, SPLIT=0, OUTPUT=tmp_path / "scores.json")
    assert scores["IOU"] == json.loads((tmp_path / "scores.json").read_text())["overall"]["iou"]


@pytest.mark.slow
def test_a_project_is_made_and_trained_in_qgis(home: Path, fields: Path, tmp_path: Path) -> None:
    made = run_algorithm(
        home, "project", RASTERS=fields / "scene.tif", CLASSES="field,road", SCORING_AREAS=0, OUTPUT=tmp_path / "new"
    )
    settings, _ = read_project(Path(made["OUTPUT"]))
    assert settings.names == ("field", "road")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_algorithm(home, "go", PROJECT=tmp_path / "new", MINUTES=1)
    assert "no labelled training area" in failed.value.stdout + failed.value.stderr


@pytest.mark.slow
def test_the_output_of_one_algorithm_is_the_input_of_the_next_in_a_model(
    home: Path, fields: Path, run: Path, tmp_path: Path
) -> None:
    (installed,) = home.rglob(PLUGIN)
    script, out = ROOT / "tests" / "support" / "qgis_model.py", tmp_path / "found.gpkg"
    command = [PYTHON, str(script), str(installed.parent), str(run), str(fields / "scene.tif"), str(out)]
    assert json.loads(run_qgis(command, home)) == {"succeeded": True, "polygons": str(out)}
    assert "class" in geopandas.read_file(out).columns


def test_an_error_of_the_program_is_that_of_the_algorithm(home: Path, fields: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "damaged.graft"
    bundle.write_text("not a bundle")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_algorithm(home, "predict", BUNDLE=bundle, RASTERS=fields / "scene.tif", OUTPUT=tmp_path / "map.tif")
    assert str(bundle) in failed.value.stdout + failed.value.stderr
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_algorithm(home, "predict", RASTERS=fields / "scene.tif", OUTPUT=tmp_path / "map.tif")
    assert "Give a run or a bundle" in failed.value.stdout + failed.value.stderr
    assert not (tmp_path / "map.tif").exists()
