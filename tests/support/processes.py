"""Child processes that kill themselves at a given point."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any


class Fuse:
    """Kills the process at the `length`-th call of `burn`."""

    def __init__(self, length: int) -> None:
        self.left = length

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run_in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return the signal that ended it, 0 for a normal exit."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_at(owner: type, name: str, length: int, after: bool = False) -> Callable[[], None]:
    """Return what arms a fuse on the moments before or after a method is called."""

    def arm() -> None:
        fuse, method = Fuse(length), getattr(owner, name)

        def burning(*args: Any, **options: Any) -> Any:
            if not after:
                fuse.burn()
            result = method(*args, **options)
            if after:
                fuse.burn()
            return result

        setattr(owner, name, burning)

    return arm
