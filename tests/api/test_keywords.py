"""Settings as keyword options: the same fields and defaults as the config classes, shown by help."""

import inspect
import pydoc
from pathlib import Path
from typing import Any

import pytest

import geograft
from geograft.api.keywords import keyword_settings
from geograft.config import EvaluateConfig, InferenceConfig, PredictConfig, PrepareConfig, ReviewConfig, SuggestConfig
from geograft.errors import SettingError

FUNCTIONS = {
    "prepare_vector": (geograft.prepare_vector, PrepareConfig),
    "prepare_masks": (geograft.prepare_masks, PrepareConfig),
    "prepare_coco": (geograft.prepare_coco, PrepareConfig),
    "prepare_dstl": (geograft.prepare_dstl, PrepareConfig),
    "predict": (geograft.Run.predict, PredictConfig),
    "predict_array": (geograft.Run.predict_array, InferenceConfig),
    "evaluate": (geograft.Run.evaluate, EvaluateConfig),
    "calibrate": (geograft.Run.calibrate, InferenceConfig),
    "suggest": (geograft.Run.suggest, SuggestConfig),
    "review": (geograft.Run.review, ReviewConfig),
}


@keyword_settings(PrepareConfig)
def settings_of(first: int, *, config: PrepareConfig) -> PrepareConfig:
    """Return the settings."""
    return config


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_setting_is_an_option_with_its_default_and_in_the_help(name: str) -> None:
    function, config = FUNCTIONS[name]
    options = inspect.signature(function).parameters
    text = pydoc.plain(pydoc.render_doc(function))
    fields: dict[str, Any] = config.__pydantic_fields__  # type: ignore[attr-defined]
    for field, info in fields.items():
        assert options[field].default == info.default
        assert options[field].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"    {field}: " in text
    assert "config" not in options
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in options.values())


def test_options_become_the_settings() -> None:
    assert settings_of(1) == PrepareConfig()
    assert settings_of(1, tile_px=64, split="scene") == PrepareConfig(tile_px=64, split="scene")


def test_wrong_options_are_errors() -> None:
    with pytest.raises(SettingError, match="tile_px = 3"):
        settings_of(1, tile_px=3)
    with pytest.raises(TypeError, match="tiles_px"):
        settings_of(1, tiles_px=64)
    with pytest.raises(TypeError):
        settings_of(tile_px=64)


def test_the_sources_are_those_of_the_classes(fields: Path, tmp_path: Path) -> None:
    settings = {"tile_px": 32, "split": "block", "buffer_px": 0}
    source = geograft.VectorSource(str(fields / "scene.tif"), str(fields / "fields.gpkg"), class_field="kind")
    expected = geograft.prepare(source, tmp_path / "a", geograft.PrepareConfig(**settings))
    paths = (str(fields / "scene.tif"), str(fields / "fields.gpkg"), str(tmp_path / "b"))
    found = geograft.prepare_vector(*paths, class_field="kind", **settings)
    assert found.meta.fingerprint == expected.meta.fingerprint
    assert Path(found) == tmp_path / "b"
