"""The import graph of the benchmarks' own modules."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def imported_modules(source: str) -> set[str]:
    """Return the modules that a source imports, those that its functions import included."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_benchmarks_import_each_other_without_a_cycle() -> None:
    paths = {path.stem: path for path in BENCHMARKS.glob("*.py")}
    graph = {name: imported_modules(path.read_text(encoding="utf-8")) & paths.keys() for name, path in paths.items()}
    assert "trainees" in graph["learners"]
    # Raises CycleError, which names the cycle.
    assert set(TopologicalSorter(graph).static_order()) == set(paths)


def test_imports_inside_functions_count() -> None:
    assert imported_modules("import a\n\ndef f():\n    from b import c\n    import d.e") == {"a", "b", "d.e"}
