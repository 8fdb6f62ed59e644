"""Areas and accuracies from labelled samples, from the map to the sentence, and what is refused."""

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
from geograft.mapping.strata import places_of
from geograft.metrics.estimation import Tally, estimates
from tests.support.full_disk import files_no_larger_than
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
            places = places_of(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
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


def test_the_published_example_from_the_map_to_the_json(tmp_path: Path) -> None:
    """Olofsson et al. 2014: the map's pixels in their proportions, 640 points labelled as theirs; areas in m2."""
    values = np.repeat(np.repeat([1, 2, 3, 4], [200, 150, 3200, 6450])[:, None], 1000, axis=1).reshape(2000, 5000)
    path = write_map(tmp_path / "map.tif", values, CHANGE)
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=640, least=75))
    frame = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    with Image.open(path) as image:
        places = places_of(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
    mapped = values[places.rows, places.cols]
    matrix = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 8], [2, 1, 9, 316]])
    assert np.bincount(mapped).tolist() == [0, *matrix.sum(axis=1)]
    references = np.empty(640, object)
    for i, row in enumerate(matrix):
        references[mapped == i + 1] = np.repeat(CHANGE.names, row)
    report = area(path, labelled(tmp_path / "points.gpkg", references, path), tmp_path / "area.json")
    content = json.loads((tmp_path / "area.json").read_text(encoding="utf-8"))
    expected = estimates(Tally.of_equal(matrix), np.array([0.2, 0.15, 3.2, 6.45]) * 1e6 * 900)
    assert report.tally.points.tolist() == content["error_matrix"]["points"] == matrix.tolist()
    for i, row in enumerate(content["classes"]):
        assert row["class"] == CHANGE.names[i]
        assert row["area"]["estimate"] == pytest.approx(expected.area.value[i])
        assert row["area"]["standard_error"] == pytest.approx(expected.area.error[i])
    deforested = content["classes"][0]
    assert deforested["mapped_area"] == 200_000 * 900
    assert deforested["area"]["estimate"] / 1e4 == pytest.approx(21_158, abs=1)
    area_ha, margin_ha = (f"{x[0] / 1e4:,.1f}" for x in (expected.area.value, expected.area.margin))
    figures = ("18,000.0", area_ha, "±", margin_ha, "88", "±", "7", "75", "±", "21")
    assert report.lines()[2].split() == ["deforestation", *figures]


def test_a_labelled_sample_gives_the_truth_within_its_interval(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    report = area(path, labelled(points, truth, path))
    true_area = (truth == 2).sum() * 900
    found = report.estimates.area
    assert abs(found.value[1] - true_area) < found.margin[1]
    assert abs(report.strata.areas[1] - true_area) > found.margin[1], "the map itself is off"
    assert report.estimates.overall.value[0] == pytest.approx((truth == woods()[1]).mean(), abs=0.04)
    hectares = f"{found.value[1] / 1e4:,.1f} ha"
    assert report.headline.startswith(f"trees covers {hectares} (95 % interval ")
    assert report.left == 0


def test_labels_may_be_names_or_values_in_any_layer_and_crs(
    sampled: tuple[Path, Path, ndarray], tmp_path: Path
) -> None:
    path, points, truth = sampled
    one = area(path, labelled(points, truth, path))
    frame = geopandas.read_file(points, layer="points")
    frame["reference"] = frame["reference"].map({"1": "other", "2": " trees "})
    frame.to_crs(4326).to_file(tmp_path / "mine.geojson", driver="GeoJSON")
    two = area(path, tmp_path / "mine.geojson")
    assert one.content()["classes"] == two.content()["classes"]
    assert "does not say how it was drawn" in two.lines()[-2]
    frame["reference"] = frame["reference"].map({"other": 1.0, " trees ": 2.0})
    frame.to_file(tmp_path / "numbers.gpkg", layer="anything")
    assert area(path, tmp_path / "numbers.gpkg").content()["classes"] == one.content()["classes"]


def test_in_degrees_large_pixels_count_for_more(tmp_path: Path) -> None:
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
    assert any("on the ellipsoid" in note for note in report.notes)


def test_over_many_samples_the_interval_holds_the_truth(tmp_path: Path) -> None:
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


def test_the_first_points_are_a_sample_too(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    whole = area(path, labelled(points, truth, path))
    frame = geopandas.read_file(points, layer="points")
    part = area(path, labelled(points, [*frame["reference"][:200], *[None] * 100], path))
    assert part.left == 100
    assert part.tally.points.sum() == 200
    assert part.notes[0].startswith("100 of 300 points are left to be labelled. The first 200 are a random sample")
    assert part.estimates.area.error[1] > whole.estimates.area.error[1]


def test_gaps_between_labels_are_told(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    frame = geopandas.read_file(points, layer="points")
    report = area(path, labelled(points, [None, "", *frame["reference"][2:]], path))
    assert report.left == 2
    assert "2 of 300 points have no reference, some of them between labelled ones" in report.notes[0]


def test_what_a_sample_cannot_tell_is_said(tmp_path: Path) -> None:
    values = np.full((40, 50), 3)
    values[:10], values[10:12], values[12:16] = 1, 2, 4
    values[39] = 255
    path = write_map(tmp_path / "map.tif", values, CHANGE)
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=100, least=10))
    truth = np.where(values == 2, 1, values)
    report = area(path, labelled(tmp_path / "points.gpkg", truth, path))
    content = report.content()["classes"][1]
    assert content["area"] == {"estimate": 0, "low": None, "high": None, "standard_error": None}
    assert content["producers_accuracy"]["estimate"] is None
    notes = "\n".join(report.lines())
    assert "no point is forest gain on the ground" in notes
    assert "all 10 points mapped as stable non-forest are right" in notes
    assert "up to 30% of it may be wrong" in notes
    assert "2.5% of the raster has no class" in notes
    assert "It shows too much forest gain" not in report.headline, "without an interval nothing is outside of it"


# ----------------------------------------------------------------------------------------------------- what is refused


def test_an_empty_sample_is_one_line(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, _ = sampled
    with pytest.raises(InputError, match="none of 300 points has a reference"):
        area(path, points)


def test_unknown_classes_are_listed_beside_the_known(sampled: tuple[Path, Path, ndarray]) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    frame = geopandas.read_file(points, layer="points")
    with pytest.raises(InputError, match=r"reference has tree, wood\. The map's classes are: other, trees\. Use these"):
        area(path, labelled(points, ["tree", "wood", *frame["reference"][2:]], path))


def test_a_class_with_one_point_is_named(sampled: tuple[Path, Path, ndarray], tmp_path: Path) -> None:
    path, points, truth = sampled
    frame = geopandas.read_file(labelled(points, truth, path), layer="points")
    with Image.open(path) as image:
        places = places_of(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
    trees = np.flatnonzero(woods()[1][places.rows, places.cols] == 2)
    frame.loc[trees[1:], "reference"] = None
    frame.to_file(points, layer="points", driver="GPKG")
    with pytest.raises(InputError, match="at least two labelled points; trees has fewer"):
        area(path, points)


def test_another_map_is_refused(sampled: tuple[Path, Path, ndarray], tmp_path: Path) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    other = write_map(tmp_path / "other.tif", woods(0, 0.11)[1], TREES)
    with pytest.raises(InputError, match=r"was drawn from another map: one with [\d,]+ pixels of other"):
        area(other, points)
    shifted = write_map(tmp_path / "shifted.tif", woods()[1], TREES, transform=Affine(30, 0, 500900, 0, -30, 5000000))
    with pytest.raises(InputError, match=r"labelled points lie where .*shifted.tif has no class"):
        area(shifted, points)


def test_files_that_are_no_sample_are_one_line(sampled: tuple[Path, Path, ndarray], tmp_path: Path) -> None:
    path, points, truth = sampled
    frame = geopandas.read_file(labelled(points, truth, path), layer="points")
    frame.drop(columns="reference").to_file(tmp_path / "bare.gpkg")
    frame.set_crs(None, allow_override=True).set_geometry(frame.buffer(1)).to_file(tmp_path / "discs.gpkg")
    frame.set_geometry(frame.buffer(1)).to_file(tmp_path / "named.gpkg", layer="points")
    (tmp_path / "text.gpkg").write_text("none")
    for name, seen in {
        "bare.gpkg": "has no field 'reference'. It has: id",
        "discs.gpkg": "has 0 layers of points",
        "named.gpkg": "holds other shapes",
        "text.gpkg": "cannot be read as a sample",
        "none.gpkg": "does not exist",
    }.items():
        with pytest.raises(InputError, match=seen):
            area(path, tmp_path / name)
    with pytest.raises(OutputError, match="cannot be written"), files_no_larger_than(100):
        area(path, points, tmp_path / "full.json")
    assert not (tmp_path / "full.json").exists()
    (tmp_path / "area.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        area(path, points, tmp_path / "area.json")


def test_the_command_line(
    sampled: tuple[Path, Path, ndarray], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, points, truth = sampled
    labelled(points, truth, path)
    with pytest.raises(SystemExit) as done:
        main(["area", str(path), str(points), "--out", str(tmp_path / "area.json")])
    assert not done.value.code
    assert "% of the map is right" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"geograft: .*points.gpkg exists already"):
        main(["sample", str(path), "--out", str(points), "--points", "10"])
