"""Holes in regions that are filled, and the regions inside them that give way.

Regions on their way to being polygons: filled, sifted, simplified, smoothed, squared, measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Int64
from numpy import ndarray

from geograft.config import PolygonConfig
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import areas_and_perimeters, central_sides_m, pixel_sides_m
from geograft.mapping.polygons.arcs import keys
from geograft.mapping.polygons.regions import BLOCK_PX, Finished, Seams, Source, finished
from geograft.mapping.polygons.shapes import as_array, assembled, packed
from geograft.mapping.polygons.simplify import eased, reach_px, squared


def filled(
    shapes: ndarray, small: Callable[[ndarray], Bool[ndarray, " n"]], connectivity: int
) -> tuple[ndarray, ndarray]:
    """Return (n,) polygons with edges along pixels without their small holes, and these holes as polygons.

    `small` tells of polygons whether they are. With `connectivity` 8 a hole that touches another ring of its region at
    a corner stays, for what lies in it may go on through that corner.
    """
    if not len(shapes):
        return shapes, shapes
    polygons, shape_of = shapely.get_parts(shapes, return_index=True)
    rings, polygon_of = shapely.get_rings(polygons, return_index=True)
    hole = np.concatenate([[False], polygon_of[1:] == polygon_of[:-1]])
    goes = hole.copy()
    goes[hole] = small(shapely.polygons(rings[hole]))
    if connectivity == 8:
        goes &= ~_touching(rings, shape_of[polygon_of])
    if not goes.any():
        return shapes, rings[:0]
    return assembled(rings[~goes], polygon_of[~goes], shape_of, len(shapes)), shapely.polygons(rings[goes])


def first_pixels(shapes: ndarray) -> Int64[ndarray, "n 2"]:
    """Return the uppermost pixel of each polygon with edges along pixels, the leftmost of several, (column, row)."""
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    order = np.lexsort((points[:, 0], points[:, 1], owner))
    _, first = np.unique(owner[order], return_index=True)
    return points[order[first]].astype(np.int64).reshape(-1, 2)


def swallowed(pixels: Int64[ndarray, "n 2"], holes: ndarray) -> Bool[ndarray, " n"]:
    """Return which regions, given by their first pixels, lie in a filled hole."""
    found = np.zeros(len(pixels), bool)
    found[shapely.STRtree(holes).query(shapely.points(pixels + 0.5), predicate="intersects")[0]] = True
    return found


def _touching(rings: ndarray, shape_of: Int64[ndarray, " r"]) -> Bool[ndarray, " r"]:
    """Return which rings share a corner with another ring of their shape."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    met = np.unique(np.stack([shape_of[ring], keys(points), ring], axis=1), axis=0)
    _, place, count = np.unique(met[:, :2], axis=0, return_inverse=True, return_counts=True)
    touching = np.zeros(len(rings), bool)
    touching[met[count[place.ravel()] > 1, 2]] = True
    return touching


Columns = dict[str, ndarray]


@dataclass(frozen=True)
class Outlines:
    """How regions of a map on `grid` become polygons."""

    grid: Grid
    settings: PolygonConfig

    @property
    def distance_px(self) -> float:
        """How far simplifying may move an outline, in pixels."""
        return self.settings.simplify_m / max(central_sides_m(self.grid))

    @property
    def reach_px(self) -> int:
        """How far around a region simplifying and smoothing look, in pixels."""
        return reach_px(self.distance_px, self.settings.smooth)

    def seams(self, state: Mapping[str, ndarray] | None) -> Seams:
        """Return the regions that go on below a row of blocks; none without a `state`."""
        seams = Seams(self.grid.width, self.settings.connectivity, self.reach_px)
        if state is not None:
            seams.take_up(state)
        return seams

    def of_row(self, source: Source, seams: Seams, row: Window) -> Columns:
        """Return the polygons that end in a row of blocks, as arrays: see `_columns`, shapes packed, and holes."""
        batches = [self._columns(found) for found in finished(source, seams, row, BLOCK_PX, self.reach_px)]
        names = ("value", "area", "perimeter", "sums", "first", "shapes")
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
        left_out = sum(int(batch["left_out"]) for batch in batches)
        holes = np.concatenate([batch["holes"] for batch in batches])
        content, ends = packed(columns.pop("shapes"))
        shapes = {"wkb": content, "wkb_ends": ends, "left_out": np.array(left_out)}
        return {**columns, **shapes, **_holes_by_row(holes)}

    def _columns(self, found: Finished) -> Columns:
        """Return of each polygon: value, area, perimeter, sums over its pixels, its first pixel, shape in pixels."""
        shapes, holes = self._filled(as_array(region.shape for region in found.regions))
        large = self._large(shapes)
        regions = [region for region, kept in zip(found.regions, large, strict=True) if kept]
        first, shapes = first_pixels(shapes[large]), shapes[large]
        shapes = eased(shapes, found.corners, self.distance_px, self.settings.smooth)
        if self.settings.square:
            shapes = as_array(squared(shape, self._aspect(shape)) for shape in shapes)
        areas, perimeters = areas_and_perimeters(shapes, self.grid)
        return {
            "value": np.array([region.value for region in regions], np.int64),
            "area": areas,
            "perimeter": perimeters,
            "sums": np.array([region.sums for region in regions], np.int64).reshape(-1, 3),
            "first": first,
            "shapes": shapes,
            "holes": holes,
            "left_out": np.array(len(large) - large.sum()),
        }

    def _filled(self, shapes: ndarray) -> tuple[ndarray, ndarray]:
        if not self.settings.fill_holes_m2:
            return shapes, shapes[:0]
        return filled(
            shapes, lambda holes: ~self._at_least(holes, self.settings.fill_holes_m2), self.settings.connectivity
        )

    def _large(self, shapes: ndarray) -> Bool[ndarray, " n"]:
        return self._at_least(shapes, self.settings.min_area_m2)

    def _at_least(self, shapes: ndarray, area: float) -> Bool[ndarray, " n"]:
        return areas_and_perimeters(shapes, self.grid)[0] >= area if area else np.ones(len(shapes), bool)

    def _aspect(self, shape: shapely.Geometry) -> float:
        left, top, right, bottom = shapely.bounds(shape)
        across, down = pixel_sides_m(self.grid, (left + right) / 2, (top + bottom) / 2)
        return down / across


def _holes_by_row(holes: ndarray) -> Columns:
    """Return filled holes, packed, by every row of blocks that they reach into."""
    columns: Columns = {}
    bounds = shapely.bounds(holes).reshape(-1, 4)
    starts, stops = bounds[:, 1] // BLOCK_PX, np.ceil(bounds[:, 3] / BLOCK_PX)
    for row in range(int(starts.min(initial=0)), int(stops.max(initial=0))):
        here = (starts <= row) & (row < stops)
        if here.any():
            columns[f"holes_{row}"], columns[f"holes_{row}_ends"] = packed(holes[here])
    return columns
