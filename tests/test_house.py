"""The house: what imports what, how large things grow, and that what is promised is there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import geograft
from geograft.config import (
    AdaptConfig,
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    PolygonConfig,
    PredictConfig,
    PrepareConfig,
    SampleConfig,
    ServeConfig,
    SuggestConfig,
    TrainConfig,
    load_recipe,
)

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "geograft"
MAX_LINES_A_FILE, MAX_LINES_A_FUNCTION = 500, 60
MAX_MODULES = 227
MAX_SMALL_MODULES, FULL = 5, 60
"""Modules of fewer than FULL lines with a single importer."""
PLUGIN = SOURCE / "qgis_plugin"
"""Runs in QGIS's Python: no part of the package's layers."""
MODULES = sorted(path for path in SOURCE.rglob("*.py") if PLUGIN not in path.parents)
VERBS = (
    "project",
    "go",
    "prepare",
    "audit",
    "model",
    "train",
    "compare",
    "curve",
    "find",
    "adapt",
    "calibrate",
    "evaluate",
    "review",
    "predict",
    "jobs",
    "polygons",
    "suggest",
    "export",
    "show",
    "serve",
    "push",
    "sample",
    "area",
    "jaccard",
    "report",
    "demo",
    "qgis",
)

# Packages from the ground up: a module imports from its own package and from those that its package may use.
# Modules beside the packages, and config, are the ground that all may use.
GROUND = "ground"
USES = {
    "geo": set(),
    "metrics": {"geo"},
    "dataset": {"geo", "metrics", "figures"},
    "losses": set(),
    "networks": {"losses"},
    "training": {"metrics", "losses", "networks"},
    "inference": {"metrics", "losses", "networks", "training"},
    "figures": {"metrics"},
    "exports": {"metrics", "losses", "networks", "training", "inference"},
    "mapping": {"geo", "metrics", "dataset", "losses", "networks", "training", "inference"},
    "server": {"geo", "metrics"},
    "commands": {
        *("geo", "metrics", "dataset", "losses", "networks", "training", "inference", "figures", "exports", "mapping"),
        "server",
    },
    "cli": {"geo", "dataset", "mapping", "commands"},
    "api": {"dataset", "mapping", "commands"},
}
GEODATA = {"rasterio", "geopandas", "pyogrio", "shapely"}
LEARNING = {"torch", "timm", "lightning_fabric", "torchmetrics", "torchvision"}
NEVER = {
    GROUND: GEODATA | LEARNING | {"matplotlib"},
    "geo": LEARNING | {"matplotlib"},
    "metrics": GEODATA | LEARNING | {"matplotlib"},
    "dataset": LEARNING | {"matplotlib"},
    "api": GEODATA | LEARNING | {"matplotlib"},
    "server": LEARNING | {"matplotlib"},
    "losses": GEODATA | {"pyproj", "matplotlib"},
    "networks": GEODATA | {"pyproj", "matplotlib"},
    "training": GEODATA | {"pyproj", "matplotlib"},
    "inference": GEODATA | {"pyproj", "matplotlib"},
    "exports": GEODATA | {"pyproj", "matplotlib"},
    "figures": GEODATA | LEARNING,
}
OPENERS = {
    "rasterio": {"geo/rasters/opening.py", "geo/rasters/writer.py"},
    "pyogrio": {"geo/vectors/reader.py", "geo/vectors/writer.py", "geo/vectors/points.py", "geo/vectors/styles.py"},
    "geopandas": {"geo/vectors/reader.py", "geo/vectors/writer.py", "geo/vectors/points.py", "geo/vectors/styles.py"},
}


def package(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if parts[0] in USES else GROUND


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


@cache
def dotted(path: Path) -> str:
    return ".".join(("geograft", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return the full names of what a module imports, but for `if TYPE_CHECKING` blocks."""
    found: list[str] = []
    for node in nodes_of(tree_of(path)):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(str(node.module))
    return tuple(found)


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, but for `if TYPE_CHECKING` blocks."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        hidden = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        waiting += node.orelse if hidden else ast.iter_child_nodes(node)


def upward(path: Path, name: str) -> bool:
    """Whether importing `name` in `path` goes up or sideways."""
    parts = name.split(".")
    if parts[0] != "geograft" or (path.name in ("__init__.py", "__main__.py") and package(path) == GROUND):
        return False
    here, there = package(path), parts[1] if len(parts) > 1 and parts[1] in USES else GROUND
    return len(parts) == 1 or there not in {GROUND, here, *USES.get(here, ())}


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in MODULES
        for name in imports(path)
        if upward(path, name) or name.split(".")[0] in NEVER.get(package(path), set())
    ]
    assert not wrong


def test_a_planted_upward_import_is_seen() -> None:
    assert upward(SOURCE / "geo" / "grid.py", "geograft.training.loop")
    assert upward(SOURCE / "training" / "loop.py", "geograft.commands.train")
    assert upward(SOURCE / "training" / "loop.py", "geograft.dataset.tileset")
    assert upward(SOURCE / "card.py", "geograft.geo.grid")
    assert upward(SOURCE / "geo" / "grid.py", "geograft")
    assert not upward(SOURCE / "commands" / "train.py", "geograft.geo.grid")


@pytest.mark.parametrize("library", OPENERS)
def test_only_the_named_modules_open_files_of_geodata(library: str) -> None:
    opens = {"rasterio": r"rasterio\.open\(", "pyogrio": r"pyogrio", "geopandas": r"geopandas"}
    found = {str(path.relative_to(SOURCE)) for path in MODULES if re.search(opens[library], text_of(path))}
    assert found <= OPENERS[library]


def test_there_is_no_import_cycle() -> None:
    names = {dotted(path): path for path in MODULES}
    graph = {name: {i for i in imports(path) if i in names and i != name} for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    assert set(graph) == done, f"cycle among {sorted(set(graph) - done)}"


def test_the_plugin_needs_only_qgis_and_the_standard_library() -> None:
    for path in sorted(PLUGIN.glob("*.py")):
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert {name.split(".")[0] for name in names} <= {"qgis", *sys.stdlib_module_names}, path


def test_files_and_functions_stay_small() -> None:
    for path in (*MODULES, *PLUGIN.glob("*.py")):
        assert len(text_of(path).splitlines()) <= MAX_LINES_A_FILE, path
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= MAX_LINES_A_FUNCTION, f"{path.name}: {node.name} has {lines} lines"


def test_modules_stay_few_and_full() -> None:
    modules = [path for path in MODULES if path.name != "__init__.py"]
    assert len(modules) <= MAX_MODULES
    imported = {path: set(imports(path)) for path in MODULES}
    importers = {
        dotted(path): {importer for importer in MODULES if dotted(path) in imported[importer]} for path in modules
    }
    small = [
        name
        for name, path in zip(importers, modules, strict=True)
        if len(text_of(path).splitlines()) < FULL and len(importers[name]) == 1
    ]
    assert len(small) <= MAX_SMALL_MODULES, small


def test_every_exported_name_is_there() -> None:
    for name in geograft.__all__:
        assert getattr(geograft, name) is not None
    assert set(VERBS) <= set(geograft.__all__)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page(verb: str) -> None:
    page = (ROOT / "docs" / f"{verb}.md").read_text(encoding="utf-8")
    assert f"The result of `geograft {verb}` is" in page


@pytest.mark.parametrize(
    "config",
    [
        PrepareConfig,
        ModelConfig,
        TrainConfig,
        AdaptConfig,
        PredictConfig,
        EvaluateConfig,
        ExportConfig,
        PolygonConfig,
        SampleConfig,
        ServeConfig,
        SuggestConfig,
    ],
)
def test_every_setting_is_explained(config: type) -> None:
    for name, info in config.__pydantic_fields__.items():  # type: ignore[attr-defined]
        assert info.description, name


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_parses_and_is_headed_by_its_command(recipe: Path) -> None:
    assert load_recipe(recipe).title
    assert "#   geograft " in recipe.read_text(encoding="utf-8")


def test_no_page_or_module_speaks_of_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.splitlines()
    texts = [ROOT / name for name in tracked if name.endswith((".py", ".md", ".toml", ".jinja", ".txt", "Makefile"))]
    for path in texts:
        assert not re.search(r"/(work|root|tmp)/\w", path.read_text(encoding="utf-8")), path
