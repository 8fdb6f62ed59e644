"""Store the parts of open regions row of blocks by row of blocks, and read them back when a region ends.

A row stores, for each region that continues below it, the parts that lie in the row, and the indices of the regions of
the row above that it continues. Nothing is stored twice, and the order of the parts, which the order of an outline's
vertices depends on, is that in which they were merged.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import shapely
from jaxtyping import Int64
from numpy import ndarray
from shapely import Polygon

from geograft.mapping.polygons.ledger import LazyArrays
from geograft.mapping.polygons.shapes import concatenate_points, pack_wkb, split_points, unpack_wkb

GROUP_BYTES = 2**20
"""Regions are stored in groups of about this size, and read by group."""
GROUP_ARRAYS = ("wkb", "wkb_ends", "part_ends", "turns", "turn_ends", "nodes", "node_ends")
"""Names of the arrays of a group."""
PART = -1
"""Stands for a part in a list of references to regions."""

RowReader = Callable[[int], AbstractContextManager[LazyArrays | Mapping[str, ndarray]]]
"""Returns the arrays of `pack_parts` for the row of blocks that is `number` rows above the present one; 1 is next."""


@dataclass
class OpenParts:
    """The parts of an open region, and the corners near them."""

    items: list["Polygon | int | OpenParts"]
    """In the order in which they were merged: parts, and regions of the row of blocks above, as indices until read."""
    turns: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)
    nodes: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)

    def extend(self, other: "OpenParts") -> None:
        """Append the content of `other`."""
        self.items.extend(other.items)
        self.turns.extend(other.turns)
        self.nodes.extend(other.nodes)

    def polygons(self) -> list[Polygon]:
        """Return all parts in the order in which they were merged; call `load_parts` before."""
        found, waiting = [], [iter(self.items)]
        while waiting:
            item = next(waiting[-1], None)
            if item is None:
                waiting.pop()
            elif isinstance(item, OpenParts):
                waiting.append(iter(item.items))
            elif isinstance(item, Polygon):
                found.append(item)
        return found

    def corners(self) -> tuple[list[ndarray], list[ndarray]]:
        """Return the arrays of turns and the arrays of nodes of all rows; call `load_parts` before."""
        found: tuple[list[ndarray], list[ndarray]] = ([], [])
        waiting = [self]
        while waiting:
            parts = waiting.pop()
            found[0].extend(parts.turns)
            found[1].extend(parts.nodes)
            waiting += [item for item in parts.items if isinstance(item, OpenParts)]
        return found


def pack_parts(regions: Sequence[OpenParts]) -> dict[str, ndarray]:
    """Return the parts of open regions as arrays. Region i of the row is then `OpenParts([i])` for the row below."""
    items = [PART if isinstance(item, Polygon) else item for region in regions for item in region.items]
    own = [[item for item in region.items if isinstance(item, Polygon)] for region in regions]
    sizes = np.array([16 * shapely.get_num_coordinates(np.array(parts, object)).sum() for parts in own], np.int64)
    groups = np.cumsum(sizes) // GROUP_BYTES
    arrays = {
        "open_items": np.array(items, np.int64),
        "open_item_ends": np.cumsum([len(region.items) for region in regions], dtype=np.int64),
        "open_groups": groups,
    }
    for group in np.unique(groups).tolist():
        first, last = np.searchsorted(groups, [group, group + 1])
        wkb, wkb_ends = pack_wkb([part for parts in own[first:last] for part in parts])
        turns, turn_ends = concatenate_points([region.turns for region in regions[first:last]])
        nodes, node_ends = concatenate_points([region.nodes for region in regions[first:last]])
        part_ends = np.cumsum([len(parts) for parts in own[first:last]], dtype=np.int64)
        named = {"wkb": wkb, "wkb_ends": wkb_ends, "part_ends": part_ends}
        named |= {"turns": turns, "turn_ends": turn_ends, "nodes": nodes, "node_ends": node_ends}
        arrays |= {f"open_{group}_{name}": array for name, array in named.items()}
    return arrays


def load_parts(regions: Sequence[OpenParts], read_row: RowReader) -> None:
    """Replace the references of `regions` to the rows above by what these store, up to the first row of each."""
    level, above = regions, 0
    while references := [(parts, i) for parts in level for i, item in enumerate(parts.items) if isinstance(item, int)]:
        above += 1
        with read_row(above) as arrays:
            level = _unpack(arrays, [parts.items[i] for parts, i in references])  # type: ignore[misc]
        for (parts, i), found in zip(references, level, strict=True):
            parts.items[i] = found


def _unpack(arrays: LazyArrays | Mapping[str, ndarray], wanted: Sequence[int]) -> list[OpenParts]:
    """Return the regions with these indices."""
    items, ends, groups = arrays["open_items"], arrays["open_item_ends"], arrays["open_groups"]
    starts = np.concatenate([[0], ends])
    found: dict[int, OpenParts] = {}
    for group in np.unique(groups[wanted]).tolist():
        stored = {name: arrays[f"open_{group}_{name}"] for name in GROUP_ARRAYS}
        shapes = np.split(unpack_wkb(stored["wkb"], stored["wkb_ends"]), stored["part_ends"][:-1])
        corners = [split_points(stored[f"{side}s"], stored[f"{side}_ends"]) for side in ("turn", "node")]
        first = int(np.searchsorted(groups, group))
        for region in (region for region in wanted if groups[region] == group):
            own = iter(shapes[region - first])
            listed = items[starts[region] : ends[region]].tolist()
            mixed = [next(own) if item == PART else item for item in listed]
            found[region] = OpenParts(mixed, *([side[region - first]] for side in corners))
    return [found[region] for region in wanted]
