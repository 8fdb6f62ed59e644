"""What a tile set's folder holds beside its masks: the index of tiles, statistics, and tileset.json."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

import numpy as np

from geograft.config import PrepareConfig
from geograft.errors import InputError
from geograft.files import json_digest, write_json
from geograft.geo.metres import resolution_m
from geograft.geo.splitting.sameground import same_ground
from geograft.geo.tilesets.scenes import Gathered, LabelledScene, listed
from geograft.geo.tilesets.statistics import Moments, band_moments
from geograft.geo.tilesets.structure import STRUCTURE, write_structures
from geograft.geo.tilesets.tileset import INDEX, META, Scene, Tile, TileSetMeta
from geograft.geo.vectors.outlines import outlines
from geograft.geo.vectors.vectorout import write_tiles
from geograft.indices import Index
from geograft.progress import track
from geograft.verbs.prepare.burning import BurntScene

FULL_BRIGHTNESS = {"uint8": 255.0}


def write(
    folder: Path,
    gathered: Gathered,
    burnt: Sequence[BurntScene],
    tiles: Sequence[Tile],
    settings: PrepareConfig,
    indices: tuple[Index, ...],
) -> None:
    """Write everything of a tile set but its masks: index, structures, statistics, and what tileset.json holds.

    Reads the pixels under training tiles.

    Raises:
        InputError: when an image cannot be read, or an index has no value at any training pixel.
        OutputError: when it cannot be written.
    """
    rows = [(tile.scene, tile.window, tile.split, tile.valid, tile.shares) for tile in tiles]
    shapes, crs = outlines([row[:2] for row in rows], {scene.scene.name: scene.scene.info.grid for scene in burnt})
    write_tiles(folder / INDEX, rows, shapes, gathered.legend.names, crs)
    structures = [scene.structures for scene in burnt if scene.structures is not None]
    looks = np.stack(structures) if structures else None
    if looks is not None:
        write_structures(folder / STRUCTURE, looks)
    moments, info = _statistics(burnt, tiles, indices), burnt[0].scene.info
    meta = TileSetMeta(
        legend=gathered.legend,
        band_names=band_names(gathered.scenes) + tuple(index.name for index in indices),
        dtype=info.dtype,
        scale=gathered.scale or FULL_BRIGHTNESS.get(info.dtype),
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        scenes=tuple(_scene(scene, folder) for scene in burnt),
        settings=settings,
        source=gathered.notes | _twins(same_ground(gathered.scenes, looks)) | _gaps(indices, moments),
        fingerprint=_fingerprint(gathered, burnt, tiles, indices),
        indices=indices,
        shares=gathered.shares,
    )
    write_json(folder / META, asdict(meta))


def _twins(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return a note on scenes of the same ground, of which the split knows nothing; none where there are none."""
    named = listed(f"{one} and {other}" for one, other in pairs)
    return {"the same ground": f"{named}. Name them in --groups, or scores may flatter"} if pairs else {}


def _gaps(indices: Sequence[Index], moments: Moments) -> dict[str, str]:
    """Return a note on indices that have no value at some training pixels; none where all have."""
    shares = 1 - moments.count[len(moments.count) - len(indices) :] / max(int(moments.count.max()), 1)
    named = [f"{index.name} at {share:.2g}" for index, share in zip(indices, 100 * shares, strict=True) if share > 0]
    without = f"{' %, '.join(named)} % of the training pixels, where its mean stands for it"
    return {"index without a value": without} if named else {}


def band_names(scenes: Sequence[LabelledScene]) -> tuple[str, ...]:
    """Return the names that all scenes give their bands, and a number for bands that they call differently."""
    by_band = zip(*(scene.info.band_names for scene in scenes), strict=True)
    return tuple(names[0] if len(set(names)) == 1 else f"band {i}" for i, names in enumerate(by_band, start=1))


def _scene(burnt: BurntScene, folder: Path) -> Scene:
    inside = burnt.image.is_relative_to(folder)
    path = burnt.image.relative_to(folder) if inside else burnt.image
    grid, scene = burnt.scene.info.grid, burnt.scene
    return Scene(
        scene.name, path.as_posix(), burnt.image_digest, grid.height, grid.width, resolution_m(grid), scene.group
    )


def _fingerprint(
    gathered: Gathered, burnt: Sequence[BurntScene], tiles: Sequence[Tile], indices: Sequence[Index]
) -> str:
    scenes = [(scene.scene.name, scene.image_digest, scene.labels_digest) for scene in burnt]
    seen = {"legend": gathered.legend.content, "scenes": scenes, "tiles": [asdict(tile) for tile in tiles]}
    # What a tile set may be without is left out then, so that older ones keep their fingerprint.
    added = {"indices": [asdict(index) for index in indices], "shares": gathered.shares}
    return json_digest(seen | {name: value for name, value in added.items() if value})


def _statistics(burnt: Sequence[BurntScene], tiles: Sequence[Tile], indices: Sequence[Index]) -> Moments:
    """Return the moments of the pixels under training tiles, by band and index; under all tiles when none trains.

    Raises:
        InputError: when an index has no value at any of them.
    """
    used = [tile for tile in tiles if tile.split == "train"] or tiles
    windows = {scene.scene.name: [tile.window for tile in used if tile.scene == scene.scene.name] for scene in burnt}
    parts = (
        band_moments(scene.image, scene.mask, windows[scene.scene.name], indices)
        for scene in track(burnt, len(burnt), "Statistics", "scenes")
    )
    bands = burnt[0].scene.info.bands
    moments = reduce(add, chain.from_iterable(parts), Moments.none(bands + len(indices)))
    for index, count in zip(indices, moments.count[bands:], strict=True):
        if not count:
            raise InputError(
                f"the index {index.name} = {index.formula} is no finite number at any training pixel. "
                "Check the formula and the bands that it names."
            )
    return moments
