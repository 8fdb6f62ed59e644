"""Run commands that get a signal at a given call of a method. Run by tests/test_interrupts.py.

    python -m tests.support.interrupt_train

Reads a line of JSON per command: [SIGNAL, [MODULE, CLASS, METHOD, CALL, before|after], [ARGUMENT, ...]]. The signal is
sent before or after the CALL-th call of the method; with an empty CLASS, of a function of the module. Prints a line of
JSON with the exit code and the text on stderr. Each command has a forked process, since Python and torch take longer to
start than the commands.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from fuzz_inputs import run_command


@contextmanager
def send_at(owner: Any, name: str, call: int, number: int, after: bool) -> Iterator[None]:
    """Make a method send a signal to its process at its `call`-th call, within the block."""
    method, calls = getattr(owner, name), 0

    def signalling(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), number)
        result = method(*args, **options)
        if calls == call and after:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, signalling)
    try:
        yield
    finally:
        setattr(owner, name, method)


def interrupted(number: int, moment: Sequence[str], arguments: Sequence[str]) -> tuple[int, str]:
    """Return exit code and stderr of a command that gets a signal."""
    module, owner, name, call, when = moment
    found = import_module(module)
    with send_at(getattr(found, owner) if owner else found, name, int(call), number, when == "after"):
        outcome = run_command(arguments, Path.cwd(), limit_s=600)
    return outcome.code, outcome.stderr


if __name__ == "__main__":
    for command in ("train", "predict", "polygons", "prepare"):
        import_module(f"geograft.commands.{command}")
    for line in sys.stdin:
        sys.stdout.write(json.dumps(interrupted(*json.loads(line))) + "\n")
        sys.stdout.flush()
