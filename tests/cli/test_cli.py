"""The command line: fast --help, errors of one line, and an example for every command."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import geograft
from geograft.cli import SPIN_COUNT, app, limit_spinning, main
from geograft.cli.data import parse_classes
from geograft.config import Recipe
from geograft.errors import SettingError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_docs

COMMANDS = [tuple(name.split()) for name in make_docs.command_names()]


def error_message(*arguments: str) -> str:
    """Return the error message of `geograft ARGUMENTS`, which Python prints on stderr, exiting with 1."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from geograft.cli import app; app(['--help'], result_action='return_value');"
        "print({'torch', 'rasterio', 'numpy', 'pydantic', 'matplotlib', 'geopandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    app([*command, "--help"], result_action="return_value")
    assert f"Example: $ geograft {' '.join(command)}" in capsys.readouterr().out


def test_every_setting_of_a_recipe_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from geograft.config import ModelConfig, PrepareConfig, TrainConfig

    for command, configs in ((("prepare", "vector"), [PrepareConfig]), (("train",), [ModelConfig, TrainConfig])):
        app([*command, "--help"], result_action="return_value")
        text = capsys.readouterr().out
        for config in configs:
            for name in config.__pydantic_fields__:  # type: ignore[attr-defined]
                assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("audit", "nowhere"), "geograft prepare"),
        (("train", "nowhere", "--out", "run"), "nowhere"),
        (("train", "nowhere", "--out", "run", "--epochs", "x"), "--epochs"),
        (("train", "nowhere", "--out", "run", "--epochs", "0"), "train.epochs = 0"),
        (("compare", "nowhere", "--out", "c", "--recipe", "missing.toml"), "missing.toml"),
        (("evaluate", "nowhere"), "card.json"),
        (("report", "nowhere"), "nowhere"),
        (("nonsense",), "nonsense"),
        (("predict", "run", "a.tif", "--out", "b.tif", "--threshold", "0.5", "1.5"), "--threshold 1.5"),
        (("serve", "nowhere", "--basemap", "http://foo"), "geograft: http://foo"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_message(*arguments)
    assert message.startswith("geograft: ") and "\n" not in message
    assert words in message and "pydantic" not in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nepoch = 3\n")
    message = error_message("train", "nowhere", "--out", "run", "--recipe", str(tmp_path / "r.toml"))
    assert "r.toml: train.epoch " in message


def test_errors_exit_with_1_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "geograft", "audit", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("geograft: nowhere ") and done.stderr.count("\n") == 1


def json_lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, list[dict[str, object]], str]:
    """Return the exit code, the lines of JSON on stderr and the stdout of `geograft ARGUMENTS --progress json`."""
    code: object = 0
    try:
        main([*arguments, "--progress", "json"])
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    return code, [json.loads(line) for line in printed.err.splitlines()], printed.out


def test_progress_as_json_has_the_documented_events(
    fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, out = str(fields / "scene.tif"), str(fields / "fields.gpkg"), str(tmp_path / "tiles")
    command = ("prepare", "vector", images, "--labels", labels, "--out", out, "--tile-px", "32")
    page = (Path(__file__).parents[2] / "docs" / "programs.md").read_text(encoding="utf-8")
    code, shown, text = json_lines(capsys, *command, "--test", "0.2")
    assert code == 0
    assert shown[0] == {"event": "start", "command": "prepare", "schema": 1}
    assert shown[-1] == {"event": "result", "exit_code": 0, "text": text.removesuffix("\n")}
    for event in shown:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{event['event']}` |"))
        assert row.startswith(f"| `{event['event']}` |") and all(f"`{key}`" in row for key in event if key != "event")
    steps = [(event["step"], event["done"] == event["total"]) for event in shown if event["event"] == "progress"]
    assert ("Rasterising labels", True) in steps and ("Rasterising labels", False) in steps
    again, failed, _ = json_lines(capsys, *command)
    assert (again, failed[-1]["event"], failed[-1]["exit_code"]) == (1, "error", 1)
    assert out in str(failed[-1]["text"])


@pytest.mark.parametrize("wrong", [("--epochs", "x"), ("--no-such-option",), ("--progress", "xml")])
def test_errors_in_the_arguments_are_json_too(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, text = json_lines(capsys, "train", "nowhere", "--out", "run", *wrong)
    assert (code, [each["event"] for each in shown], text) == (1, ["start", "error"], "")
    assert wrong[0] in str(shown[-1]["text"])


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each[0] not in ("model", "jaccard", "qgis", "serve")], ids=" ".join
)
def test_every_long_command_has_progress(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    app([*command, "--help"], result_action="return_value")
    assert "--progress" in capsys.readouterr().out


def test_warnings_of_gdal_are_not_printed_beside_an_error(tmp_path: Path) -> None:
    """A header of 2^20 x 2^20 pixels with three bands, which libtiff takes for a colour and two others."""
    tags = ((256, 4, 2**20), (257, 4, 2**20), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 3))
    tags += ((322, 4, 2**15), (323, 4, 2**15), (324, 4, 8), (325, 4, 8))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
    (tmp_path / "l.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    command = ("prepare", "vector", "a.tif", "--labels", "l.geojson", "--out", "q")
    script = [sys.executable, "-m", "geograft", *command]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("geograft: ") and done.stderr.count("\n") == 1


def test_parse_classes() -> None:
    assert parse_classes("1=forest,2=other") == {1: "forest", 2: "other"}
    for wrong in ("forest", "1=", "x=forest"):
        with pytest.raises(SettingError):
            parse_classes(wrong)


def test_the_page_of_commands_is_up_to_date() -> None:
    assert make_docs.PAGE.read_text(encoding="utf-8") == make_docs.page(), "run `make docs`"


def test_the_page_of_commands_lists_every_verb() -> None:
    page = make_docs.page()
    verbs = {name for name, home in geograft._MODULES.items() if home == f"geograft.commands.{name}"}
    # It is `geograft project --import`; "import" alone cannot be the name of a function.
    verbs.remove("import_labels")
    assert {command[0] for command in COMMANDS} == verbs
    assert all(re.search(rf"^## geograft {verb}\b", page, re.MULTILINE) for verb in verbs)


def test_seeds_on_the_command_line_override_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from geograft.commands import compare

    asked: list[tuple[int, ...]] = []

    def compared(_tiles: tuple[Path, ...], recipe: Recipe, *_others: object) -> None:
        asked.append(recipe.seeds)
        raise SettingError("stop here")

    monkeypatch.setattr(compare, "compare", compared)
    error_message("compare", "tiles", "--recipe", "demo-article", "--out", str(tmp_path), "--seeds", "3", "4")
    error_message("compare", "tiles", "--recipe", "demo-article", "--out", str(tmp_path))
    assert asked == [(3, 4), (0,)]


@pytest.mark.parametrize("flag", [("--tile-px", "0"), ("--val", "1.2"), ("--overlap", "1")])
def test_the_error_for_a_flag_out_of_range_is_one_line(
    flag: tuple[str, str], fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", "vector", str(fields / "scene.tif"), "--labels", str(fields / "fields.gpkg")]
    with pytest.raises(SettingError, match=rf"^{flag[0]} {flag[1]}(\.0)?: [^\n]*\.$"):
        app([*arguments, "--out", str(tmp_path / "tiles"), *flag], result_action="return_value")
    assert not (tmp_path / "tiles").exists()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("vector", "scene.tif"), "prepare vector"),
        (("prepare", "scene.tif"), "vector, masks, coco or dstl"),
        (("prepare", "vektor", "scene.tif"), '"vector"'),
        (("trian", "tiles"), '"train"'),
        (("train", "tiles", "--out", "run", "--epoch", "3"), "--epochs"),
        (("prepare", "masks", "a", "b", "--out", "c", "--class", "x"), "--classes"),
    ],
)
def test_what_is_mistyped_is_suggested(arguments: tuple[str, ...], meant: str) -> None:
    message = error_message(*arguments)
    assert meant in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("recipe", "meant"),
    [
        ("epochs = 3\n", "train.epochs"),
        ("[train]\nepoch = 3\n", "train.epochs"),
        ("[model]\ntile_px = 3\n", "prepare.tile_px"),
        ("[train]\nbatchsize = 3\n", "train.batch_size"),
        ('[[variants]]\nname = "a"\ntrain = {weight_decy = 1}\n', "train.weight_decay"),
    ],
)
def test_a_mistyped_recipe_key_is_suggested(recipe: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(recipe)
    message = error_message("train", "nowhere", "--out", "run", "--recipe", str(tmp_path / "r.toml"))
    assert f"did you mean {meant}?" in message


WARNING = """
import multiprocessing, sys
from geograft.cli import main

def warn():
    import numpy
    numpy.float32(1e30) * numpy.float32(1e30)

if __name__ == "__main__":
    try:
        main()
    except SystemExit:
        pass
    warn()
    child = multiprocessing.get_context("spawn").Process(target=warn)
    child.start()
    child.join()
"""


@pytest.mark.parametrize(("options", "shown"), [((), 0), (("-W", "default"), 2)])
def test_the_command_hides_the_warnings_of_libraries_also_in_its_processes(
    tmp_path: Path, options: tuple[str, ...], shown: int
) -> None:
    (tmp_path / "script.py").write_text(WARNING)
    command = [sys.executable, *options, str(tmp_path / "script.py"), "--version"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.count("RuntimeWarning") == shown


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_sleep_soon_unless_the_environment_says_how_they_wait(
    own: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        # Set first, so that the variable is restored.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
