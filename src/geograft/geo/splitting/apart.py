"""Tiles that share no pixel, and which unit of the split each belongs to."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.geo.coverage import Placed
from geograft.geo.grid import Window
from geograft.geo.splitting.units import units_of
from geograft.geo.tilesets.tileset import Split, TileSet


def apart(tiles: Sequence[Placed]) -> list[int]:
    """Return the positions of tiles of which no two share a pixel: each that lies apart from those taken before it.

    Time and memory follow the number of tiles.
    """
    edge = max((max(window.height, window.width) for _, window in tiles), default=1)
    taken: dict[tuple[str, int, int], list[Window]] = defaultdict(list)
    found = []
    for position, (scene, window) in enumerate(tiles):
        row, col = window.row // edge, window.col // edge
        near = (taken.get((scene, row + i, col + j), ()) for i, j in product((-1, 0, 1), repeat=2))
        if any(window.overlap(other) for some in near for other in some):
            continue
        taken[scene, row, col].append(window)
        found.append(position)
    return found


def sampled_apart(tile_set: TileSet, split: Split, most: int) -> tuple[list[int], Int64[ndarray, " n"]]:
    """Return positions of at most `most` tiles of a split that share no pixel, and the number of the unit of each.

    Of more a random choice, the same one every time. Units are those that the split moved whole: see `units`.
    """
    positions = apart([(tile.scene, tile.window) for tile in tile_set.split(split)])
    if len(positions) > most:
        positions = sorted(np.random.default_rng(0).choice(positions, most, replace=False).tolist())
    units = units_of(tile_set, split)
    names = [units.cells[units.cell_of[position]].unit for position in positions]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return positions, np.array([number[name] for name in names], np.int64)
