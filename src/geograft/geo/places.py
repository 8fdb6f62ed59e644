"""Which of many windows lie at a place, without asking each of them."""

from collections.abc import Sequence

import numpy as np
import shapely
from shapely import STRtree

from geograft.geo.grid import Window


class Places:
    """Windows of one grid in a fixed order, found by where they lie; asking thousands costs microseconds."""

    def __init__(self, windows: Sequence[Window]) -> None:
        edges = np.array([(w.col, w.row, w.stop_col, w.stop_row) for w in windows], float).reshape(-1, 4)
        self._tree = STRtree(shapely.box(*edges.T))

    def near(self, window: Window) -> list[int]:
        """Return the positions of all windows that share a pixel with `window`, ascending."""
        # Boxes that only touch are found too; half a pixel less leaves them out.
        box = shapely.box(window.col + 0.5, window.row + 0.5, window.stop_col - 0.5, window.stop_row - 0.5)
        return sorted(self._tree.query(box).tolist())
