"""Run a command and send its process a signal at a given call of a method. Run by tests/test_interrupts.py.

    python -m tests.support.interrupt_train SIGNAL MODULE CLASS METHOD CALL before|after ARGUMENT ...

The signal is sent before or after the CALL-th call of the method; with an empty CLASS, of a function of the module.
Exits as the command does.
"""

import os
import sys
from importlib import import_module
from typing import Any

from geograft.cli import main


def send_at(owner: Any, name: str, call: int, number: int, after: bool) -> None:
    """Make a method send a signal to this process at its `call`-th call."""
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


if __name__ == "__main__":
    number, module, owner, name, call, moment, *arguments = sys.argv[1:]
    found = import_module(module)
    send_at(getattr(found, owner) if owner else found, name, int(call), int(number), moment == "after")
    main(arguments)
