"""Adjacent scenes: those that touch, overlap or are near each other count as one place when tiles are split.

Scenes whose pixels agree get positions on a common grid, so that blocks keep the buffer across their edges. Others,
such as sheets of two pixel sizes or UTM zones, can only be kept whole, as a group.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import shapely
from pyproj import CRS

from geograft.config import PrepareConfig
from geograft.dataset.neighbours import connected_components, find_positions, project_to_mercator
from geograft.dataset.scenes import LabelledScene, LabelledScenes
from geograft.dataset.splits import SplitScene, splits_by_block, unit_names
from geograft.geo.measure import resolution_m
from geograft.geo.vectors.writer import tile_outlines
from geograft.text import join_names, pluralise

MAX_NAMED_PAIRS = 3
"""Number of pairs of scenes that a note names."""


def find_adjacent(gathered: LabelledScenes, settings: PrepareConfig) -> LabelledScenes:
    """Return the scenes with their positions among adjacent ones, which count as one place, and notes about them.

    Adjacent scenes whose pixels differ are put in one group where scenes are split whole. Where they are split by
    block, a note says that no buffer is kept between them.
    """
    if settings.split == "article":
        return gathered
    grids = {scene.name: scene.info.grid for scene in gathered.scenes}
    positions = find_positions(grids, max(settings.buffer_px, 1))
    scenes = tuple(replace(scene, position=positions.get(scene.name)) for scene in gathered.scenes)
    notes = {}
    if positions:
        places = len({position.place for position in positions.values()})
        how = "the buffer holds across their edges" if by_block(scenes, settings) else "each place is in one split"
        notes["adjacent scenes"] = f"{len(positions)} in {pluralise(places, 'place')}; {how}"
    pairs = _pairs_of_other_pixels(scenes, max(settings.buffer_px, 1))
    grouped = _in_one_group(scenes, pairs)
    whole = not by_block(grouped, settings)
    if pairs:
        notes["adjacent scenes with other pixels"] = f"{_describe(scenes, pairs)}; {GROUPED if whole else NOT_GROUPED}"
    return replace(gathered, scenes=grouped if whole else scenes, notes=gathered.notes | notes)


GROUPED = "scenes of a pair are in one split"
NOT_GROUPED = (
    "no buffer is kept between them, so scores may be too high. Resample them to one grid (gdalwarp -t_srs -tr -tap), "
    "or keep them whole with --split scene"
)


def by_block(scenes: Sequence[LabelledScene], settings: PrepareConfig) -> bool:
    """Return whether scenes are split by block with these settings."""
    return splits_by_block(_split_scenes(scenes), settings)


def _split_scenes(scenes: Sequence[LabelledScene]) -> list[SplitScene]:
    grids = [(scene.name, scene.info.grid.height, scene.info.grid.width, scene.group) for scene in scenes]
    return [SplitScene(*grid, position=scene.position) for grid, scene in zip(grids, scenes, strict=True)]


def _pairs_of_other_pixels(scenes: Sequence[LabelledScene], distance_px: float) -> list[tuple[int, int]]:
    """Return the pairs of scenes within `distance_px` of each other that are not yet of one group or place."""
    shapes, crs = tile_outlines(
        [(scene.name, scene.info.grid.window) for scene in scenes], {scene.name: scene.info.grid for scene in scenes}
    )
    if crs is None:
        return []
    units = unit_names(_split_scenes(scenes))
    moved, scale = project_to_mercator(np.array(shapes, object), crs)
    pixel_m = np.array([resolution_m(scene.info.grid) for scene in scenes])
    near = shapely.STRtree(moved).query(moved, predicate="dwithin", distance=distance_px * pixel_m * scale)
    # The two directions differ if the pixel sizes do.
    pairs = sorted({(min(i, j), max(i, j)) for i, j in near.T.tolist() if i != j})
    return [(i, j) for i, j in pairs if units[scenes[i].name] != units[scenes[j].name]]


def _in_one_group(scenes: tuple[LabelledScene, ...], pairs: Sequence[tuple[int, int]]) -> tuple[LabelledScene, ...]:
    """Return the scenes with one group for those that `pairs` connect, and for the rest of their groups and places."""
    units = unit_names(_split_scenes(scenes))
    first: dict[str, int] = {}
    same = [(first.setdefault(units[scene.name], number), number) for number, scene in enumerate(scenes)]
    joined = {scenes[one].name for pair in pairs for one in pair}
    connected = connected_components(len(scenes), [*same, *pairs])
    with_pair = {connected[number] for number, scene in enumerate(scenes) if scene.name in joined}
    return tuple(
        replace(scene, group=scenes[one].group) if one in with_pair else scene
        for scene, one in zip(scenes, connected, strict=True)
    )


def _describe(scenes: Sequence[LabelledScene], pairs: Sequence[tuple[int, int]]) -> str:
    """Return the first pairs with what differs: the CRS, or else the pixel size."""
    return join_names((_difference(scenes[i], scenes[j]) for i, j in pairs), limit=MAX_NAMED_PAIRS)


def _difference(one: LabelledScene, other: LabelledScene) -> str:
    if one.info.grid.crs != other.info.grid.crs:
        values = [_crs_name(scene.info.grid.crs) for scene in (one, other)]
    else:
        values = [f"{resolution_m(scene.info.grid):.4g} m" for scene in (one, other)]
    return f"{one.name} ({values[0]}) and {other.name} ({values[1]})"


def _crs_name(crs: CRS | None) -> str:
    return "no CRS" if crs is None else str(crs.name)
