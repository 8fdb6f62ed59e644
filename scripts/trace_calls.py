"""Count the calls between modules while a command runs: how far a reader has to jump to follow it.

    python scripts/trace_calls.py PACKAGE COMMAND [ARGUMENT ...]
    python scripts/trace_calls.py geograft predict RUN scene.tif --out map.tif

Runs the command of the package (geograft, or an earlier version of it on PYTHONPATH) in this process, and prints the
number of its modules and functions that run, and of distinct calls from a function of one module to one of another.
"""

import sys
import threading
from importlib import import_module
from types import FrameType
from typing import Any


def main() -> None:
    """Run the command and print the counts."""
    package, words = sys.argv[1], sys.argv[2:]
    functions: set[tuple[str, str]] = set()
    crossings: set[tuple[tuple[str, str], tuple[str, str]]] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not (callee := _function(frame, package)):
            return
        functions.add(callee)
        caller = next((found for each in _callers(frame) if (found := _function(each, package))), None)
        if caller and caller[0] != callee[0]:
            crossings.add((caller, callee))

    command = import_module(f"{package}.cli").main
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        command(words)
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    modules = {module for module, _ in functions}
    print(f"modules {len(modules)}, functions {len(functions)}, calls between modules {len(crossings)}")


def _function(frame: FrameType, package: str) -> tuple[str, str] | None:
    module = str(frame.f_globals.get("__name__", ""))
    name = frame.f_code.co_qualname
    return (module, name) if module.startswith(f"{package}.") and not name.startswith("<") else None


def _callers(frame: FrameType) -> Any:
    while frame.f_back:
        frame = frame.f_back
        yield frame


if __name__ == "__main__":
    main()
