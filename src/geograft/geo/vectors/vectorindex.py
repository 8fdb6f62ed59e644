"""The outlines of a tile index, read back."""

from pathlib import Path

import numpy as np
import pyogrio
import shapely
from jaxtyping import Shaped
from numpy import ndarray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS

from geograft.errors import InputError
from geograft.geo.vectors.vector import TILES_LAYER


def read_outlines(path: Path) -> tuple[Shaped[ndarray, " n"], CRS | None]:
    """Return the outline of every tile of an index in file order, and their CRS; None where tiles have no such place.

    100,000 tiles take a second.

    Raises:
        InputError: when the file is missing or no tile index.
    """
    try:
        meta, _, shapes, _ = pyogrio.raw.read(path, layer=TILES_LAYER, columns=[])
        return np.array(shapely.from_wkb(shapes), object), CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    except (DataLayerError, DataSourceError, shapely.errors.ShapelyError) as error:
        raise InputError(f"{path} is not a tile index: {error}. Prepare the tile set again.") from error
