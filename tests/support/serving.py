"""Small projects, maps and clients for tests of the server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from numpy import ndarray
from pyproj import CRS
from starlette.testclient import TestClient

from geograft.geo.rasters.tags import THRESHOLD_TAG, sibling_path
from geograft.geo.vectors.label_file import Area, Label, write_label_file
from geograft.server.app import create_app
from geograft.server.guard import Access
from geograft.server.layers import ShownClass, Subject
from geograft.server.service import Service
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

HOST = "127.0.0.1:8000"
TOKEN = "the-token-of-this-test"
WRITE = {"origin": f"http://{HOST}"}
PIXELS = 64


def square(col: float, row: float, side: float) -> shapely.Polygon:
    """Return a square in the CRS of the scene, from its upper left pixel."""
    corners = ((col, row), (col + side, row), (col + side, row + side), (col, row + side))
    return shapely.Polygon([TENTH_METRE @ corner for corner in corners])


def write_map(path: Path, codes: ndarray, transform: Affine = TENTH_METRE, crs: str | None = UTM12) -> Path:
    """Write a binary class map with the positive class from 125 of 250, and the probabilities `codes` beside it."""
    values = np.where(codes == 255, 255, np.where(codes >= 125, 2, 1)).astype(np.uint8)
    write_raster(path, values[None], transform, crs, nodata=255)
    import rasterio

    tags = {"CLASS_1": "other", "CLASS_2": "trees", THRESHOLD_TAG: "0.5"}
    both = np.stack([np.where(codes == 255, 255, 250 - codes), codes]).astype(np.uint8)
    probabilities = write_raster(sibling_path(path, "probabilities"), both, transform, crs, nodata=255)
    for file in (path, probabilities):
        with rasterio.open(file, "r+") as raster:
            raster.update_tags(**tags)
    return path


def make_project(folder: Path, crs: str | None = UTM12) -> Subject:
    """Write an image, a map and labels: two labelled trees in one labelled random area and one training area."""
    image = write_raster(folder / "scene.tif", textured(3, PIXELS, PIXELS), crs=crs)
    codes = np.tile(np.arange(PIXELS, dtype=np.uint8) * 3, (PIXELS, 1))
    codes[:8] = 255
    write_map(folder / "maps" / "scene.tif", codes, crs=crs)
    areas = [
        Area(square(8, 16, 32), "scoring", "random", labelled=True, rank=1),
        Area(square(44, 16, 16), "training", "drawn"),
    ]
    labels = [Label(square(40, 20, 8), "trees"), Label(square(10, 20, 4), "trees", "drawn", "small")]
    write_label_file(folder / "labels.gpkg", areas, labels, crs and CRS(crs))
    return Subject(
        title="Trees",
        kind="project",
        classes=(ShownClass(2, "trees", "#009E73"),),
        images=(("scene", image),),
        maps=(("scene", folder / "maps" / "scene.tif"),),
        folder=folder,
        downloads={"scene.tif": ("Map of scene", folder / "maps" / "scene.tif")},
    )


@contextmanager
def client_of(
    subject: Subject, read_only: bool = False, headers: dict[str, str] | None = None, max_upload_bytes: int = 0
) -> Iterator[TestClient]:
    """Yield a client that sends the token and the right host, in place of a browser."""
    app = create_app(subject, Access(TOKEN, (HOST,), read_only, max_upload_bytes))
    given = {"x-geograft-token": TOKEN} if headers is None else headers
    with TestClient(app, base_url=f"http://{HOST}", headers=given) as client:
        yield client


def polygon(ring: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return a GeoJSON polygon."""
    return {"type": "Polygon", "coordinates": [[list(point) for point in (*ring, ring[0])]]}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the server of an empty project, which does not watch its files."""
    with pytest.MonkeyPatch.context() as patch:
        # Types of arguments are checked with random numbers, also in this thread, which Hypothesis takes for its own.
        patch.setattr(Service, "watch", lambda service: None)
        with client_of(make_project(tmp_path_factory.mktemp("project"))) as client:
            yield client
