from pathlib import Path

import pytest
from PIL import Image

from geograft.commands.model import graph_svg, model, parse_model, write_graph
from geograft.config import ModelConfig
from geograft.errors import OutputError, SettingError


@pytest.mark.parametrize(
    ("name", "total"),
    [("unet", "parameters 441,137, trainable 441,137"), ("transfer", "parameters 728,949, trainable 726,573")],
)
def test_the_articles_figures_are_printed(name: str, total: str) -> None:
    assert total in model(name).lines()


def test_names_and_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\nencoder = "resnet18"\nfrozen_stages = 1\n', encoding="utf-8")
    assert parse_model("unet") == ModelConfig(architecture="unet")
    assert parse_model("transfer") == ModelConfig(architecture="transfer")
    assert parse_model("light") == ModelConfig(architecture="light")
    assert parse_model("resnet18") == ModelConfig(encoder="resnet18")
    assert parse_model(str(recipe)) == ModelConfig(encoder="resnet18", frozen_stages=1)


def test_a_recipe_is_described_without_its_weights(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\nencoder = "test_efficientnet"\nweights = "not/here.pth"\n', encoding="utf-8")
    summary = model(str(recipe), size=32)
    assert summary.trainable < summary.parameters


def test_bands_outputs_and_size() -> None:
    summary = model("unet", bands=8, outputs=6, size=32)
    assert summary.parameters == 441_137 + 5 * 9 * 32 + 5 * 33
    assert (summary.parts[-1].channels, summary.parts[-1].height) == (6, 32)
    assert summary.lines()[0] == "U-Net, 8 bands, tiles of 32 x 32 pixels"


def test_an_unknown_name_lists_what_is_possible() -> None:
    with pytest.raises(SettingError, match=r"'trnsfer'.*unet, transfer, linear, light, or the path of a recipe"):
        model("trnsfer")


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(SettingError, match=r"nowhere\.toml"):
        model("nowhere.toml")


@pytest.mark.parametrize("setting", ["bands", "outputs", "size"])
def test_numbers_that_cannot_work(setting: str) -> None:
    with pytest.raises(SettingError, match=r"1000000000|\d[\d,.]* GB"):
        model("unet", **{setting: 10**9})
    with pytest.raises(SettingError, match=f"{setting} = 0"):
        model("unet", **{setting: 0})


def test_the_graph_as_svg_and_png(tmp_path: Path) -> None:
    summary = model("unet", size=32)
    for suffix in (".svg", ".png"):
        write_graph(summary, tmp_path / f"graph{suffix}")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == graph_svg(summary)
    assert "441,137 parameters" in graph_svg(summary)
    with Image.open(tmp_path / "graph.png") as picture:
        assert picture.format == "PNG"


def test_other_image_formats_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"\.svg or \.png"):
        write_graph(model("unet", size=32), tmp_path / "graph.pdf")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"graph\.svg"):
        write_graph(model("unet", size=32), tmp_path / "file" / "graph.svg")


def test_the_page_shows_the_printed_summary() -> None:
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    for line in model("transfer").lines():
        if "MiB" not in line and line:  # what is kept in memory may differ with torch's version
            assert f"    {line}\n" in page
