"""Run geograft in one of the processes that torchrun starts; one of them kills itself with SIGKILL.

    torchrun ... -m tests.support.kill_rank RANK STEPS train ...

The process of that rank dies after so many steps.
"""

import os
import sys

from geograft.cli import main
from geograft.training.loop import _Run
from tests.support.processes import killed_at

if __name__ == "__main__":
    rank, steps = sys.argv.pop(1), int(sys.argv.pop(1))
    if os.environ["RANK"] == rank:
        killed_at(_Run, "_end_step", steps, after=True)()
    main()
