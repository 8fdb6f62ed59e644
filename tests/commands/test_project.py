"""`geograft project`: the random areas, the folder that is written, and what QGIS reads from it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS

from geograft.cli import main
from geograft.commands.project import MIN_VALID, ProjectFolder, draw_areas, project
from geograft.config.recipes import AreaConfig, ProjectSettings, read_project
from geograft.dataset.scenes import read_image_infos
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.label_file import read_label_file
from tests.support.gis import qgis_project
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

FEW = AreaConfig(4, 32)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "images" / "scene.tif", textured(3, 256, 320))


@pytest.fixture(scope="module")
def half_empty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Two images in different CRSs; the left half of the first has no data."""
    pixels = textured(3, 200, 240)
    pixels[:, :, :120] = 0
    folder = tmp_path_factory.mktemp("images")
    first = write_raster(folder / "first.tif", pixels, nodata=0)
    return first, write_raster(folder / "second.tif", textured(3, 80, 300), crs="EPSG:32613")


# ---------------------------------------------------------------------------------------------------- the random areas


@given(st.integers(0, 5), st.integers(16, 40), st.integers(0, 10**9))
@settings(max_examples=15)
def test_areas_lie_apart_inside_valid_pixels(half_empty: tuple[Path, ...], count: int, side: int, seed: int) -> None:
    infos = dict(zip(("first", "second"), read_image_infos(half_empty), strict=True))
    wanted, crs = AreaConfig(count, side, seed), CRS.from_user_input(UTM12)
    areas = draw_areas(tuple(infos.values()), tuple(infos), wanted, crs)
    assert len(areas) == count
    assert areas == draw_areas(tuple(infos.values()), tuple(infos), wanted, crs)
    for number, area in enumerate(areas):
        info, window = infos[area.scene], area.window
        assert window.intersection(info.grid.window) == window
        assert (window.height, window.width) == (side, side)
        with Image.open(info.path) as image:
            assert image.read(window)[1].mean() >= MIN_VALID
        assert not any(area.outline.intersects(other.outline) for other in areas[:number])


def test_every_position_is_equally_likely(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 20, 40))
    infos = read_image_infos([path])
    crs = CRS.from_user_input(UTM12)
    drawn = [draw_areas(infos, ("a",), AreaConfig(1, 16, seed), crs)[0].window for seed in range(300)]
    rows, cols = (np.bincount([getattr(w, side) for w in drawn], minlength=n) for side, n in (("row", 5), ("col", 25)))
    for counts in (rows, cols):
        expected = 300 / len(counts)
        # Chi-squared has the mean n - 1 and the variance 2 (n - 1): six standard deviations.
        bound = len(counts) - 1 + 6 * np.sqrt(2 * (len(counts) - 1))
        assert ((counts - expected) ** 2 / expected).sum() < bound


def test_the_side_may_be_in_metres(scene: Path, tmp_path: Path) -> None:
    for side_m in (1.2, float("nan"), 1e9, -3):
        with pytest.raises(SettingError):
            project(tmp_path / "new", scene, ["tree"], AreaConfig(3), area_m=side_m)
    made = project(tmp_path / "new", scene, ["tree"], AreaConfig(3), area_m=4)
    assert made.settings.areas.area_px == 40
    assert all(area.outline.area == pytest.approx(16) for area in made.areas)


# ---------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_has_settings_labels_and_projects(scene: Path, tmp_path: Path) -> None:
    made = project(tmp_path / "new", scene, ["tree", "water"], FEW)
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "labels.gpkg",
        "project.qgz",
        "project.toml",
        "results.qgs",
    ]
    found, chosen = read_project(made.folder)
    assert found == made.settings
    assert chosen == frozenset()
    assert found.images == ("../images/scene.tif",)
    assert found.names == ("tree", "water")
    labels = read_label_file(made.folder / "labels.gpkg")
    assert [area.rank for area in labels.areas] == [1, 2, 3, 4]
    assert all(area.is_sample and not area.labelled and area.scene == "scene" for area in labels.areas)
    for area, drawn in zip(labels.areas, made.areas, strict=True):
        assert shapely.equals_exact(area.shape, shapely.MultiPolygon([drawn.outline]), 1e-6)
    with zipfile.ZipFile(made.folder / "project.qgz") as archive:
        assert archive.namelist() == ["project.qgs"]
        assert str(tmp_path) not in archive.read("project.qgs").decode()


def test_equal_input_gives_equal_bytes(scene: Path, tmp_path: Path) -> None:
    def made(parent: str) -> dict[str, bytes]:
        (tmp_path / parent).mkdir()
        folder = project(tmp_path / parent / "new", scene, ["tree"], FEW).folder
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert made("a") == made("b")


@pytest.mark.parametrize(
    ("classes", "areas", "error"),
    [
        ([], FEW, SettingError),
        (["tree", " "], FEW, SettingError),
        (["tree", "tree "], FEW, SettingError),
        (["tree"], AreaConfig(1, 300), InputError),
        (["tree"], AreaConfig(200, 64), InputError),
    ],
)
def test_a_refused_project_leaves_nothing(
    scene: Path, tmp_path: Path, classes: list[str], areas: AreaConfig, error: type[GeograftError]
) -> None:
    with pytest.raises(error):
        project(tmp_path / "new" / "trees", scene, classes, areas)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_images_need_a_crs_and_a_folder_is_not_replaced(scene: Path, tmp_path: Path) -> None:
    plain = write_raster(tmp_path / "plain.tif", textured(3, 64, 64), crs=None)
    for images in ([plain], [scene, plain], [tmp_path / "missing.tif"], []):
        with pytest.raises(InputError):
            project(tmp_path / "new", images, ["tree"], FEW)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        project(tmp_path / "new", scene, ["tree"], FEW)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]


def test_without_scoring_areas_the_command_says_so(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["project", str(tmp_path / "new"), str(scene), "--classes", "tree", "--scoring-areas", "0"])
    assert not ended.value.code
    assert "accuracy" in capsys.readouterr().out
    assert read_label_file(tmp_path / "new" / "labels.gpkg").areas == ()
    with pytest.raises(SystemExit):
        main(["project", str(tmp_path / "b"), str(scene), "--classes", "tree", "--area-px", "32", "--area-m", "3"])


# ---------------------------------------------------------------------------------------------------------------- QGIS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ProjectFolder:
    """A project of two images: bytes in colour, and six bands of 16 bits in another CRS."""
    folder = tmp_path_factory.mktemp("qgis")
    near = write_raster(folder / "near.tif", textured(3, 256, 320))
    pixels = textured(3, 128, 128, seed=1).astype(np.uint8)
    shifted = TENTH_METRE @ TENTH_METRE.translation(400, 0)
    return project(
        folder / "new", [near, write_raster(folder / "next.tif", pixels, shifted)], ["tree", "Jo's < field"], FEW
    )


def test_qgis_opens_the_project_and_adds_features_with_their_defaults(made: ProjectFolder, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    copy = made.folder / "saved.qgz"
    found = qgis_project(made.folder / "project.qgz", "--add", "--save", str(copy), "--picture", str(picture))
    assert found["groups"] == {"Draw": ["areas", "labels"], "Results": [], "Images": ["near", "next"]}
    assert found["not_shown"] == []
    assert all(layer["valid"] and layer["crs"] == UTM12 for layer in found["layers"].values())
    assert found["snapping"] == [True, 2, 12, 1]
    assert found["topological"] is True
    assert found["extent"] == pytest.approx([528000, 4978974.4, 528052.8, 4979000])
    areas, labels = found["layers"]["areas"], found["layers"]["labels"]
    assert areas["legend"] == [
        f"{role}, {state}" for role in ("training", "scoring") for state in ("to label", "labelled")
    ]
    assert labels["legend"] == ["tree", "Jo's < field"]
    assert areas["widgets"]["labelled"] == "CheckBox"
    assert areas["choices"]["role"] == ["training", "scoring"]
    assert areas["fixed"] == ["origin", "rank", "scene"]
    assert labels["choices"] == {"class": ["tree", "Jo's < field"], "origin": ["drawn", "suggested"]}
    assert labels["repeated"] == ["class"]
    assert not labels["form_hidden"]
    new = {"role": "training", "origin": "drawn", "labelled": False}
    assert new.items() <= found["added"]["areas"].items()
    assert found["added"]["labels"]["origin"] == "drawn"
    assert found["added"]["labels"]["class"] is None
    content = read_label_file(made.folder / "labels.gpkg")
    assert [area.origin for area in content.areas] == ["random"] * 4 + ["drawn"]
    assert picture.stat().st_size > 10_000


def test_a_single_class_is_the_default(scene: Path, tmp_path: Path) -> None:
    folder = project(tmp_path / "new", scene, ["O'Hara's tree"], FEW).folder
    found = qgis_project(folder / "project.qgz", "--add")
    assert found["added"]["labels"] == {"fid": 1, "class": "O'Hara's tree", "origin": "drawn", "note": None}
    assert found["layers"]["labels"]["form_hidden"]


def test_settings_survive_their_file(tmp_path: Path, made: ProjectFolder) -> None:
    changed = ProjectSettings(
        title="a", images=("b.tif",), classes=made.settings.classes, train={"epochs": 3}, predict={"threshold": (0.2,)}
    )
    (tmp_path / "project.toml").write_text(changed.toml())
    found, chosen = read_project(tmp_path)
    assert found == changed
    assert chosen == {"epochs"}
