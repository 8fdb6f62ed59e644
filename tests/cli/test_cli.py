"""The command line: quick to answer, one line for what a user can mend, an example for every verb."""

import subprocess
import sys
from pathlib import Path

import pytest

from geograft.cli import app, main
from geograft.cli.data import parse_classes
from geograft.config import Recipe
from geograft.errors import SettingError

COMMANDS = [
    ("prepare", "vector"), ("prepare", "masks"), ("prepare", "dstl"), ("audit",), ("model",), ("train",), ("compare",),
    ("curve",), ("evaluate",), ("predict",), ("polygons",), ("report",), ("demo",),
]  # fmt: skip


def refusal(*arguments: str) -> str:
    """Return the message that ends `geograft ARGUMENTS`; Python prints it on stderr and exits with 1."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_the_door_loads_nothing_heavy() -> None:
    code = (
        "import sys; from geograft.cli import app; app(['--help'], result_action='return_value');"
        "print({'torch', 'rasterio', 'numpy', 'pydantic', 'matplotlib', 'geopandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_a_worked_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
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
        (("train", "nowhere", "--out", "run"), "is not a tile set"),
        (("train", "nowhere", "--out", "run", "--epochs", "x"), "--epochs"),
        (("train", "nowhere", "--out", "run", "--epochs", "0"), "train.epochs = 0"),
        (("compare", "nowhere", "--out", "c", "--recipe", "missing.toml"), "missing.toml"),
        (("evaluate", "nowhere"), "is not a finished run"),
        (("report", "nowhere"), "nowhere"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(*arguments)
    assert message.startswith("geograft: ") and "\n" not in message
    assert words in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nepoch = 3\n")
    message = refusal("train", "nowhere", "--out", "run", "--recipe", str(tmp_path / "r.toml"))
    assert "r.toml: train.epoch is not a setting" in message


def test_the_program_exits_with_1_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "geograft", "audit", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("geograft: nowhere is not a tile set") and done.stderr.count("\n") == 1


def test_parse_classes() -> None:
    assert parse_classes("1=forest,2=other") == {1: "forest", 2: "other"}
    for wrong in ("forest", "1=", "x=forest"):
        with pytest.raises(SettingError):
            parse_classes(wrong)


def test_the_page_of_commands_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    sys.path.insert(0, str(root / "scripts"))
    from make_docs import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_seeds_on_the_command_line_take_the_place_of_the_recipes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from geograft.commands import compare

    asked: list[tuple[int, ...]] = []

    def compared(tiles: Path, recipe: Recipe, out: Path, folds: int) -> None:
        asked.append(recipe.seeds)
        raise SettingError("far enough")

    monkeypatch.setattr(compare, "compare", compared)
    refusal("compare", "tiles", "--recipe", "demo", "--out", str(tmp_path), "--seeds", "3", "4")
    refusal("compare", "tiles", "--recipe", "demo", "--out", str(tmp_path))
    assert asked == [(3, 4), (0,)]


@pytest.mark.parametrize("flag", [("--tile-px", "0"), ("--val", "1.2"), ("--overlap", "1")])
def test_a_flag_out_of_range_is_one_line(
    flag: tuple[str, str], fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", "vector", str(fields / "scene.tif"), "--labels", str(fields / "fields.gpkg")]
    with pytest.raises(SettingError, match=rf"^{flag[0]} {flag[1]}(\.0)?: input should be [^\n]*\.$"):
        app([*arguments, "--out", str(tmp_path / "tiles"), *flag], result_action="return_value")
    assert not (tmp_path / "tiles").exists()
