"""Probabilities of polygons, each processing step, DSTL submissions, and large sparse maps."""

import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy import ndarray
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from scipy import ndimage
from shapely.geometry import shape as geometry

from geograft.commands.polygons import polygons
from geograft.config import PolygonConfig
from geograft.dataset import dstl
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Grid
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import rasterize_window
from geograft.legend import Legend
from tests.commands.test_polygons import METRE, UTM12, covers, grove, trees, write_map
from tests.dataset.test_dstl import SCENE, X_MAX, Y_MIN
from tests.support.rasters import write_raster
from tests.support.runs import COVERS

__all__ = ["grove"]


def write_probabilities(path: Path, probabilities: ndarray, legend: Legend, dtype: str) -> None:
    """Write the probability of each class as `geograft predict` does."""
    kind = {"nodata": 255} if dtype == "uint8" else {"nodata": np.nan, "nbits": 16}
    write_raster(path, probabilities, METRE, UTM12, **kind)
    with rasterio.open(path, "r+") as raster:
        # GDAL would take four bands for an RGBA image.
        raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(legend.names) - 1)
        for band, name in enumerate(legend.names, 1):
            raster.set_band_description(band, name)


def classes_and_probabilities(dtype: str) -> tuple[ndarray, ndarray]:
    """A map of four classes, and probabilities with nodata."""
    values, rng = covers(60), np.random.default_rng(1)
    units = rng.integers(0, 251, (4, 60, 60))
    units[:, rng.random((60, 60)) < 0.02] = 255
    if dtype == "uint8":
        return values, units.astype(np.uint8)
    probabilities = (units / 250).astype(np.float16).astype(np.float32)
    return values, np.where(units == 255, np.nan, probabilities).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ probabilities


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_probabilities_are_those_of_the_polygons_own_pixels(tmp_path: Path, dtype: str, connectivity: int) -> None:
    """Against scipy's sums over the labels of the whole map."""
    values, stored = classes_and_probabilities(dtype)
    path = write_map(tmp_path / "map.tif", values, COVERS)
    write_probabilities(tmp_path / "map.probabilities.tif", stored, COVERS, dtype)
    config = PolygonConfig(connectivity=connectivity, uncertain_below=0.6)  # type: ignore[arg-type]
    summary = polygons(path, tmp_path / "map.gpkg", config)
    assert not any("probability" in note for note in summary.notes)
    frame = geopandas.read_file(tmp_path / "map.gpkg")
    probability = stored / 250 if dtype == "uint8" else stored
    known = stored[0] != 255 if dtype == "uint8" else np.isfinite(stored[0])
    for row in frame.itertuples():
        inside = rasterize([(row.geometry, 1)], values.shape, transform=METRE).astype(bool) & known
        own = probability[COVERS.values.index(row.value)][inside]
        if not len(own):
            assert np.isnan(row.mean_probability)
            continue
        assert row.mean_probability == pytest.approx(own.astype(float).mean(), abs=1e-12 if dtype == "uint8" else 1e-7)
        assert row.uncertain_fraction == pytest.approx((own < 0.6).mean())


def test_without_probabilities_a_note_names_the_missing_file(grove: Path, tmp_path: Path) -> None:
    (note,) = polygons(grove, tmp_path / "trees.gpkg").notes
    assert "map.probabilities.tif" in note
    assert "`geograft predict --probabilities uint8`" in note
    assert "mean_probability" not in geopandas.read_file(tmp_path / "trees.gpkg").columns


def test_probabilities_of_another_map_are_refused(tmp_path: Path) -> None:
    values, stored = classes_and_probabilities("uint8")
    path = write_map(tmp_path / "map.tif", values, COVERS)
    write_probabilities(tmp_path / "map.probabilities.tif", stored[:, :50], COVERS, "uint8")
    with pytest.raises(InputError, match=r"map\.probabilities\.tif .*grid"):
        polygons(path, tmp_path / "map.gpkg")
    write_probabilities(tmp_path / "map.probabilities.tif", stored, Legend(("water", "grass", "crops", "oak")), "uint8")
    with pytest.raises(InputError, match=r"'trees'.*water, grass, crops, oak"):
        polygons(path, tmp_path / "map.gpkg")


# -------------------------------------------------------------------------------------------------------------- steps


def test_a_filled_hole_belongs_to_the_polygon_around_it(tmp_path: Path) -> None:
    values = np.full((1100, 40), 10, np.uint8)
    values[1020:1030, 10:14] = 20
    values[1022, 11:13] = 30
    values[50:90, 5:35] = 7
    path = write_map(tmp_path / "map.tif", values, COVERS)
    polygons(path, tmp_path / "map.gpkg", PolygonConfig(fill_holes_m2=41))
    frame = geopandas.read_file(tmp_path / "map.gpkg")
    assert dict(zip(frame["class"], frame["area_m2"], strict=True)) == {"water": 44000 - 1200, "trees": 1200}


@pytest.mark.parametrize(
    "steps", [{"simplify_m": 2.0}, {"smooth": 2}, {"simplify_m": 1.5, "smooth": 3}, {"square": True}]
)
def test_polygons_are_valid_and_measured_as_written(tmp_path: Path, steps: dict[str, float]) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(4, 150, 150)), (0, 4, 4))
    path = write_map(tmp_path / "map.tif", np.array(COVERS.values)[noise.argmax(axis=0)], COVERS)
    polygons(path, tmp_path / "map.gpkg", PolygonConfig(**steps))  # type: ignore[arg-type]
    frame = geopandas.read_file(tmp_path / "map.gpkg")
    assert frame.geometry.is_valid.all()
    np.testing.assert_allclose(frame["area_m2"], frame.geometry.area)
    np.testing.assert_allclose(frame["perimeter_m"], frame.geometry.length)
    if "square" not in steps:
        assert shapely.area(shapely.union_all(frame.geometry)) == pytest.approx(frame["area_m2"].sum())
        assert frame["area_m2"].sum() == pytest.approx(150 * 150)


def test_squared_houses_have_few_vertices_and_are_counted(tmp_path: Path) -> None:
    """Rotated houses with ragged outlines, as a network draws them, and a lake that cannot be squared."""
    rng, values = np.random.default_rng(0), np.ones((200, 200), np.uint8)
    houses = [
        shapely.affinity.rotate(shapely.box(col, row, col + 26, row + 18), rng.uniform(0, 90))
        for row in range(12, 140, 44)
        for col in range(10, 180, 44)
    ]
    inside = rasterize([(house, 1) for house in houses], values.shape)
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(1 - inside)
    ragged = ndimage.gaussian_filter(rng.normal(size=values.shape), 1.5)
    values[distance + ragged / ragged.std() > 0] = 2
    lake = shapely.Point(100, 176).buffer(20).difference(shapely.Point(100, 176).buffer(16))
    values[rasterize([(lake, 1)], values.shape) == 1] = 2
    path = write_map(tmp_path / "map.tif", values)
    polygons(path, tmp_path / "plain.gpkg", PolygonConfig(min_area_m2=50))
    summary = polygons(path, tmp_path / "square.gpkg", PolygonConfig(min_area_m2=50, square=True))
    polygons(path, tmp_path / "fine.gpkg", PolygonConfig(min_area_m2=50, square=True, simplify_m=0.4))
    plain, square, fine = (
        shapely.get_num_coordinates(geopandas.read_file(tmp_path / f"{name}.gpkg").geometry.to_numpy())
        for name in ("plain", "square", "fine")
    )
    assert np.median(plain) > 50
    assert np.median(square) <= 7
    assert fine.sum() > 1.5 * square.sum()
    assert len(square) == len(houses) + 1 == sum(summary.forms)
    assert summary.forms[0] == 1
    assert summary.forms[2] >= len(houses) / 2
    assert f"{summary.forms[2]} are rectangles" in "\n".join(summary.lines())


def test_contradicting_settings_are_refused(grove: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--smooth and --square"):
        polygons(grove, tmp_path / "map.gpkg", PolygonConfig(smooth=1, square=True))


# --------------------------------------------------------------------------------------------------------------- DSTL


def test_a_submission_rasterizes_to_the_map(tmp_path: Path) -> None:
    """Read as the competition's labels are, with its transformation from coordinates to pixels."""
    (tmp_path / "grid_sizes.csv").write_text(f",Xmax,Ymin\n{SCENE},{X_MAX},{Y_MIN}\n")
    legend = Legend(("other", "trees", "crops", "lake"), (0, 1, 2, 8))
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(4, 90, 90)), (0, 2, 2))
    values = np.array(legend.values)[noise.argmax(axis=0)].astype(np.uint8)
    values[values == 0] = 255
    path = write_map(tmp_path / f"{SCENE}.tif", values, legend)
    out = tmp_path / "train_wkt_mine.csv"
    polygons(path, out, dstl_grid=tmp_path / "grid_sizes.csv")
    assert len(out.read_text().splitlines()) == 11
    labels = dstl.read_dstl_labels(tmp_path, (5, 6, 8))
    assert labels.repaired == 0
    grid = Grid(90, 90, METRE, None)
    burnt = rasterize_window(labels.in_pixels(SCENE, (X_MAX, Y_MIN), grid), grid.window, fill=0)
    expected = np.select([values == 1, values == 2, values == 8], [1, 2, 3])
    np.testing.assert_array_equal(burnt, expected)


def test_an_invalid_submission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid_sizes.csv").write_text(f",Xmax,Ymin\n{SCENE},{X_MAX},{Y_MIN}\n")
    path = write_map(tmp_path / "map.tif", trees())
    with pytest.raises(InputError, match=r"grid_sizes\.csv .*\bmap,"):
        polygons(path, tmp_path / "out.csv", dstl_grid=tmp_path / "grid_sizes.csv")
    path = write_map(tmp_path / f"{SCENE}.tif", np.full((20, 20), 77), Legend(("a", "b", "heath"), (1, 2, 77)))
    with pytest.raises(InputError, match=r"'heath' \(77\)"):
        polygons(path, tmp_path / "out.csv", dstl_grid=tmp_path / "grid_sizes.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_submission_is_valid_after_rounding(tmp_path: Path) -> None:
    (tmp_path / "grid_sizes.csv").write_text(f",Xmax,Ymin\n{SCENE},{X_MAX},{Y_MIN}\n")
    legend = Legend(("buildings", "road", "track", "trees"), (10, 20, 30, 7))
    path = write_map(tmp_path / f"{SCENE}.tif", covers(90), legend)
    config = PolygonConfig(simplify_m=1.5, smooth=2, connectivity=8)
    polygons(path, tmp_path / "smooth.csv", config, dstl_grid=tmp_path / "grid_sizes.csv")
    rows = [line.split(",", 2) for line in (tmp_path / "smooth.csv").read_text().splitlines()[1:]]
    shapes = [shapely.from_wkt(wkt.strip('"')) for _, _, wkt in rows]
    assert [int(number) for _, number, _ in rows] == list(range(1, 11))
    assert all(shape.is_valid and geometry(shape).geom_type == "MultiPolygon" for shape in shapes)
    left, bottom, right, top = shapely.total_bounds(shapes)
    assert -1e-9 <= left < right <= X_MAX * 91 / 90 + 1e-9
    assert Y_MIN * 91 / 90 - 1e-9 <= bottom < top <= 1e-9


# -------------------------------------------------------------------------------------------------------------- size


def test_empty_blocks_of_a_large_sparse_map_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 x 100,000 pixels, with data in two places; one of them crosses block borders."""
    kind = {"driver": "GTiff", "height": 100_000, "width": 100_000, "count": 1, "dtype": "uint8", "nodata": 255}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "compress": "deflate"}
    path = tmp_path / "country.tif"
    with rasterio.open(path, "w", transform=METRE, crs=UTM12, **kind, **layout) as raster:
        raster.write(np.ones((1, 600, 600), np.uint8), window=rasterio.windows.Window(50_900, 61_300, 600, 600))
        raster.write(np.full((1, 10, 10), 2, np.uint8), window=rasterio.windows.Window(99_990, 99_990, 10, 10))
    read, windows = Image.read, []
    monkeypatch.setattr(Image, "read", lambda self, window, *rest: windows.append(window) or read(self, window, *rest))
    summary = polygons(path, tmp_path / "country.gpkg")
    assert {name: (total.polygons, total.area) for name, total in summary.classes.items()} == {
        "1": (1, 360_000.0),
        "2": (1, 100.0),
    }
    assert len(windows) == 5


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_docs_show_what_the_commands_print(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, root / "scripts" / "make_example_map.py", tmp_path / "example.tif"], check=True)
    page = (root / "docs" / "polygons.md").read_text(encoding="utf-8")
    config = PolygonConfig(fill_holes_m2=20, min_area_m2=20, simplify_m=0.5, smooth=2)
    for name, settings in (("plain.gpkg", PolygonConfig()), ("example.gpkg", config)):
        lines = polygons(tmp_path / "example.tif", tmp_path / name, settings).lines()
        assert "\n".join(f"    {line}" for line in lines).replace(f"{tmp_path}/", "") in page
