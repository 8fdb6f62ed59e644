"""Test what a change affects: run by `make quick` after lint and types.

    python scripts/quick.py [REVISION]

Modules that differ from REVISION (default HEAD) and modules that import one of them are affected. Runs the test files
that differ, those that import a module that differs, and those named after an affected module
(tests/geo/test_grid*.py for geograft/geo/grid.py), without tests marked as slow. `make test` runs everything.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"src": ROOT / "src", "tests": ROOT, "benchmarks": ROOT / "benchmarks"}
"""Where the names of the modules in each folder start."""


def changed_files(revision: str) -> set[Path]:
    """Return the files that differ from a revision, new ones included."""
    commands = (["diff", "--name-only", revision], ["ls-files", "--others", "--exclude-standard"])
    listed = [
        subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True) for command in commands
    ]
    return {ROOT / name for result in listed for name in result.stdout.splitlines()}


def modules() -> dict[Path, str]:
    """Return the dotted name of every Python file of the package, its tests and benchmarks."""
    return {
        path: ".".join(path.relative_to(start).with_suffix("").parts).removesuffix(".__init__")
        for folder, start in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    """Return the names of what a file imports: modules, and members of modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def selected_tests(changed: set[Path]) -> list[Path]:
    """Return the test files to run for a set of changed files."""
    names = modules()
    imported = {path: imports(path) for path in names}
    differing = {names[path] for path in changed if path in names}
    affected = {path for path in names if path in changed or imported[path] & differing}
    tests = {path for path in affected if path.name.startswith("test_")}
    for path in affected:
        if path.is_relative_to(ROOT / "src" / "geograft"):
            mirror = ROOT / "tests" / path.parent.relative_to(ROOT / "src" / "geograft")
            tests |= set(mirror.glob(f"test_{path.stem}*.py"))
    return sorted(tests)


def main() -> int:
    """Run the selected tests and return pytest's exit code; 0 if there are none."""
    tests = selected_tests(changed_files(sys.argv[1] if len(sys.argv) > 1 else "HEAD"))
    print(f"{len(tests)} test files: {' '.join(str(path.relative_to(ROOT)) for path in tests)}", flush=True)
    if not tests:
        return 0
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow", *map(str, tests)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
