"""Which scenes show the same ground without anybody having said so."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8
from numpy import ndarray

from geograft.geo.splitting.duplicates import matches_among
from geograft.geo.splitting.neighbours import Outlines, on_mercator, shared_ground
from geograft.geo.tilesets.scenes import LabelledScene
from geograft.geo.vectors.outlines import outlines


def same_ground(scenes: Sequence[LabelledScene], looks: Int8[ndarray, "n 2 2 64 64"] | None) -> list[tuple[str, str]]:
    """Return the pairs of scenes of different groups that show the same ground, at least a hundredth of one of them.

    By where they lie, where all have a CRS; otherwise by what images or labels look like, see `duplicates`,
    and not at all without `looks`. 1,000 scenes with a CRS take a second, without one a minute.
    """
    shapes, crs = outlines(
        [(scene.name, scene.info.grid.window) for scene in scenes], {scene.name: scene.info.grid for scene in scenes}
    )
    if crs is not None:
        places = Outlines(on_mercator(np.array(shapes, object), crs)[0], np.arange(len(scenes)))
        found = {(i, j) for i, j in shared_ground(places, places)[1].tolist()}
    elif looks is not None:
        found = {(one.left, one.right) for part in (0, 1) for one in matches_among(looks[:, part])}
    else:
        found = set()
    pairs = {(min(pair), max(pair)) for pair in found}
    return [(scenes[i].name, scenes[j].name) for i, j in sorted(pairs) if scenes[i].group != scenes[j].group]
