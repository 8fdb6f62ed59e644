"""Windows near training tiles, at any place and not on their grid, that hold training ground alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.geo.coverage import NONE, Placed, areas, boxes_of, covered_pixels
from geograft.geo.grid import Window

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Crops:
    """Training ground: every pixel that a training tile holds and no validation or test tile does.

    What a split by block leaves as a buffer is in no training tile, and so no training ground.
    """

    scenes: Mapping[str, tuple[int, int]]
    """Rows and columns of each scene."""
    train: Mapping[Key, Int64[ndarray, "_ 4"]]
    """Corners of the training tiles, by scene and square of the scene in which their upper left pixel lies."""
    held: Mapping[Key, Int64[ndarray, "_ 4"]]
    """Corners of the other tiles likewise."""
    edge: int
    """Edge of a square: no tile is longer."""

    @classmethod
    def of(cls, scenes: Mapping[str, tuple[int, int]], train: Sequence[Placed], held: Sequence[Placed]) -> "Crops":
        """Return the training ground between `train` and `held`. Time and memory follow the number of tiles."""
        edge = max((max(window.height, window.width) for _, window in (*train, *held)), default=1)
        return cls(scenes, _by_square(train, edge), _by_square(held, edge), edge)

    def drawn(self, scene: str, window: Window, rng: np.random.Generator) -> Window:
        """Return a window of training ground, at most half a tile from `window` either way.

        The window goes by a random number of rows and columns, to the scene's edge at the most. Where that is not all
        training ground it goes half as far, and again; a training tile itself at the worst.
        """
        height, width = self.scenes[scene]
        reach = window.height // 2, window.width // 2
        down, right = (int(rng.integers(-length, length + 1)) for length in reach)
        while down or right:
            moved = Window(
                min(max(window.row + down, 0), height - window.height),
                min(max(window.col + right, 0), width - window.width),
                window.height,
                window.width,
            )
            if self.holds(scene, moved):
                return moved
            down, right = int(down / 2), int(right / 2)
        return window

    def holds(self, scene: str, window: Window) -> bool:
        """Return whether every pixel of `window` is training ground. A window may be no longer than a tile."""
        box = boxes_of([window])
        train, held = (self._near(corners, scene, window) for corners in (self.train, self.held))
        return bool((covered_pixels(box, train) == areas(box)).all() and not covered_pixels(box, held).any())

    def _near(self, corners: Mapping[Key, Int64[ndarray, "_ 4"]], scene: str, window: Window) -> Int64[ndarray, "_ 4"]:
        rows = range((window.row - self.edge) // self.edge, (window.stop_row - 1) // self.edge + 1)
        cols = range((window.col - self.edge) // self.edge, (window.stop_col - 1) // self.edge + 1)
        found = [corners[scene, row, col] for row in rows for col in cols if (scene, row, col) in corners]
        return np.concatenate(found) if found else NONE


def _by_square(tiles: Iterable[Placed], edge: int) -> dict[Key, Int64[ndarray, "_ 4"]]:
    found: dict[Key, list[Window]] = defaultdict(list)
    for scene, window in dict.fromkeys(tiles):
        found[scene, window.row // edge, window.col // edge].append(window)
    return {key: boxes_of(windows) for key, windows in found.items()}
