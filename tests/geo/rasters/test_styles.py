"""Maps open in a GIS with the names and colours of their classes, and only those."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.errors import OutputError
from geograft.geo.grid import Grid
from geograft.geo.rasters import writer
from geograft.geo.rasters.styles import (
    VIRIDIS,
    applicability_style,
    aux_xml,
    classes_style,
    error_colours,
    overlapping_style,
    ramp_style,
    sidecar_paths,
)
from geograft.geo.rasters.writer import MapLayout, class_layout, create_labels, create_map
from geograft.legend import Legend
from geograft.metrics.errors import error_names
from tests.support.gis import PYTHON, qgis_layers, run_qgis
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import COVERS, TREES, USES, BandPredictor, PixelwisePredictor, make_run

GRADIENT = np.tile(np.arange(1, 253, 2, dtype=np.uint8), (3, 40, 1))
PLAIN = Legend(("other", "trees & <shrubs>"))
LAYERS = PredictConfig(probabilities="uint8", uncertainty=True)
STEPS = ["0", "0.125", "0.25", "0.375", "0.5", "0.625", "0.75", "0.875", "1"]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", GRADIENT)


def predicted(scene: Path, legend: Legend, monkeypatch: pytest.MonkeyPatch, name: str = "map.tif") -> Path:
    """Write the map, probabilities and uncertainty of a scene, and return the path of the map."""
    network = BandPredictor if legend.overlapping else PixelwisePredictor
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", network)
    run = scene.parent / "-".join(legend.names)
    predict(run if run.exists() else make_run(run, legend), (scene,), scene.with_name(name), LAYERS)
    return scene.with_name(name)


@given(st.dictionaries(st.integers(0, 254), st.text(min_size=1), min_size=1, max_size=8))
def test_names_of_any_characters_are_valid_xml_at_the_place_of_their_value(names: dict[int, str]) -> None:
    band = ElementTree.fromstring(aux_xml((names,), dict.fromkeys(names, "#0102FE"))).find("PAMRasterBand")
    assert band is not None
    categories = [element.text or "" for element in band.iter("Category")]
    entries = [tuple(map(int, element.attrib.values())) for element in band.iter("Entry")]
    assert len(categories) == len(entries) == max(names) + 1
    for value, (text, entry) in enumerate(zip(categories, entries, strict=True)):
        name = names.get(value, "")
        assert len(text) == len(name) or "\r" in name
        assert text == name or not name.isprintable()
        assert entry == ((1, 2, 254, 255) if value in names else (0, 0, 0, 0))
    ElementTree.fromstring(classes_style(names, dict.fromkeys(names, "#0102FE")).split("\n", 1)[1])


def test_equal_maps_have_equal_files_beside_them(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.tif"):
        predicted(scene, COVERS, monkeypatch, name)
    for one, other in zip(
        sidecar_paths(scene.with_name("a.tif")), sidecar_paths(scene.with_name("b.tif")), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("left", ["map.tif.aux.xml", "map.qml", "map.probabilities.qml"])
def test_files_of_another_map_are_neither_used_nor_replaced(
    scene: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.with_name(left).write_text("mine")
    with pytest.raises(OutputError, match=left):
        predicted(scene, PLAIN, monkeypatch)
    assert {path.name for path in scene.parent.iterdir() if path.is_file()} == {"scene.tif", left}
    assert scene.with_name(left).read_text() == "mine"


def test_a_job_that_ends_before_the_map_has_its_name_is_resumed(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predicted(scene, COVERS, monkeypatch, "expected.tif")
    original = writer._write_sidecars

    def stop_after(part: Path, path: Path, layout: MapLayout) -> None:
        original(part, path, layout)
        if path.name == "map.tif":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "_write_sidecars", stop_after)
        predicted(scene, COVERS, monkeypatch)
    path = scene.with_name("map.tif")
    assert not path.exists()
    assert all(file.exists() for file in sidecar_paths(path))
    predicted(scene, COVERS, monkeypatch)
    for one, other in zip(sidecar_paths(path), sidecar_paths(expected), strict=True):
        assert one.read_bytes() == other.read_bytes()
    with rasterio.open(path) as raster, rasterio.open(expected) as reference:
        assert np.array_equal(raster.read(), reference.read())


def test_a_map_without_names_removes_those_of_the_one_it_replaces(tmp_path: Path) -> None:
    grid = Grid(8, 8, TENTH_METRE, None)
    for layout, count in ((class_layout(TREES, (1, 2), {}), 2), (MapLayout(), 0)):
        with create_map(tmp_path / "map.tif", grid, layout) as target:
            target.write(np.ones((1, 8, 8), np.uint8), grid.window)
        assert sum(path.exists() for path in sidecar_paths(tmp_path / "map.tif")) == count


def test_qgis_lists_the_classes_of_a_map_by_name(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    legends = {"plain": PLAIN, "trees": TREES, "covers": COVERS, "uses": USES}
    maps = {name: predicted(scene, legend, monkeypatch, f"{name}.tif") for name, legend in legends.items()}
    others = [maps["trees"].with_name(name) for name in ("trees.probabilities.tif", "uses.uncertainty.tif")]
    shown = qgis_layers(*maps.values(), *others)
    for layer, legend in zip(shown[:3], (PLAIN, TREES, COVERS), strict=True):
        assert layer["renderer"] == "paletted"
        assert layer["legend"][1:] == list(legend.names)
    assert shown[3]["renderer"] == "multibandcolor"
    for line, name in zip(shown[3]["legend"], USES.names, strict=True):
        assert name in line
    for layer, band in zip(shown[4:], ("Band 2: trees", "Band 1: uncertainty"), strict=True):
        assert layer["renderer"] == "singlebandpseudocolor"
        assert band in layer["legend"][0]
        assert layer["legend"][1:] == STEPS


def test_statistics_of_a_viewer_keep_the_names(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = predicted(scene, PLAIN, monkeypatch)
    before = qgis_layers(path)
    statistics = "d = gdal.Open(sys.argv[1]); d.GetRasterBand(1).ComputeStatistics(False)"
    run_qgis([PYTHON, "-c", f"import sys; from osgeo import gdal; {statistics}", str(path)])
    assert "STATISTICS" in sidecar_paths(path)[0].read_text()
    assert qgis_layers(path) == before


def test_qgis_shows_masks_errors_and_the_area_of_applicability(tmp_path: Path) -> None:
    pixels = textured(1, 64, 64)
    grid = Grid(64, 64, TENTH_METRE, CRS.from_user_input(UTM12))
    with create_labels(tmp_path / "mask.tif", grid, COVERS) as target:
        target.write(pixels % 4, grid.window)
    with create_labels(tmp_path / "fractions.tif", grid, USES, fractional=True) as target:
        target.write(np.repeat(pixels, 3, axis=0), grid.window)
    names = error_names(COVERS.names)
    present = {value: names[value] for value in (0, 3, 8)}
    styles = {
        "errors": MapLayout(style=classes_style(present, error_colours(COVERS.names))),
        "applicability": MapLayout(dtype="float32", style=applicability_style()),
        "ramp": MapLayout(2, style=ramp_style(2, 250, VIRIDIS)),
        "two": MapLayout(2, band_names=("roads", "roofs"), style=overlapping_style(2)),
    }
    for name, layout in styles.items():
        with create_map(tmp_path / f"{name}.tif", grid, layout) as target:
            target.write(np.repeat(pixels, layout.bands, axis=0).astype(layout.dtype), grid.window)
    shown = qgis_layers(*(tmp_path / f"{name}.tif" for name in ("mask", "fractions", *styles)))
    assert shown[0]["legend"][1:] == list(COVERS.names)
    assert shown[1]["legend"][1:] == STEPS
    assert shown[2]["legend"][1:] == list(present.values())
    assert [line.endswith("outside") for line in shown[3]["legend"][1:]] == [False] * 3 + [True] * 3
    assert "Band 2" in shown[4]["legend"][0]
    assert len(shown[5]["legend"]) == 2
