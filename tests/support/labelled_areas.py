"""A small project: a scene, and labels.gpkg with areas in pixels of its grid."""

from collections.abc import Sequence
from pathlib import Path

from pyproj import CRS
from shapely import Polygon

from geograft.dataset.sources import VectorSource
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.label_file import Area, Label, Origin, Role, write_label_file
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

GRID = Grid(256, 256, TENTH_METRE, CRS.from_user_input(UTM12))
TRAINING = [Window(8 + 72 * row, 8, 56, 56) for row in range(3)]
SCORING = [Window(8 + 60 * row, 180, 40, 40) for row in range(4)]


def area(window: Window, role: Role, origin: Origin = "drawn", labelled: bool = True, **options: object) -> Area:
    return Area(GRID.footprint(window), role, origin, labelled, **options)  # type: ignore[arg-type]


def trees(areas: Sequence[Window]) -> list[Label]:
    """Return a tree of an eighth of each area's size in its centre."""
    return [Label(shrink(window), "tree") for window in areas]


def shrink(window: Window) -> Polygon:
    high, wide = window.height // 4, window.width // 4
    return GRID.footprint(
        Window(window.row + high, window.col + wide, window.height - 2 * high, window.width - 2 * wide)
    )


def project_areas(training: Sequence[Window] = TRAINING, scoring: Sequence[Window] = SCORING) -> list[Area]:
    drawn = [area(window, "training") for window in training]
    return drawn + [area(window, "scoring", "random", rank=rank) for rank, window in enumerate(scoring, start=1)]


def write_project(
    folder: Path, areas: Sequence[Area] | None = None, labels: Sequence[Label] | None = None
) -> VectorSource:
    """Write scene.tif and labels.gpkg and return the source; by default 3 training areas and 4 scoring areas."""
    write_raster(folder / "scene.tif", textured(3, GRID.height, GRID.width))
    areas = project_areas() if areas is None else areas
    labels = trees([*TRAINING, *SCORING]) if labels is None else labels
    write_label_file(folder / "labels.gpkg", areas, labels, GRID.crs)
    return VectorSource(folder / "scene.tif", folder / "labels.gpkg")
