"""Train a small network, killed by SIGKILL at each moment worth trying, then resumed. Run by test_loop.py.

    python -m tests.support.kill_train FOLDER

Every run is a forked process of its own. FOLDER/whole is not interrupted; FOLDER/<moment> is. Prints a line a moment:
its name, the signal that ended the run, how many epochs were finished and how many steps of the next were saved.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from geograft.config import TrainConfig
from geograft.files import complete_update
from geograft.training import loader
from geograft.training.checkpoint import STATE
from geograft.training.loop import fit
from tests.support.processes import Fuse, run_in_child
from tests.support.training import Tile, TinyNetwork, blocks, training_data

CONFIG = TrainConfig(
    epochs=2,
    batch_size=4,
    augment="colour",
    decoder_lr=3e-3,
    encoder_lr=1e-3,
    save_minutes=1e-9,
    workers=0,
    device="cpu",
)


class Tiles(list[Tile]):
    fuse = Fuse(-1)

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        self.fuse.burn()
        return super().__getitem__(index)


def killed_while_reading(length: int) -> Callable[[], None]:
    def arm() -> None:
        Tiles.fuse = Fuse(length)

    return arm


def killed_at_file(length: int, after: bool) -> Callable[[], None]:
    """Return what arms a fuse on the moment before or after a finished file takes its place."""

    def arm() -> None:
        fuse, replace = Fuse(length), os.replace

        def burning(source: Path, target: Path) -> None:
            if after:
                replace(source, target)
            fuse.burn()
            if not after:
                replace(source, target)

        os.replace = burning  # type: ignore[assignment]

    return arm


def train(folder: Path, resume: bool = False) -> None:
    # Inverted validation labels, so that the first epoch is the best and the last is not.
    inverted = [(image, np.where(label == 255, label, 1 - label)) for image, label in blocks(5, 1)]
    data = training_data(train=Tiles(blocks(18, 0)), val=Tiles(inverted))
    # The global seed must not matter, because a resumed process has another history than the killed one.
    torch.manual_seed(int(resume) + 5)
    fit(TinyNetwork(), data, CONFIG, folder, resume=resume)


def try_moment(folder: Path, arm: Callable[[], None]) -> str:
    """Kill a run, resume it to the end, and return the signal and the progress at the kill."""
    folder.mkdir()

    def doomed() -> None:
        arm()
        train(folder)

    ended_by = run_in_child(doomed)
    complete_update(folder)
    progress = torch.load(folder / STATE, weights_only=True)["progress"]
    assert run_in_child(lambda: train(folder, resume=True)) == 0
    return f"{folder.name} {ended_by} {progress['epoch']} {progress['step']}"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # Tiles are read in every epoch, to be killed at any of these reads.
    loader.CACHE_BYTES = 0
    (folder / "whole").mkdir()
    assert run_in_child(lambda: train(folder / "whole")) == 0
    # An epoch reads 18 + 5 tiles. It saves 5 times in between, with 3 renames each: the file, the commit, and into
    # place. At its end it writes 4 files, commits them with rename 20, and moves them into place.
    moments = {f"read-{n}": killed_while_reading(n) for n in (5, 11, 18, 19, 24, 30)}
    moments |= {f"before-file-{n}": killed_at_file(n, after=False) for n in (5, 16, 19, 20, 21, 22, 24, 40)}
    moments |= {f"after-file-{n}": killed_at_file(n, after=True) for n in (2, 3, 19, 20, 21, 23, 24)}
    for name, arm in moments.items():
        sys.stdout.write(try_moment(folder / name, arm) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
