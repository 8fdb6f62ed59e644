"""Two processes of this machine, as torchrun would start them, forked after the imports, which take the most time.

    python -m tests.support.forked_ranks TILES RUN RECIPE

First both train a run. Then one of two is silent for longer than `PATIENCE`, and what the other says of it is printed.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from geograft.commands.train import train
from geograft.config import TrainConfig, load_recipe
from geograft.errors import ProcessLostError
from geograft.training import distributed
from tests.support.processes import run_in_child


def fork_ranks(work: Callable[[], object]) -> None:
    """Run `work` as rank 0 and as rank 1 of two."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= shared | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
    other = os.fork()
    if other == 0:
        work()
        os._exit(0)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    assert run_in_child(work) == 0
    os.waitpid(other, 0)


def meet_late(group: distributed.ProcessGroup) -> None:
    if group.rank == 1:
        time.sleep(6)
    group.all_max(0)


def wait_for_silent_rank() -> None:
    distributed.PATIENCE = timedelta(seconds=3)
    began = time.monotonic()
    try:
        distributed.launch(TrainConfig(devices=2, device="cpu"), meet_late)
    except ProcessLostError as error:
        if os.environ["RANK"] == "0":
            sys.stdout.write(f"after {time.monotonic() - began:.0f} s: {error}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    tiles, run, recipe = sys.argv[1:]
    torch.set_num_threads(1)
    fork_ranks(lambda: train(tiles, run, load_recipe(recipe)))
    fork_ranks(wait_for_silent_rank)
