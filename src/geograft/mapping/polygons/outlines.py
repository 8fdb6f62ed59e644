"""Turn regions into polygons: fill holes, drop small ones, simplify, smooth, orthogonalize and measure.

Regions inside a filled hole are dropped when the polygons are written, since a hole may be completed later than they.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64, UInt8
from numpy import ndarray

from geograft.config import PolygonConfig
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import areas_and_perimeters, central_pixel_size_m, pixel_size_m
from geograft.mapping.polygons.arcs import point_keys
from geograft.mapping.polygons.ledger import RowReader
from geograft.mapping.polygons.regions import BLOCK_PX, ClassMapSource, FinishedRegions, RegionMerger, finish_row
from geograft.mapping.polygons.shapes import as_array, assemble_shapes, pack_wkb
from geograft.mapping.polygons.simplify import (
    LEFT,
    SQUARE_PX,
    orthogonalize_simplest,
    reach_px,
    simplify_and_smooth,
)


def fill_holes(
    shapes: ndarray, small: Callable[[ndarray], Bool[ndarray, " n"]], connectivity: int
) -> tuple[ndarray, ndarray]:
    """Return (n,) polygons along pixel edges without their small holes, and the filled holes as polygons.

    `small` returns which polygons are small. With `connectivity` 8, a hole that touches another ring of its region at a
    corner is kept, because a region inside it may continue through that corner.
    """
    if not len(shapes):
        return shapes, shapes
    polygons, shape_of = shapely.get_parts(shapes, return_index=True)
    rings, polygon_of = shapely.get_rings(polygons, return_index=True)
    hole = np.concatenate([[False], polygon_of[1:] == polygon_of[:-1]])
    fill = hole.copy()
    fill[hole] = small(shapely.polygons(rings[hole]))
    if connectivity == 8:
        fill &= ~_touching(rings, shape_of[polygon_of])
    if not fill.any():
        return shapes, rings[:0]
    return assemble_shapes(rings[~fill], polygon_of[~fill], shape_of, len(shapes)), shapely.polygons(rings[fill])


def first_pixels(shapes: ndarray) -> Int64[ndarray, "n 2"]:
    """Return the first pixel in row-major order, (column, row), of each polygon along pixel edges."""
    polygons, shape_of = shapely.get_parts(shapes, return_index=True)
    points, polygon_of = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
    owner = shape_of[polygon_of]
    order = np.lexsort((points[:, 0], points[:, 1], owner))
    _, first = np.unique(owner[order], return_index=True)
    return points[order[first]].astype(np.int64).reshape(-1, 2)


def inside_holes(pixels: Int64[ndarray, "n 2"], holes: ndarray) -> Bool[ndarray, " n"]:
    """Return which regions, given by their first pixels, lie in one of the filled holes."""
    found = np.zeros(len(pixels), bool)
    found[shapely.STRtree(holes).query(shapely.points(pixels + 0.5), predicate="intersects")[0]] = True
    return found


def _touching(rings: ndarray, shape_of: Int64[ndarray, " r"]) -> Bool[ndarray, " r"]:
    """Return which rings share a corner with another ring of their shape."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    met = np.unique(np.stack([shape_of[ring], point_keys(points), ring], axis=1), axis=0)
    _, place, count = np.unique(met[:, :2], axis=0, return_inverse=True, return_counts=True)
    touching = np.zeros(len(rings), bool)
    touching[met[count[place.ravel()] > 1, 2]] = True
    return touching


Columns = dict[str, ndarray]
COLUMNS = ("value", "area", "perimeter", "sums", "first", "forms", "shapes")
"""Names of the arrays with an entry for each polygon."""
MAX_TOLERANCE_PX = 100
"""Maximum simplification tolerance in pixels: memory and time per corner grow with its square."""


@dataclass(frozen=True)
class PolygonBuilder:
    """Builds the polygons of a map on `grid`."""

    grid: Grid
    settings: PolygonConfig

    @property
    def tolerance_px(self) -> float:
        """Simplification tolerance in pixels."""
        if self.settings.square and not self.settings.simplify_m:
            return SQUARE_PX
        return self.settings.simplify_m / max(central_pixel_size_m(self.grid))

    def check_tolerance(self) -> None:
        """Raise SettingError if the simplification tolerance is above MAX_TOLERANCE_PX."""
        if self.tolerance_px > MAX_TOLERANCE_PX:
            limit = self.settings.simplify_m * MAX_TOLERANCE_PX / self.tolerance_px
            raise SettingError(
                f"--simplify-m {self.settings.simplify_m:g} is {self.tolerance_px:,.6g} pixels of the map; "
                f"at most {MAX_TOLERANCE_PX} are possible. Give at most {limit:.6g}."
            )

    @property
    def reach_px(self) -> int:
        """Distance from a region within which simplification and smoothing need all corners, in pixels."""
        return reach_px(self.tolerance_px, self.settings.smooth)

    def merger(self, state: Mapping[str, ndarray] | None, read_row: RowReader) -> RegionMerger:
        """Return a region merger with the open regions of `state`, or with none; `read_row` reads stored parts."""
        merger = RegionMerger(self.grid.width, self.settings.connectivity, self.reach_px, read_row)
        if state is not None:
            merger.load_state(state)
        return merger

    def polygons_of_row(self, source: ClassMapSource, merger: RegionMerger, row: Window) -> Columns:
        """Return the polygons that end in a row of blocks as arrays: see `pack_row`.

        Those inside blocks come block by block, then those that cross borders of blocks by their first pixels.
        """
        batches = [self.columns(found) for found in finish_row(source, merger, row, BLOCK_PX, self.reach_px)]
        return pack_row([*batches[:-1], sort_by_first(batches[-1])])

    def columns(self, found: FinishedRegions) -> Columns:
        """Return the value, area, perimeter, pixel sums, first pixel, form and shape (in pixels) of each polygon.

        Also the filled holes (in pixels), and how many polygons were left out as too small.
        """
        shapes, holes = self._filled(as_array(region.shape for region in found.regions))
        large = self._large(shapes)
        regions = [region for region, kept in zip(found.regions, large, strict=True) if kept]
        first, outlines = first_pixels(shapes[large]), shapes[large]
        shapes = simplify_and_smooth(outlines, found.corners, self.tolerance_px, self.settings.smooth)
        forms = np.full(len(shapes), LEFT, np.uint8)
        if self.settings.square:
            shapes, forms = self._squared(outlines, shapes)
        areas, perimeters = areas_and_perimeters(shapes, self.grid)
        _check_measurable(areas, first)
        return {
            "value": np.array([region.value for region in regions], np.int64),
            "area": areas,
            "perimeter": perimeters,
            "sums": np.array([region.sums for region in regions], np.int64).reshape(-1, 3),
            "first": first,
            "forms": forms,
            "shapes": shapes,
            "holes": holes,
            "left_out": np.array(len(large) - large.sum()),
        }

    def _squared(self, outlines: ndarray, simplified: ndarray) -> tuple[ndarray, UInt8[ndarray, " n"]]:
        """Return the orthogonalized polygons, and what became of each: see `LEFT`."""
        # An explicit tolerance is kept to.
        outlines = simplified if self.settings.simplify_m else outlines
        pairs = [
            orthogonalize_simplest(*pair, self._aspect(pair[0])) for pair in zip(outlines, simplified, strict=True)
        ]
        return as_array(shape for shape, _ in pairs), np.array([form for _, form in pairs], np.uint8)

    def _filled(self, shapes: ndarray) -> tuple[ndarray, ndarray]:
        if not self.settings.fill_holes_m2:
            return shapes, shapes[:0]
        return fill_holes(
            shapes, lambda holes: ~self._at_least(holes, self.settings.fill_holes_m2), self.settings.connectivity
        )

    def _large(self, shapes: ndarray) -> Bool[ndarray, " n"]:
        return self._at_least(shapes, self.settings.min_area_m2)

    def _at_least(self, shapes: ndarray, area: float | None) -> Bool[ndarray, " n"]:
        if not area or not len(shapes):
            return np.ones(len(shapes), bool)
        areas = areas_and_perimeters(shapes, self.grid)[0]
        _check_measurable(areas, first_pixels(shapes))
        return areas >= area

    def _aspect(self, shape: shapely.Geometry) -> float:
        left, top, right, bottom = shapely.bounds(shape)
        across, down = pixel_size_m(self.grid, (left + right) / 2, (top + bottom) / 2)
        _check_measurable(np.array([down / across]), first_pixels(as_array([shape])))
        return down / across


def _check_measurable(values: Float64[ndarray, " n"], first: Int64[ndarray, "n 2"]) -> None:
    """Raise InputError if a polygon has no finite area; `first` are the first pixels of the polygons."""
    if not np.isfinite(values).all():
        col, row = first[~np.isfinite(values)][0]
        raise InputError(
            f"The polygon at row {row}, column {col} of the map has no finite area: it lies outside the area of the "
            "map's projection. Correct the map's CRS or transform, or crop the map."
        )


def sort_by_first(columns: Columns) -> Columns:
    """Return the polygons of `PolygonBuilder.columns` in the order of their first pixels, row by row."""
    order = np.lexsort(columns["first"].T)
    return columns | {name: columns[name][order] for name in COLUMNS}


def concatenate_columns(batches: Sequence[Columns]) -> Columns:
    """Return the polygons of several outputs of `PolygonBuilder.columns`, at least one, as one."""
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in (*COLUMNS, "holes")}
    return columns | {"left_out": np.array(sum(int(batch["left_out"]) for batch in batches))}


def pack_row(batches: Sequence[Columns]) -> Columns:
    """Return the polygons that end in a row of blocks as plain arrays: shapes as WKB, and filled holes by row."""
    columns = concatenate_columns(batches)
    holes, (content, ends) = columns.pop("holes"), pack_wkb(columns.pop("shapes"))
    return {**columns, "wkb": content, "wkb_ends": ends, **_holes_by_row(holes)}


def _holes_by_row(holes: ndarray) -> Columns:
    """Return the filled holes as WKB, by each row of blocks that they intersect."""
    columns: Columns = {}
    bounds = shapely.bounds(holes).reshape(-1, 4)
    starts, stops = bounds[:, 1] // BLOCK_PX, np.ceil(bounds[:, 3] / BLOCK_PX)
    for row in range(int(starts.min(initial=0)), int(stops.max(initial=0))):
        here = (starts <= row) & (row < stops)
        if here.any():
            columns[f"holes_{row}"], columns[f"holes_{row}_ends"] = pack_wkb(holes[here])
    return columns
