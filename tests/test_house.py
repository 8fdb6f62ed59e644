"""The house: what imports what, how large things grow, and that what is promised is there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import geograft
from geograft.config import (
    EvaluateConfig,
    ModelConfig,
    PolygonConfig,
    PredictConfig,
    PrepareConfig,
    SampleConfig,
    SuggestConfig,
    TrainConfig,
    load_recipe,
)

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "geograft"
MODULES = sorted(SOURCE.rglob("*.py"))
VERBS = (
    "prepare",
    "audit",
    "model",
    "train",
    "compare",
    "curve",
    "find",
    "calibrate",
    "evaluate",
    "review",
    "predict",
    "polygons",
    "suggest",
    "sample",
    "area",
    "jaccard",
    "report",
    "demo",
)

# Rooms by floor; a module may import from its own room and from the floors below, never from a neighbour.
FLOORS = {"geo": 1, "learn": 1, "figures": 1, "verbs": 2, "cli": 3}
# Rooms within a room, in the order in which they may import each other; modules beside them come first.
INNER = {
    "geo": ("", "vectors", "rasters", "mapping", "tilesets", "splitting", "polygons", "accuracy"),
    "learn": ("", "losses", "networks", "feeding", "backends", "training", "using"),
}
NEVER = {
    "geo": {"torch", "timm", "lightning_fabric", "torchmetrics", "torchvision", "matplotlib"},
    "learn": {"rasterio", "geopandas", "pyogrio", "shapely", "pyproj", "matplotlib"},
    "figures": {"torch", "rasterio", "geopandas", "pyogrio"},
    "ground": {"torch", "rasterio", "geopandas", "pyogrio", "timm", "matplotlib"},
}
OPENERS = {
    "rasterio": {"geo/rasters/raster.py", "geo/rasters/rasterout.py"},
    "pyogrio": {
        "geo/vectors/vector.py",
        "geo/vectors/vectorout.py",
        "geo/vectors/vectorpoints.py",
        "geo/vectors/vectorindex.py",
        "geo/vectors/styles.py",
    },
    "geopandas": {
        "geo/vectors/vector.py",
        "geo/vectors/vectorout.py",
        "geo/vectors/vectorpoints.py",
        "geo/vectors/styles.py",
    },
}


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if parts[0] in FLOORS else "ground"


def dotted(path: Path) -> str:
    return ".".join(("geograft", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of what a module imports, but for `if TYPE_CHECKING` blocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def upward(path: Path, name: str) -> bool:
    """Whether importing `name` in `path` goes up or sideways."""
    parts = name.split(".")
    if parts[0] != "geograft" or (path.name in ("__init__.py", "__main__.py") and room(path) == "ground"):
        return False
    there = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "ground"
    here = room(path)
    return len(parts) == 1 or (there != here and FLOORS.get(there, 0) >= FLOORS.get(here, 0) and there != "ground")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    for name in imports(path):
        assert not upward(path, name), f"{path.name} imports {name}"
        assert name.split(".")[0] not in NEVER.get(room(path), set()), f"{path.name} imports {name}"


def inner_room(outer: str, parts: tuple[str, ...]) -> int:
    return INNER[outer].index(parts[0] if len(parts) > 1 else "")


def inner_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield what a module imports from the room it is in, with the place of that in the order."""
    outer = room(path)
    for name in imports(path):
        if name.startswith(f"geograft.{outer}."):
            parts = tuple(name.split(".")[2:])
            yield name, inner_room(outer, parts if parts[0] not in INNER[outer] else (*parts, ""))


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if room(path) in INNER],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_rooms_within_a_room_import_in_their_order(path: Path) -> None:
    outer = room(path)
    here = inner_room(outer, path.relative_to(SOURCE / outer).parts)
    for name, there in inner_imports(path):
        assert there <= here, f"{path.name} imports {name}"


def test_a_planted_upward_import_is_seen() -> None:
    assert upward(SOURCE / "geo" / "grid.py", "geograft.learn.training.loop")
    assert upward(SOURCE / "learn" / "loop.py", "geograft.verbs.train")
    assert upward(SOURCE / "card.py", "geograft.geo.grid")
    assert upward(SOURCE / "geo" / "grid.py", "geograft")
    assert not upward(SOURCE / "verbs" / "train.py", "geograft.geo.grid")


@pytest.mark.parametrize("library", OPENERS)
def test_only_the_named_modules_open_files_of_geodata(library: str) -> None:
    opens = {"rasterio": r"rasterio\.open\(", "pyogrio": r"pyogrio", "geopandas": r"geopandas"}
    found = {
        str(path.relative_to(SOURCE)) for path in MODULES if re.search(opens[library], path.read_text(encoding="utf-8"))
    }
    assert found <= OPENERS[library]


def test_there_is_no_import_cycle() -> None:
    names = {dotted(path): path for path in MODULES}
    graph = {name: {i for i in imports(path) if i in names and i != name} for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    assert set(graph) == done, f"cycle among {sorted(set(graph) - done)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_lint_format_and_types(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
        PredictConfig,
        EvaluateConfig,
        PolygonConfig,
        SampleConfig,
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
