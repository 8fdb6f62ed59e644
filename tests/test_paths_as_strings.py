"""Public functions and classes take paths as strings or Paths."""

import inspect
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import geograft
from geograft.config import Recipe, Variant
from geograft.errors import GeograftError

FUNCTIONS = [name for name in geograft.__all__ if inspect.isfunction(getattr(geograft, name))]
WITHOUT = {"demo", "model", "qgis", "prepare_masks", "prepare_coco", "prepare_dstl", "prepare_vector"}
"""Without required paths, or tested in tests/api."""
OTHERS: dict[str, Any] = {
    "recipe": Recipe(variants=(Variant("a"),)),
    "source": geograft.DstlSource("nowhere", (5,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hints_of_paths_allow_strings(name: str) -> None:
    for parameter, hint in get_type_hints(getattr(geograft, name)).items():
        options = {option for part in (hint, *get_args(hint)) for option in (part, *get_args(part))}
        if parameter != "return" and {Path, PathLike[str]} & options:
            assert str in options, parameter


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in WITHOUT])
def test_every_function_takes_strings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(geograft, name)
    parameters = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    needed = [one for one in parameters if one.default is one.empty]
    values = [OTHERS.get(one.name, "nowhere") for one in needed]
    with pytest.raises(GeograftError, match="nowhere"):
        function(*values)


def test_sources_and_tile_sets_take_strings(fields: Path, tmp_path: Path) -> None:
    source = geograft.VectorSource(str(fields / "scene.tif"), str(fields / "fields.gpkg"))
    same = geograft.VectorSource((fields / "scene.tif",), fields / "fields.gpkg")
    settings = geograft.PrepareConfig(tile_px=32, split="block", buffer_px=0)
    tiles = geograft.prepare(source, str(tmp_path / "tiles"), settings)
    assert geograft.prepare(same, tmp_path / "same", settings).meta.fingerprint == tiles.meta.fingerprint
    assert geograft.TileSet.open(str(tmp_path / "tiles")) == tiles
    assert geograft.audit(str(tmp_path / "tiles")).tiles
    assert geograft.load_recipe("demo") == geograft.load_recipe(Path("demo"))
    for wrong in (geograft.MaskSource("a", "b", {1: "c", 2: "d"}), geograft.CocoSource("a", "b", groups="c.csv")):
        with pytest.raises(GeograftError):
            wrong.gather()
