"""Measure the structure of the package, or of another checkout of it.

    python scripts/measure_house.py [PACKAGE_FOLDER]

Prints a table: modules, small modules with a single importer, lines per function (docstring subtracted), names that
several modules define, and phrases that `scripts/check_words.py` forbids.
"""

import ast
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from check_words import PHRASES

FULL_LINES = 60
"""A module with fewer lines and a single importer counts as small."""


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "geograft").resolve()
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
    modules = [path for path in trees if path.name != "__init__.py"]
    names = {path: _dotted(path, folder) for path in trees}
    importers = {path: sum(names[path] in _imports(tree) for tree in trees.values()) for path in modules}
    small = [path for path in modules if _lines(path) < FULL_LINES and importers[path] == 1]
    lengths = sorted(length for tree in trees.values() for length in _function_lengths(tree))
    defined = Counter(name for tree in trees.values() for name in _public_names(tree))
    rows = {
        "modules outside __init__": len(modules),
        f"of them under {FULL_LINES} lines with one importer": len(small),
        "lines in all": sum(map(_lines, trees)),
        "functions": len(lengths),
        "lines per function, median": statistics.median(lengths),
        "lines per function, 95th percentile": lengths[int(0.95 * len(lengths))],
        "public names defined in several modules": sum(count > 1 for count in defined.values()),
        "forbidden phrases": sum(_phrases(path) for path in trees),
    }
    for what, value in rows.items():
        print(f"{what:45} {value:g}")
    print("defined most often:", ", ".join(f"{name} {count}" for name, count in defined.most_common(8)))


def _dotted(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _imports(tree: ast.Module) -> set[str]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {f"{node.module}" for node in nodes} | {f"{node.module}.{a.name}" for node in nodes for a in node.names}


def _function_lengths(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def _public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_"))


def _phrases(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(
        bool(re.search(phrase, line, re.IGNORECASE if phrase.islower() else 0)) for line in lines for phrase in PHRASES
    )


if __name__ == "__main__":
    main()
