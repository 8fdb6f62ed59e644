"""Settings of Hypothesis and fixtures shared by several test files."""

from collections.abc import Iterator
from pathlib import Path

import geopandas
import numpy as np
import pytest
from hypothesis import settings
from shapely import box

from tests.support.rasters import TENTH_METRE, UTM12, write_raster

# No deadline, for busy machines; deterministic examples. `make fuzz` draws new ones.
settings.register_profile("geograft", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("geograft")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data next to the project; their licences do not allow redistribution in the repository."""
    if not SHARED.is_dir():
        pytest.skip("the real data next to the project are not on this machine")
    return SHARED


@pytest.fixture(scope="module")
def only_torch() -> Iterator[None]:
    """Let `auto` be torch: spares the export of graphs, which takes longer than small trainings and maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geograft.inference.backends._installed", lambda name: False)
        yield


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scene.tif (256 x 256, noise, brighter in fields) and fields.gpkg (16 squares of 32 pixels)."""
    folder = tmp_path_factory.mktemp("fields")
    pixels = np.random.default_rng(0).integers(1, 90, (3, 256, 256), dtype=np.uint8)
    corners = [(16 + 64 * row, 16 + 64 * col) for row in range(4) for col in range(4)]
    for row, col in corners:
        pixels[:, row : row + 32, col : col + 32] += 150
    write_raster(folder / "scene.tif", pixels)
    squares = [box(*(TENTH_METRE @ (col, row + 32)), *(TENTH_METRE @ (col + 32, row))) for row, col in corners]
    geopandas.GeoDataFrame({"kind": ["field"] * 16}, geometry=squares, crs=UTM12).to_file(folder / "fields.gpkg")
    return folder


@pytest.fixture(scope="session")
def tiles(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile set of that scene: 32-pixel tiles, blocks of 64 pixels."""
    from geograft.commands.prepare import prepare
    from geograft.config import PrepareConfig
    from geograft.dataset.sources import VectorSource

    out = tmp_path_factory.mktemp("tiles") / "tiles"
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.2, test=0.2)
    prepare(VectorSource(images=(fields / "scene.tif",), labels=fields / "fields.gpkg"), out, config)
    return out
