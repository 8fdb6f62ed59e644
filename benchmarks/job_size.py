"""What the map of a raster consists of, by counting: windows, pixels read, blocks, pixels written, requests."""

from dataclasses import dataclass

from geograft.mapping.batches import CHUNK_TILES
from geograft.mapping.units import UnitGrid, plan_units
from geograft.mapping.windows import Lanes, TileGrid
from rasters import BLOCK


@dataclass(frozen=True)
class JobSize:
    """The size of the map of a square raster by workers, summed over its units."""

    units: int
    unit_px: int
    windows: int
    window_px: int
    """Pixels of all windows."""
    blocks: int
    """Blocks of the raster that the windows of a unit touch."""
    unit_rows: int
    """Rows of blocks that a unit touches."""
    chunk_rows: int
    """Rows of blocks that each group of windows touches which is read with one call."""
    output_px: int

    @property
    def block_px(self) -> int:
        """Pixels of the blocks."""
        return self.blocks * BLOCK**2


def count_job(side: int, window_px: int, overlap_px: int) -> JobSize:
    """Return the size of the map of a raster of `side` x `side` pixels."""
    tiles = TileGrid(side, side, window_px, overlap_px / window_px)
    units = plan_units(tiles)
    # Rows and columns of a unit are independent: each is counted once for all units that share it.
    rows = [_along(tiles, units, index, by_row=True) for index in range(units.rows)]
    columns = [_along(tiles, units, index, by_row=False) for index in range(units.columns)]
    wide, across = sum(each.windows for each in columns), sum(each.blocks for each in columns)
    return JobSize(
        units=len(units),
        unit_px=units.unit_px,
        windows=sum(each.windows for each in rows) * wide,
        window_px=sum(each.windows for each in rows) * wide * window_px**2,
        blocks=sum(each.blocks for each in rows) * across,
        unit_rows=sum(each.blocks for each in rows) * units.columns,
        chunk_rows=sum(each.blocks for each in rows) * sum(-(-each.windows // CHUNK_TILES) for each in columns),
        output_px=side**2,
    )


def count_whole_windows(side: int, window_px: int, overlap_px: int) -> int:
    """Return how many windows one process computes, without units."""
    return len(TileGrid(side, side, window_px, overlap_px / window_px).tops) ** 2


@dataclass(frozen=True)
class _Along:
    """One row or column of units."""

    windows: int
    blocks: int


def _along(tiles: TileGrid, units: UnitGrid, index: int, by_row: bool) -> _Along:
    unit = units.window(index * units.columns if by_row else index)
    lanes = Lanes(tiles, tiles.width, unit)
    begins, length = (tiles.tops, tiles.height) if by_row else (tiles.lefts, tiles.width)
    starts = [begins[place] for place in (lanes.rows if by_row else lanes.columns)]
    return _Along(len(starts), _blocks(starts[0], starts[-1] + tiles.tile_px, length))


def _blocks(start: int, stop: int, length: int) -> int:
    """Return how many blocks the pixels from `start` to `stop` touch, which are cut to those of the raster."""
    return -(-min(stop, length) // BLOCK) - max(start, 0) // BLOCK
