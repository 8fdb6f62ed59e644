"""Units: block-aligned squares of a map that can be computed apart, in any order and by any number of machines.

A unit computes every window that shares a pixel with it, with the positions and weights that the window has in the
whole map, and writes exactly its own pixels. Because windows are added in whole numbers (`geograft.mapping.sums`), the
units of a map are the whole map, to the bit. What they cost more is the halo: windows on the border of two units are
computed twice.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Annotated, TypeAlias

from pydantic import Field

from geograft.errors import SettingError
from geograft.geo.grid import Window
from geograft.geo.rasters.writer import BLOCK_PX
from geograft.mapping.blend import BlendPlan
from geograft.mapping.windows import TileGrid
from geograft.text import pluralise

UNIT_PX, LARGE_UNIT_PX, MIN_UNIT_PX = 8192, 16384, 2048
"""Side of a unit; of one for windows so large that the halo of the first would cost more than MAX_HALO; and the side
that units of small rasters have at least."""
MAX_HALO = 0.1
MIN_UNITS = 16
"""Number of units below which they are made smaller, so that several workers have something to do."""

UNKNOWN_PARTS = 64
"""Assumed number of workers where only a worker's own number is known."""

Side: TypeAlias = Annotated[int, Field(gt=0, lt=2**31)]


@dataclass(frozen=True)
class UnitGrid:
    """The units of a raster of `height` x `width` pixels, row by row. The last ones of a row or column are smaller."""

    height: Side
    width: Side
    unit_px: Side
    """Side of a unit in pixels, a multiple of the block size of maps."""

    @property
    def rows(self) -> int:
        """Number of rows of units."""
        return -(-self.height // self.unit_px)

    @property
    def columns(self) -> int:
        """Number of columns of units."""
        return -(-self.width // self.unit_px)

    def __len__(self) -> int:
        return self.rows * self.columns

    def window(self, index: int) -> Window:
        """Return the pixels of a unit."""
        row, col = (place * self.unit_px for place in divmod(index, self.columns))
        return Window(row, col, min(self.unit_px, self.height - row), min(self.unit_px, self.width - col))

    def name(self, index: int) -> str:
        """Return the name of a unit: its row and column among the units.

        >>> UnitGrid(9000, 30000, 8192).name(5)
        'r00001-c00001'
        """
        row, col = divmod(index, self.columns)
        return f"r{row:05d}-c{col:05d}"

    @property
    def description(self) -> str:
        """The number and size of the units."""
        return f"{len(self):,} units of {self.unit_px:,} x {self.unit_px:,} pixels"

    def __iter__(self) -> Iterator[Window]:
        return (self.window(index) for index in range(len(self)))


Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class SceneUnits:
    """The units of several scenes, such as rasters or the scenes of a tile set, scene by scene."""

    counts: tuple[Count, ...]
    """Number of units of each scene. What they are, the command knows: squares of a raster, or some of its tiles."""

    def __len__(self) -> int:
        return sum(self.counts)

    def place(self, index: int) -> tuple[int, int]:
        """Return the index of a unit's scene, and that of the unit among those of the scene.

        >>> SceneUnits((2, 0, 3)).place(2)
        (2, 0)
        """
        scene = bisect_right(self._ends, index)
        return scene, index - (self._ends[scene] - self.counts[scene])

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.counts))

    def name(self, index: int) -> str:
        """Return the name of a unit.

        >>> SceneUnits((2, 0, 3)).name(4)
        's00002-u00002'
        """
        scene, number = self.place(index)
        return f"s{scene:05d}-u{number:05d}"

    @property
    def description(self) -> str:
        """The number of units and scenes."""
        return f"{pluralise(len(self), 'unit')} of {pluralise(len(self.counts), 'scene')}"


@dataclass(frozen=True)
class JoinTree:
    """The units of a raster, and the joins of each two by two of them, of these, and so on up to the whole raster.

    Both are units of the job. The units of the raster come first, then the joins, level by level.
    """

    base: UnitGrid

    @cached_property
    def levels(self) -> tuple[UnitGrid, ...]:
        """The units of the raster, and the joins of each level, down to one."""
        found = [self.base]
        while len(found[-1]) > 1:
            found.append(replace(found[-1], unit_px=2 * found[-1].unit_px))
        return tuple(found)

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    def place(self, index: int) -> tuple[int, int]:
        """Return the level of a unit, 0 for one of the raster, and its index in that level.

        >>> JoinTree(UnitGrid(3000, 5000, 1024)).place(16), len(JoinTree(UnitGrid(3000, 5000, 1024)))
        ((1, 1), 24)
        """
        level = bisect_right(self._ends, index)
        return level, index - (self._ends[level] - len(self.levels[level]))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.levels)))

    def window(self, index: int) -> Window:
        """Return the pixels of a unit."""
        level, place = self.place(index)
        return self.levels[level].window(place)

    def name(self, index: int) -> str:
        """Return the name of a unit: its row and column in its level.

        >>> JoinTree(UnitGrid(3000, 5000, 1024)).name(16)
        'j1-r00000-c00001'
        """
        level, place = self.place(index)
        return (f"j{level}-" if level else "") + self.levels[level].name(place)

    def joined(self, index: int) -> list[list[int]]:
        """Return the units that a join joins, one to four, row by row; none for a unit of the raster.

        >>> JoinTree(UnitGrid(3000, 5000, 1024)).joined(17)
        [[4], [9]]
        """
        level, place = self.place(index)
        if not level:
            return []
        row, col = (2 * side for side in divmod(place, self.levels[level].columns))
        below, first = self.levels[level - 1], self._ends[level - 1] - len(self.levels[level - 1])
        rows, columns = range(row, min(row + 2, below.rows)), range(col, min(col + 2, below.columns))
        return [[first + above * below.columns + left for left in columns] for above in rows]

    @property
    def description(self) -> str:
        """The number and size of the units."""
        return f"{self.base.description} and {pluralise(len(self) - len(self.base), 'join')}"


def plan_units(tiles: TileGrid, cell_px: int = 1, block_px: int = BLOCK_PX) -> UnitGrid:
    """Return the units of a raster. They depend on its size and its windows alone, never on the number of workers.

    Each consists of whole blocks of `block_px` pixels, by default those of a map's file, and of whole cells of
    `cell_px` pixels.

    >>> [plan_units(TileGrid(side, side, 640, 0.125)).unit_px for side in (3000, 20_000, 40_000, 200_000)]
    [2048, 4096, 8192, 16384]
    >>> plan_units(TileGrid(200_000, 200_000, 224, 0.5)).unit_px, plan_units(TileGrid(9000, 9000, 50, 0.5), 50).unit_px
    (8192, 12800)
    """
    side = UNIT_PX if halo_cost(tiles.tile_px, UNIT_PX) <= MAX_HALO else LARGE_UNIT_PX
    side = unit_side(tiles.height, tiles.width, side)
    step = math.lcm(block_px, cell_px)
    return UnitGrid(tiles.height, tiles.width, max(step, side // step * step))


def unit_side(height: int, width: int, largest_px: int = UNIT_PX) -> int:
    """Return the side of units, at most `largest_px` and halved until there are MIN_UNITS, but at least MIN_UNIT_PX."""
    side = largest_px
    while side > MIN_UNIT_PX and len(UnitGrid(height, width, side)) < MIN_UNITS:
        side //= 2
    return side


def halo_cost(tile_px: int, unit_px: int) -> float:
    """Return how many more windows of `tile_px` pixels units compute than the whole map, as a fraction; on average.

    A window shares pixels with a unit if it begins in the unit or less than its size before.

    >>> f"{halo_cost(224, 8192):.1%}"
    '5.5%'
    """
    return (1 + tile_px / unit_px) ** 2 - 1


def unit_plan(plan: BlendPlan, unit: Window) -> BlendPlan:
    """Return how a unit is computed: the windows of the whole map that share a pixel with it."""
    return replace(plan, lanes=replace(plan.lanes, part=unit))


@dataclass(frozen=True)
class UnitResult:
    """What was computed of one unit."""

    windows: int
    """Windows that were predicted, blocks that were read, or tiles that were scored."""
    pixels: int = 0
    """Mapped or scored pixels."""
    classes: dict[str, int] = field(default_factory=dict)
    """Mapped pixels by class."""
    applicability: tuple[int, int] | None = None
    """Mapped pixels with an index, and those outside the area of applicability; None if it was not requested."""


def parse_part(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return a worker's number, counted from 0, and the number of workers; (0, 1) if neither is known.

    `text` is "i/n", counted from 1. If it is empty, the variables of Slurm's, AWS Batch's and Kubernetes' arrays are
    read; Kubernetes tells no number of workers.

    Raises:
        SettingError: if the text is not of that form.

    >>> parse_part("2/8", {}), parse_part("", {"JOB_COMPLETION_INDEX": "3"})
    ((1, 8), (3, 64))
    >>> parse_part("", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4",
    ...     "SLURM_ARRAY_TASK_STEP": "3"})
    (2, 4)
    """
    if text:
        number, slash, total = text.partition("/")
        if not (slash and number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
            raise SettingError(f"--part {text} is not a part. Give i/n with i from 1 to n, such as --part 2/8.")
        return int(number) - 1, int(total)
    known = {name: int(value) for name, value in environment.items() if name in _ARRAY_VARIABLES and value.isdecimal()}
    for index, first, step, count in _ARRAYS:
        if index in known:
            place = (known[index] - known.get(first, 0)) // max(1, known.get(step, 1))
            workers = max(known.get(count, UNKNOWN_PARTS), 1)
            return max(0, place) % workers, workers
    return 0, 1


_SLURM = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "STEP", "COUNT"))
_ARRAYS = (
    _SLURM,
    ("AWS_BATCH_JOB_ARRAY_INDEX", "", "", "AWS_BATCH_JOB_ARRAY_SIZE"),
    ("JOB_COMPLETION_INDEX", "", "", ""),
)
"""Variables of each engine: index of a task, that of the first one, their step, and their number."""
_ARRAY_VARIABLES = {name for names in _ARRAYS for name in names if name}


def unit_order(units: int, number: int, parts: int) -> list[int]:
    """Return the order in which a worker claims units: its own part first, then those of the following workers.

    The part has every n-th unit, so that the parts of few workers are done evenly, and all workers end together.

    >>> unit_order(7, 1, 3)
    [1, 4, 2, 5, 0, 3, 6]
    """
    return [index for turn in range(parts) for index in range((number + turn) % parts, units, parts)]
