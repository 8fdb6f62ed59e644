"""What a page sees: layers, tiles, values, pixels and areas."""

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy import ndarray
from PIL import Image as Picture
from shapely.geometry import shape
from starlette.testclient import TestClient

from geograft.errors import InputError
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import rasterize_window, to_pixel_shapes
from geograft.geo.webmap import lonlat_to_mercator
from geograft.server.layers import ShownClass, file_revision, layers_of
from tests.support.rasters import TENTH_METRE, textured, write_raster
from tests.support.serving import PIXELS, client_of, make_project, square, write_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with client_of(make_project(folder)) as client:
        yield client


@pytest.fixture
def codes(folder: Path) -> ndarray:
    with Image.open(folder / "maps" / "scene.probabilities.tif") as image:
        return image.read_raw(image.info.grid.window)[1]


def layer_of(client: TestClient, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in client.get("/api/project").json()["layers"] if each["kind"] == kind)
    return found


def middle_tile(layer: dict[str, Any]) -> str:
    west, south, east, north = layer["bounds"]
    u, v = lonlat_to_mercator(np.array([[(west + east) / 2, (south + north) / 2]]))
    z = layer["maxzoom"]
    return f"{z}/{int(u[0] * 2**z)}/{int(v[0] * 2**z)}.png"


def picture(client: TestClient, address: str) -> ndarray:
    answer = client.get(address)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    return np.array(Picture.open(io.BytesIO(answer.content)))


def test_a_project_says_what_it_shows(client: TestClient) -> None:
    project = client.get("/api/project").json()
    assert project["title"] == "Trees" and project["georeferenced"] and not project["read_only"]
    assert project["classes"] == [{"value": 2, "name": "trees", "color": "#009E73"}]
    assert project["pixel_size_m"] == pytest.approx(0.1)
    assert project["can"] == {"label": True, "train": True, "export": True, "upload": False}
    kinds = {layer["kind"]: layer for layer in project["layers"]}
    assert list(kinds) == ["image", "classes", "probability", "errors"]
    assert kinds["probability"]["threshold"] == 0.5 and kinds["probability"]["class_value"] == 2
    assert kinds["image"]["bands"] == ["red", "green", "blue"] and kinds["image"]["default_bands"] == [1, 2, 3]
    west, south, east, north = project["bounds"]
    assert west < east and south < north and east - west < 1e-3


def test_a_probability_has_the_number_of_its_class_in_the_project(tmp_path: Path) -> None:
    # The map's trees are 2; in the project they are the third class, and nobody has drawn water yet.
    classes = (ShownClass(1, "water", "#0072B2"), ShownClass(3, "trees", "#009E73"))
    with client_of(replace(make_project(tmp_path), classes=classes)) as client:
        assert layer_of(client, "probability")["class_value"] == 3


def test_an_image_is_stretched_between_its_percentiles(client: TestClient) -> None:
    layer = layer_of(client, "image")
    address = f"/api/layers/{layer['id']}/tiles/{middle_tile(layer)}"
    shown = picture(client, f"{address}?bands=1,2,3&v=1")
    inside = shown[..., 3] == 255
    assert inside.sum() > 0 and set(np.unique(shown[..., 3])) <= {0, 255}
    assert {0, 255} <= set(np.unique(shown[inside][:, :3]))
    grey = picture(client, f"{address}?bands=2&low=0&high=100")
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()


def test_classes_have_their_colours_and_the_negative_class_is_clear(client: TestClient) -> None:
    layer = layer_of(client, "classes")
    shown = picture(client, f"/api/layers/{layer['id']}/tiles/{middle_tile(layer)}").reshape(-1, 4)
    colours = {tuple(colour) for colour in np.unique(shown, axis=0).tolist()}
    assert colours == {(0, 0, 0, 0), (0, 0x9E, 0x73, 255)}


def test_values_are_exact_or_none(client: TestClient, codes: ndarray) -> None:
    layer = layer_of(client, "probability")
    shown = picture(client, f"/api/layers/{layer['id']}/values/{middle_tile(layer)}?v=1")
    assert (shown[..., 1:3] == 0).all() and (shown[..., 3] == 255).all()
    assert set(np.unique(shown[..., 0])) <= set(np.unique(codes)) | {255}
    assert len(np.unique(shown[..., 0])) > 30


def test_a_tile_that_misses_the_raster_is_empty(client: TestClient) -> None:
    assert client.get("/api/layers/image-0/tiles/20/0/0.png").status_code == 204
    assert client.get("/api/layers/probability-0-1/values/3/1/1.png").status_code == 204


@pytest.mark.parametrize(
    "address",
    [
        "layers/none/tiles/1/0/0.png",
        "layers/image-0/tiles/1/2/0.png",
        "layers/image-0/values/1/0/0.png",
        "layers/image-0/area?threshold=0.5",
        "layers/classes-0-0/area?threshold=0.5",
        "layers/image-0/pixel?lng=0&lat=0",
        "files/project.toml",
        "nothing",
    ],
)
def test_what_is_not_there_is_not_found(client: TestClient, address: str) -> None:
    answer = client.get(f"/api/{address}")
    assert answer.status_code in (404, 422) and set(answer.json()) == {"detail"}


@pytest.mark.parametrize(
    "address",
    [
        "layers/image-0/tiles/27/0/0.png",
        "layers/image-0/tiles/99999999999999999999/0/0.png",
        "layers/image-0/tiles/1/-1/0.png",
        "layers/image-0/tiles/1/0/0.png?bands=1,2",
        "layers/image-0/tiles/1/0/0.png?bands=9",
        "layers/image-0/tiles/1/0/0.png?bands=b1%2Bb2",
        "layers/image-0/tiles/1/0/0.png?low=nan",
        "layers/image-0/tiles/1/0/0.png?low=60&high=50",
        "layers/image-0/pixel?lng=inf&lat=0",
        "layers/probability-0-1/area?threshold=2",
        "layers/probability-0-1/area?threshold=nan",
        "layers/probability-0-1/area",
    ],
)
def test_impossible_values_are_refused_in_one_line(client: TestClient, address: str) -> None:
    answer = client.get(f"/api/{address}")
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"]


def test_a_pixel_has_its_values(client: TestClient, codes: ndarray) -> None:
    row, col = 30, 50
    lng, lat = lonlat(client, row, col)
    found = client.get(f"/api/layers/probability-0-1/pixel?lng={lng}&lat={lat}").json()
    assert (found["row"], found["col"]) == (row, col)
    assert found["values"][1]["value"] == pytest.approx(codes[row, col] / 250)
    assert client.get(f"/api/layers/classes-0-0/pixel?lng={lng}&lat={lat}").json()["class"] == "trees"
    lng, lat = lonlat(client, 2, 50)
    assert client.get(f"/api/layers/probability-0-1/pixel?lng={lng}&lat={lat}").json()["values"] == []


def lonlat(client: TestClient, row: int, col: int) -> tuple[float, float]:
    """Return the place of a pixel's centre."""
    from pyproj import Transformer

    found = Transformer.from_crs(32612, 4326, always_xy=True).transform(*(TENTH_METRE @ (col + 0.5, row + 0.5)))
    return found[0], found[1]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.502, 0.9, 1.0])
def test_area_and_iou_are_those_of_the_pixels(client: TestClient, codes: ndarray, threshold: float) -> None:
    found = client.get(f"/api/layers/probability-0-1/area?threshold={threshold}").json()
    mapped = (codes != 255) & (codes >= threshold * 250 - 1e-9)
    assert found["pixels"] == mapped.sum()
    assert found["m2"] == pytest.approx(mapped.sum() * 0.01)
    counted, label = np.zeros((2, PIXELS, PIXELS), bool)
    counted[16:48, 8:40] = True
    label[20:24, 10:14] = True
    label[20:28, 40:48] = True
    hits, union = (mapped & label & counted).sum(), ((mapped | label) & counted).sum()
    assert found["n_scored"] == 1
    assert found["iou"] == (pytest.approx(hits / union) if union else None)


def test_a_map_that_is_replaced_is_shown_at_once(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    with client_of(subject) as client:
        before, layer = client.get("/api/project").json()["revision"], layer_of(client, "probability")
        address = f"/api/layers/{layer['id']}/area?threshold=0.5"
        assert client.get(address).json()["pixels"] > 0
        write_map(tmp_path / "maps" / "new.tif", np.zeros((PIXELS, PIXELS), np.uint8))
        for name in ("tif", "probabilities.tif"):
            (tmp_path / "maps" / f"new.{name}").replace(tmp_path / "maps" / f"scene.{name}")
        assert client.get(address).json()["pixels"] == 0
        assert client.get("/api/project").json()["revision"] != before
        assert layer_of(client, "probability")["revision"] != layer["revision"]


def test_a_project_without_maps_shows_its_images(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    shutil.rmtree(tmp_path / "maps")
    with client_of(subject) as client:
        assert [layer["kind"] for layer in client.get("/api/project").json()["layers"]] == ["image"]
        assert client.get("/api/files").json() == [] == client.get("/api/history").json()


def test_an_image_that_is_gone_is_an_error_in_one_line(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    (tmp_path / "scene.tif").unlink()
    with client_of(subject) as client:
        answer = client.get("/api/project")
        assert answer.status_code == 422 and "scene.tif" in answer.json()["detail"]
        assert str(tmp_path) not in answer.json()["detail"]


def test_a_file_that_is_removed_while_it_is_looked_at_is_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the -wal file of labels that QGIS has open: it is removed whenever QGIS has written it back."""
    path, state = tmp_path / "labels.gpkg-wal", Path.stat
    missing = file_revision(path)
    path.touch()
    there = file_revision(path)

    def removed_after_first_look(each: Path, **options: bool) -> os.stat_result:
        found = state(each, **options)
        each.unlink()
        return found

    monkeypatch.setattr(Path, "stat", removed_after_first_look)
    assert {file_revision(path), file_revision(path)} == {there, missing}


def test_a_file_is_downloaded_as_it_is(client: TestClient, folder: Path) -> None:
    (entry,) = client.get("/api/files").json()
    answer = client.get(f"/api/files/{entry['name']}")
    assert answer.content == (folder / "maps" / "scene.tif").read_bytes() and len(answer.content) == entry["bytes"]
    assert "attachment" in answer.headers["content-disposition"]


def test_rasters_without_crs_are_shown_and_labelled_in_pixels(tmp_path: Path) -> None:
    with client_of(make_project(tmp_path, crs=None)) as client:
        project = client.get("/api/project").json()
        assert not project["georeferenced"] and project["pixel_size_m"] is None
        layer = layer_of(client, "probability")
        assert picture(client, f"/api/layers/{layer['id']}/tiles/{middle_tile(layer)}")[..., 3].any()
        area = client.get(f"/api/layers/{layer['id']}/area?threshold=0.5").json()
        assert area["m2"] is None and area["n_scored"] == 1
        # The labels lie where they were drawn: in pixels of the image.
        first = shape(client.get("/api/labels").json()["features"][0]["geometry"])
        west, south, east, north = layer["bounds"]
        assert west < first.bounds[0] < first.bounds[2] < east and south < first.bounds[1] < first.bounds[3] < north


def test_a_map_beside_an_image_only_if_it_says_its_classes(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    write_raster(tmp_path / "maps" / "scene.tif", textured(1, 8, 8))
    with pytest.raises(InputError, match="classes"):
        layers_of(subject)


def test_labels_are_rasterized_as_in_a_tile_set() -> None:
    """The test above counts pixels in slices; this is that rule."""
    shapes = to_pixel_shapes(np.array([square(10, 20, 4)], object), np.ones(1, np.uint8), ~TENTH_METRE)
    from geograft.geo.grid import Window

    assert rasterize_window(shapes, Window(20, 10, 4, 4), fill=0).all()
