"""`geograft area`: areas and accuracies from labelled samples, notes, and invalid input."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy import ndarray

from geograft.cli import main
from geograft.commands.area import area
from geograft.commands.sample import sample
from geograft.config import SampleConfig
from geograft.errors import InputError, OutputError
from geograft.geo.rasters.raster import Image
from geograft.legend import Legend
from geograft.mapping.strata import pixels_at
from geograft.metrics.estimation import ErrorMatrix, estimate_accuracy
from tests.support.full_disk import max_file_size
from tests.support.rasters import UTM12, write_raster

CHANGE = Legend(("deforestation", "forest gain", "stable forest", "stable non-forest"), (1, 2, 3, 4))
TREES = Legend(("other", "trees"), (1, 2))
LANDSAT = Affine(30, 0, 500000, 0, -30, 5000000)


def write_map(
    path: Path, values: ndarray, legend: Legend, crs: str | None = UTM12, transform: Affine = LANDSAT
) -> Path:
    write_raster(path, values[None].astype(np.uint8), transform, crs, nodata=255, compress="deflate")
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(**{f"CLASS_{v}": name for v, name in zip(legend.values, legend.names, strict=True)})
    return path


def labelled(points: Path, truth: Any, at: Path, out: Path | None = None) -> Path:
    """Fill in the references: `truth` is a map of values, or a label a point."""
    frame = geopandas.read_file(points, layer="points")
    if isinstance(truth, np.ndarray) and truth.ndim == 2:
        with Image.open(at) as image:
            places = pixels_at(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
        truth = truth[places.rows, places.cols]
    frame["reference"] = [str(label) if label is not None else None for label in truth]
    frame.to_file(out or points, layer="points", driver="GPKG")
    return out or points


def woods(seed: int = 0, wrong: float = 0.1) -> tuple[ndarray, ndarray]:
    """The truth and a map of it, 120 x 150 pixels of other (1) and trees (2)."""
    rng = np.random.default_rng(seed)
    truth = 1 + np.kron(rng.random((20, 25)) < 0.3, np.ones((6, 6), int))
    found = np.where(rng.random(truth.shape) < wrong, 2, truth)
    return truth, found


@pytest.fixture
def sampled(tmp_path: Path) -> tuple[Path, Path, ndarray]:
    """A map, an empty sample of it, and the truth."""
    truth, found = woods()
    path = write_map(tmp_path / "map.tif", found, TREES)
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=300))
    return path, tmp_path / "points.gpkg", truth


# -------------------------------------------------------------------------------------------------------- what is found


def test_published_example_from_map_to_json(tmp_path: Path) -> None:
    """Olofsson et al. 2014: the map's pixels in their proportions, 640 points labelled as theirs; areas in m2."""
    values = np.repeat(np.repeat([1, 2, 3, 4], [200, 150, 3200, 6450])[:, None], 1000, axis=1).reshape(2000, 5000)
    path = write_map(tmp_path / "map.tif", values, CHANGE)
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=640, min_points=75))
    frame = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    with Image.open(path) as image:
        places = pixels_at(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
    mapped = values[places.rows, places.cols]
    matrix = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 8], [2, 1, 9, 316]])
    assert np.bincount(mapped).tolist() == [0, *matrix.sum(axis=1)]
    references = np.empty(640, object)
    for i, row in enumerate(matrix):
        references[mapped == i + 1] = np.repeat(CHANGE.names, row)
    report = area(path, labelled(tmp_path / "points.gpkg", references, path), tmp_path / "area.json")
    content = json.loads((tmp_path / "area.json").read_text(encoding="utf-8"))
    of_equal_pixels = ErrorMatrix(matrix, matrix.astype(np.float64), matrix.astype(np.float64))
    expected = estimate_accuracy(of_equal_pixels, np.array([0.2, 0.15, 3.2, 6.45]) * 1e6 * 900)
    assert report.error_matrix.points.tolist() == content["error_matrix"]["points"] == matrix.tolist()
    for i, row in enumerate(content["classes"]):
        assert row["class"] == CHANGE.names[i]
        assert row["area"]["estimate"] == pytest.approx(expected.area.value[i])
        assert row["area"]["standard_error"] == pytest.approx(expected.area.standard_error[i])
    deforested = content["classes"][0]
    assert deforested["mapped_area"] == 200_000 * 900
    assert deforested["area"]["estimate"] / 1e4 == pytest.approx(21_158, abs=1)
    area_ha, margin_ha = (f"{x[0] / 1e4:,.1f}" for x in (expected.area.value, expected.area.margin))
    figures = ("18,000.0", area_ha, "±", margin_ha, "88", "±", "7", "75", "±", "21")
    assert report.lines()[2].split() == ["deforestation", *figures]


def test_true_area_is_inside_the_confidence_interval(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    report = area(path, labelled(points, truth, path))
    true_area = (truth == 2).sum() * 900
    found = report.estimates.area
    assert abs(found.value[1] - true_area) < found.margin[1]
    assert abs(report.strata.areas[1] - true_area) > found.margin[1], "the map itself is off"
    assert report.estimates.overall.value[0] == pytest.approx((truth == woods()[1]).mean(), abs=0.04)
    hectares = f"{found.value[1] / 1e4:,.1f} ha"
    assert report.headline.startswith(f"trees covers {hectares} ")
    assert report.unlabelled == 0


def test_references_may_be_names_or_values_in_any_layer_and_crs(
    sampled: tuple[Path, Path, ndarray], tmp_path: Path
) -> None:
    path, points, truth = sampled
    one = area(path, labelled(points, truth, path))
    frame = geopandas.read_file(points, layer="points")
    frame["reference"] = frame["reference"].map({"1": "other", "2": " trees "})
    frame.to_crs(4326).to_file(tmp_path / "mine.geojson", driver="GeoJSON")
    two = area(path, tmp_path / "mine.geojson")
    assert one.content()["classes"] == two.content()["classes"]
    assert "mine.geojson" in two.lines()[-2]
    frame["reference"] = frame["reference"].map({"other": 1.0, " trees ": 2.0})
    frame.to_file(tmp_path / "numbers.gpkg", layer="anything")
    assert area(path, tmp_path / "numbers.gpkg").content()["classes"] == one.content()["classes"]


def test_points_of_geographic_maps_are_weighted_by_pixel_area(tmp_path: Path) -> None:
    """Forty degrees of latitude with all trees in the south, where pixels are twice as large, and the map too blind."""
    rng = np.random.default_rng(1)
    truth = np.ones((400, 60), int)
    truth[200:] = np.where(rng.random((200, 60)) < 0.5, 2, 1)
    found = np.where(rng.random(truth.shape) < 0.2, 1, truth)
    path = write_map(tmp_path / "map.tif", found, TREES, "EPSG:4326", Affine(0.1, 0, 10, 0, -0.1, 65))
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=1500))
    report = area(path, labelled(tmp_path / "points.gpkg", truth, path))
    # Rows are rings of the sphere between two latitudes; the ellipsoid differs by less than 1 %.
    edges = np.sin(np.radians(65 - 0.1 * np.arange(401)))
    rows = 6371007.2**2 * np.radians(0.1) * -np.diff(edges)
    true_area = (truth == 2).sum(axis=1) @ rows
    assert report.estimates.area.value[1] == pytest.approx(true_area, abs=report.estimates.area.margin[1])
    by_pixels = (truth == 2).mean() * report.strata.areas.sum()
    assert abs(by_pixels - true_area) > 2 * report.estimates.area.margin[1]
    assert any("ellipsoid" in note for note in report.notes)


def test_confidence_interval_covers_the_truth_in_most_samples(tmp_path: Path) -> None:
    """Through the verbs; `test_estimation` repeats the estimators 2,000 times."""
    truth, found = woods(1, 0.2)
    path = write_map(tmp_path / "map.tif", found, TREES)
    inside = 0
    for draw in range(10):
        points = tmp_path / f"{draw}.gpkg"
        sample(path, points, SampleConfig(points=200, seed=draw))
        estimate = area(path, labelled(points, truth, path)).estimates.area
        inside += abs(estimate.value[1] - (truth == 2).sum() * 900) <= estimate.margin[1]
    # 7 or fewer of 10 happen once in 90 times.
    assert inside >= 8


# ------------------------------------------------------------------------------------------------ what the sample lacks


def test_the_first_points_are_a_random_sample(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    whole = area(path, labelled(points, truth, path))
    frame = geopandas.read_file(points, layer="points")
    part = area(path, labelled(points, [*frame["reference"][:200], *[None] * 100], path))
    assert part.unlabelled == 100
    assert part.error_matrix.points.sum() == 200
    assert "100 of 300 points" in part.notes[0]
    assert "first 200" in part.notes[0]
    assert part.estimates.area.standard_error[1] > whole.estimates.area.standard_error[1]


def test_unlabelled_points_between_labelled_ones_are_noted(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    frame = geopandas.read_file(points, layer="points")
    report = area(path, labelled(points, [None, "", *frame["reference"][2:]], path))
    assert report.unlabelled == 2
    assert "2 of 300 points have no reference" in report.notes[0]
    assert "overestimated" in report.notes[0]


def test_limits_of_the_sample_are_noted(tmp_path: Path) -> None:
    values = np.full((40, 50), 3)
    values[:10], values[10:12], values[12:16] = 1, 2, 4
    values[39] = 255
    path = write_map(tmp_path / "map.tif", values, CHANGE)
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=100, min_points=10))
    truth = np.where(values == 2, 1, values)
    report = area(path, labelled(tmp_path / "points.gpkg", truth, path))
    content = report.content()["classes"][1]
    assert content["area"] == {"estimate": 0, "low": None, "high": None, "standard_error": None}
    assert content["producers_accuracy"]["estimate"] is None
    notes = "\n".join(report.lines())
    assert "no reference point is forest gain" in notes
    assert "all 10 points mapped as stable non-forest" in notes
    assert "up to 30%" in notes
    assert "2.5% of the raster" in notes
    assert "forest gain" not in report.headline, "without an interval its area is not called biased"


# ----------------------------------------------------------------------------------------------------- what is refused


def test_unlabelled_sample_raises(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, _ = sampled
    with pytest.raises(InputError, match=r"points\.gpkg: none of 300 points"):
        area(path, points)


def test_unknown_classes_raise_with_the_known_ones(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    frame = geopandas.read_file(points, layer="points")
    with pytest.raises(InputError, match=r"reference: tree, wood\..*other, trees"):
        area(path, labelled(points, ["tree", "wood", *frame["reference"][2:]], path))


def test_class_with_one_point_raises(sampled: tuple[Path, Path, ndarray], tmp_path: Path) -> None:
    path, points, truth = sampled
    frame = geopandas.read_file(labelled(points, truth, path), layer="points")
    with Image.open(path) as image:
        places = pixels_at(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
    trees = np.flatnonzero(woods()[1][places.rows, places.cols] == 2)
    frame.loc[trees[1:], "reference"] = None
    frame.to_file(points, layer="points", driver="GPKG")
    with pytest.raises(InputError, match=r"2 .*trees"):
        area(path, points)


def test_another_map_raises(sampled: tuple[Path, Path, ndarray], tmp_path: Path) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    other = write_map(tmp_path / "other.tif", woods(0, 0.11)[1], TREES)
    with pytest.raises(InputError, match=r"[\d,]+ pixels of other, .*other\.tif"):
        area(other, points)
    shifted = write_map(tmp_path / "shifted.tif", woods()[1], TREES, transform=Affine(30, 0, 500900, 0, -30, 5000000))
    with pytest.raises(InputError, match=r"labelled points .*shifted\.tif"):
        area(shifted, points)


def test_files_that_are_not_a_sample_raise(sampled: tuple[Path, Path, ndarray], tmp_path: Path) -> None:
    path, points, truth = sampled
    frame = geopandas.read_file(labelled(points, truth, path), layer="points")
    frame.drop(columns="reference").to_file(tmp_path / "bare.gpkg")
    frame.set_crs(None, allow_override=True).set_geometry(frame.buffer(1)).to_file(tmp_path / "discs.gpkg")
    frame.set_geometry(frame.buffer(1)).to_file(tmp_path / "named.gpkg", layer="points")
    (tmp_path / "text.gpkg").write_text("none")
    for name, message in {
        "bare.gpkg": r"bare\.gpkg.*'reference'.*\bid",
        "discs.gpkg": r"discs\.gpkg.*\b0 ",
        "named.gpkg": r"named\.gpkg",
        "text.gpkg": r"text\.gpkg",
        "none.gpkg": r"none\.gpkg",
    }.items():
        with pytest.raises(InputError, match=message):
            area(path, tmp_path / name)
    with pytest.raises(OutputError, match=r"full\.json"), max_file_size(100):
        area(path, points, tmp_path / "full.json")
    assert not (tmp_path / "full.json").exists()
    (tmp_path / "area.json").write_text("mine")
    with pytest.raises(OutputError, match=r"area\.json"):
        area(path, points, tmp_path / "area.json")


def test_command_line(sampled: tuple[Path, Path, ndarray], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    with pytest.raises(SystemExit) as done:
        main(["area", str(path), str(points), "--out", str(tmp_path / "area.json")])
    assert not done.value.code
    assert "Overall accuracy is " in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"geograft: .*points\.gpkg"):
        main(["sample", str(path), "--out", str(points), "--points", "10"])
