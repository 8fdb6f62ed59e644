"""What `polygons`, `sample` and `area` cannot use is refused on one line, without leftovers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
from affine import Affine

from geograft.commands.area import area
from geograft.commands.polygons import polygons
from geograft.commands.sample import sample
from geograft.config import PolygonConfig, SampleConfig
from geograft.errors import GeograftError, InputError, OutputError, ResumeError, SettingError
from geograft.geo.rasters.raster import Image
from geograft.mapping.polygons import writer
from tests.commands.test_polygons import METRE, trees, write_map

HALF_THE_EARTH = "+proj=ortho +lat_0=0 +lon_0=0"
WIDE = Affine(1e6, 0, -1.5e7, 0, -1e6, 1e7)
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'


def refused(folder: Path, error: type[GeograftError], call: Callable[[], Any]) -> str:
    """Check that a call raises one line and leaves nothing in a folder; return the line."""
    before = sorted(folder.iterdir())
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("config", [{}, {"square": True}, {"min_area_m2": 2}])
def test_polygons_off_the_earth_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    path = write_map(tmp_path / "map.tif", trees(), transform=WIDE, crs=HALF_THE_EARTH)
    refused(tmp_path, InputError, lambda: polygons(path, tmp_path / "out.gpkg", PolygonConfig(**config)))


def test_a_sample_of_pixels_off_the_earth_is_refused(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", trees(), transform=WIDE, crs=HALF_THE_EARTH)
    line = refused(tmp_path, InputError, lambda: sample(path, tmp_path / "out.gpkg", SampleConfig(points=20)))
    assert str(path) in line


def test_a_tolerance_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", trees(), transform=METRE @ Affine.scale(0.01))
    line = refused(tmp_path, SettingError, lambda: polygons(path, tmp_path / "out.gpkg", PolygonConfig(simplify_m=1.5)))
    assert "150" in line
    polygons(path, tmp_path / "out.gpkg", PolygonConfig(simplify_m=0.5))


def test_geojson_of_a_local_crs_is_refused_before_any_work(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", trees(), crs=LOCAL)
    assert ".gpkg" in refused(tmp_path, InputError, lambda: polygons(path, tmp_path / "out.geojson"))
    assert polygons(path, tmp_path / "out.gpkg").classes["trees"].polygons == 2


@pytest.mark.parametrize("name", ["gpkg_contents", "sqlite_master", "rtree_x", "-x", "my trees", "bäume"])
def test_any_name_makes_a_layer(tmp_path: Path, name: str) -> None:
    path = write_map(tmp_path / "map.tif", trees())
    polygons(path, tmp_path / f"{name}.gpkg")
    layer, styles = pyogrio.list_layers(tmp_path / f"{name}.gpkg")[:, 0]
    assert styles == "layer_styles"
    assert layer == (name if name in ("my trees", "bäume") else "polygons")


def test_a_name_with_a_line_break_is_refused(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", trees())
    refused(tmp_path, OutputError, lambda: polygons(path, tmp_path / "a\nb.gpkg"))


def test_polygons_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that the format does not have is found last; the same command would find it again."""
    path = write_map(tmp_path / "map.tif", trees())

    def failing(*_: object) -> int:
        raise InputError("no such class")

    monkeypatch.setitem(writer.WRITERS, ".gpkg", failing)
    assert "resume" not in refused(tmp_path, InputError, lambda: polygons(path, tmp_path / "out.gpkg"))


def test_damaged_partial_results_are_not_said_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = write_map(tmp_path / "map.tif", np.tile(trees(), (60, 1))), Image.read

    def failing(self: Image, window: Any, *rest: Any) -> Any:
        if window.row:
            raise InputError("rows cannot be read.")
        return read(self, window, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "read", failing)
        with pytest.raises(InputError, match="resumes"):
            polygons(path, tmp_path / "out.gpkg")
    part = tmp_path / ".out.gpkg.part" / "part-00000000.npz"
    part.write_bytes(part.read_bytes()[:-60])
    assert "resumes" not in refused(tmp_path, ResumeError, lambda: polygons(path, tmp_path / "out.gpkg"))


@pytest.mark.parametrize("count", [float("inf"), float("nan"), "many"])
def test_strata_without_pixel_counts_are_refused(tmp_path: Path, count: Any) -> None:
    path = write_map(tmp_path / "map.tif", trees())
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=20, min_points=2))
    points = geopandas.read_file(tmp_path / "points.gpkg", layer="points").assign(reference="trees")
    strata = geopandas.read_file(tmp_path / "points.gpkg", layer="strata").assign(pixels=count)
    points.to_file(tmp_path / "labelled.gpkg", layer="points")
    pyogrio.write_dataframe(strata, tmp_path / "labelled.gpkg", layer="strata", append=True)
    refused(tmp_path, InputError, lambda: area(path, tmp_path / "labelled.gpkg"))


def test_an_unknown_reference_with_a_line_break_is_one_line(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", trees())
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=20, min_points=2))
    points = geopandas.read_file(tmp_path / "points.gpkg", layer="points").assign(reference="a\nb")
    points.to_file(tmp_path / "labelled.gpkg", layer="points")
    refused(tmp_path, InputError, lambda: area(path, tmp_path / "labelled.gpkg"))
