"""`geograft project --import`: polygons and masks of other programs as labels, all of a file's or none."""

import sqlite3
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from PIL import Image as PillowImage
from scipy import ndimage
from shapely import box

from geograft.cli import main
from geograft.commands.import_labels import (
    ClassChoice,
    ImportedLabels,
    ProjectLabels,
    import_labels,
    read_outlines,
    read_target,
)
from geograft.commands.prepare import prepare
from geograft.commands.project import project
from geograft.config import PrepareConfig
from geograft.config.recipes import AreaConfig, read_project
from geograft.dataset.sources import VectorSource
from geograft.errors import GeograftError, InputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import rasterize_window, to_pixel_shapes
from geograft.geo.vectors.label_edits import ConflictError, LabelFileEditor
from geograft.geo.vectors.label_file import Label, read_label_file, write_label_file
from tests.support.labelled_areas import GRID, SCORING, TRAINING, project_areas, shrink
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

WGS84 = "EPSG:4326"
SMALL = GRID.crop(Window(0, 0, 72, 80))
PREPARE = PrepareConfig(tile_px=32, buffer_px=4, val=0.0)


def make_project(folder: Path, classes: Sequence[str] = ("tree", "water"), scene: str = "scene.tif") -> Path:
    """Return a project of one image of 256 x 256 pixels without areas."""
    image = write_raster(folder / scene, textured(3, GRID.height, GRID.width))
    return project(folder / "project", image, classes, AreaConfig(0)).folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def labels_of(folder: Path) -> tuple[ndarray, tuple[str, ...], ndarray]:
    """Return the shapes of all labels, their classes, and which are suggested."""
    content = read_label_file(folder / "labels.gpkg")
    polygons = content.polygons_in(None)
    return polygons.shapes, polygons.classes, content.suggested


def rasterized(shapes: ndarray, values: Sequence[int], grid: Grid = GRID) -> ndarray:
    """Return labels as `prepare` draws them on the image."""
    pixel_shapes = to_pixel_shapes(shapes, np.array(values, np.uint8), ~grid.transform)
    return rasterize_window(pixel_shapes, grid.window, fill=0)


def objects(count: int = 40, seed: int = 0) -> ndarray:
    """Return a mask of numbered objects that touch and overlap each other, as Segment Anything's tools write it."""
    rng, mask = np.random.default_rng(seed), np.zeros((GRID.height, GRID.width), np.uint16)
    for number in range(1, count + 1):
        row, col, side = *rng.integers(0, 230, 2), rng.integers(3, 60)
        mask[row : row + side, col : col + side] = number * 7
    return mask


def write_png(path: Path, values: ndarray) -> Path:
    PillowImage.fromarray(values).save(path)
    return path


def write_polygons(path: Path, shapes: Sequence[Any], crs: Any = UTM12, **columns: Sequence[Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers without CRS
        geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs).to_file(path)
    return path


# ---------------------------------------------------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ProjectLabels]:
    parent = tmp_path_factory.mktemp("target")
    image = write_raster(parent / "scene.tif", textured(3, SMALL.height, SMALL.width))
    folder = project(parent / "project", image, ["tree", "water"], AreaConfig(0)).folder
    return folder, read_target(folder, read_project(folder)[0])


@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([0.0, 0.8, 3.0]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_outlines_rasterized_are_the_mask(
    target: tuple[Path, ProjectLabels], seed: int, values: int, smooth: float, png: bool
) -> None:
    folder, labels = target
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=(SMALL.height, SMALL.width)), smooth) for _ in range(values + 1)]
    mask = np.argmax(noise, axis=0).astype(np.uint8)
    path = folder / ("scene_mask.png" if png else "mask.tif")
    write_png(path, mask) if png else write_raster(path, mask[None])
    table = {str(value): "tree" if value % 2 else "water" for value in range(1, values + 1)}
    found = read_outlines(path, labels, ClassChoice(("tree", "water"), by_value=table), None)
    expected = np.where(mask > 0, 2 - mask % 2, 0)
    numbers = [1 + (name == "water") for name in found.classes]
    assert np.array_equal(rasterized(found.shapes, numbers, SMALL), expected)
    regions = sum(ndimage.label(mask == value)[1] for value in range(1, values + 1))
    assert len(found.shapes) == regions and shapely.is_valid(found.shapes).all()


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_each_numbered_object_is_a_label_in_the_file(folder: Path, tmp_path: Path, dtype: str) -> None:
    mask = objects()
    made = import_labels(folder, write_raster(tmp_path / "sam.tif", mask[None].astype(dtype)), "tree")
    shapes, classes, suggested = labels_of(folder)
    assert np.array_equal(rasterized(shapes, [1] * len(shapes)), mask > 0)
    # Objects that touch stay apart: each label has pixels of one number.
    numbers = [np.unique(mask[rasterized(shapes[i : i + 1], [1]) > 0]).size for i in range(len(shapes))]
    assert numbers == [1] * len(shapes) and len(shapes) > 30
    assert set(classes) == {"tree"} and suggested.all()
    assert made.added == {"tree": len(shapes)} and made.suggested == len(shapes)


def test_a_picture_without_crs_belongs_to_the_image_of_its_size_and_name(tmp_path: Path) -> None:
    folder = make_project(tmp_path, ["tree"])
    mask = (objects() > 0).astype(np.uint8) * 255
    import_labels(folder, write_png(tmp_path / "anything.png", mask))
    assert np.array_equal(rasterized(labels_of(folder)[0], [1] * len(labels_of(folder)[0])), mask > 0)

    east = TENTH_METRE @ Affine.translation(5000, 0)
    images = [tmp_path / "scene.tif", write_raster(tmp_path / "other.tif", textured(3, 256, 256), east)]
    two = project(tmp_path / "two", images, ["tree"], AreaConfig(0)).folder
    with pytest.raises(InputError):
        import_labels(two, tmp_path / "anything.png")
    write_png(tmp_path / "other_mask.png", mask)
    import_labels(two, [write_png(tmp_path / "other_mask.png", mask)])
    assert labels_of(two)[0][0].bounds[0] > (east @ (0, 0))[0] - 1
    small = write_png(tmp_path / "scene_small.png", mask[:100])
    with pytest.raises(InputError):
        import_labels(two, small)


def test_grey_stored_as_colours_and_clear_pixels_are_a_mask(folder: Path, tmp_path: Path) -> None:
    mask = (objects() > 0).astype(np.uint8)
    alpha = np.full_like(mask, 255)
    alpha[:60] = 0
    picture = np.stack([mask * 200, mask * 200, mask * 200, alpha], axis=-1)
    import_labels(folder, write_png(tmp_path / "grey.png", picture), "water")
    shapes, classes, _ = labels_of(folder)
    expected = mask > 0
    expected[:60] = False
    assert np.array_equal(rasterized(shapes, [1] * len(shapes)) > 0, expected)
    assert set(classes) == {"water"}


def test_classes_by_value_and_by_the_metadata_of_a_map(folder: Path, tmp_path: Path) -> None:
    import rasterio

    values = np.zeros((1, 256, 256), np.uint8)
    values[0, 10:20, 10:20], values[0, 30:40, 10:20], values[0, 50:60, 10:20] = 1, 2, 3
    path = write_raster(tmp_path / "classes.tif", values, nodata=3)
    with pytest.raises(InputError):
        import_labels(folder, path)
    assert import_labels(folder, path, "1=water").added == {"water": 1}
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(CLASS_0="other", CLASS_1="water", CLASS_2="tree", CLASS_3="road")
    assert import_labels(folder, path).added == {"tree": 1}
    assert import_labels(folder, path, {"2": "water"}).added == {"water": 1}


def test_a_mask_in_another_crs_lies_where_it_lies(folder: Path, tmp_path: Path) -> None:
    from rasterio.warp import Resampling, reproject

    mask = (ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(256, 256)), 8) > 0).astype(np.uint8)
    west, south, east, north = geopandas.GeoSeries([GRID.footprint()], crs=UTM12).to_crs(WGS84).total_bounds
    step = 4e-7
    moved = np.zeros((1, int((north - south) / step), int((east - west) / step)), np.uint8)
    transform = Affine(step, 0, west, 0, -step, north)
    reproject(
        mask, moved[0], src_transform=GRID.transform, src_crs=UTM12, dst_transform=transform, dst_crs=WGS84,
        resampling=Resampling.nearest,
    )  # fmt: skip
    import_labels(folder, write_raster(tmp_path / "wgs.tif", moved, transform, WGS84), "tree")
    shapes = labels_of(folder)[0]
    found = rasterized(shapes, [1] * len(shapes)) > 0
    assert (found & (mask > 0)).sum() / (found | (mask > 0)).sum() > 0.98


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_png(path, textured(3, 256, 256).transpose(1, 2, 0)),
        lambda path: write_raster(path, np.random.default_rng(0).random((1, 256, 256), np.float32)),
        lambda path: write_raster(path, np.zeros((1, 256, 256), np.uint8)),
        lambda path: write_raster(path, textured(2, 256, 256)),
        lambda path: write_raster(path, np.ones((1, 256, 256), np.uint8), Affine.translation(9e6, 0) @ TENTH_METRE),
        lambda path: write_raster(path, np.ones((1, 256, 256), np.uint8), Affine.translation(9, 0) @ TENTH_METRE, None),
        lambda path: PillowImage.fromarray(np.ones((256, 256), np.uint8)).save(path, "JPEG"),
        lambda path: path.write_bytes(b"II*\0" + bytes(40)),
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: path.write_text("<VRTDataset rasterXSize='256' rasterYSize='256'></VRTDataset>"),
    ],
)
def test_what_is_no_mask_is_refused_and_nothing_changes(
    folder: Path, tmp_path: Path, write: Callable[[Path], object]
) -> None:
    good = write_raster(tmp_path / "good.tif", objects()[None])
    write(tmp_path / "bad.tif")
    before = (folder / "labels.gpkg").read_bytes()
    with pytest.raises(GeograftError) as found:
        import_labels(folder, [good, tmp_path / "bad.tif"], "tree")
    assert "bad.tif" in str(found.value)
    assert (folder / "labels.gpkg").read_bytes() == before


# -------------------------------------------------------------------------------------------------------- polygons


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_polygons_of_every_format_are_reprojected_once(folder: Path, tmp_path: Path, suffix: str) -> None:
    squares = [GRID.footprint(window) for window in TRAINING]
    crs = WGS84 if suffix == ".geojson" else "EPSG:3857"
    moved = geopandas.GeoSeries(squares, crs=UTM12).to_crs(crs)
    path = write_polygons(tmp_path / f"crowns{suffix}", moved, crs, species=["oak", "pond", "oak"])
    made = import_labels(folder, path, "oak=tree,pond=water", "species")
    shapes, classes, _ = labels_of(folder)
    assert made.added == {"tree": 2, "water": 1} and classes == ("tree", "water", "tree")
    for shape, square in zip(shapes, squares, strict=True):
        assert shapely.hausdorff_distance(shape, square) < 1e-3
    again = import_labels(folder, path, "oak=tree,pond=water", "species")
    assert again.added == {} and again.skipped["that are labels already"] == 3
    assert len(labels_of(folder)[0]) == 3


def test_what_is_left_out_is_counted_and_what_is_invalid_repaired(folder: Path, tmp_path: Path) -> None:
    left, bottom, right, top = GRID.footprint().bounds
    bow = shapely.Polygon([(left + 1, top - 1), (left + 3, top - 3), (left + 3, top - 1), (left + 1, top - 3)])
    assert not bow.is_valid
    inside, line = box(left + 5, bottom + 5, left + 6, bottom + 6), shapely.LineString([(left, top), (right, bottom)])
    outside, beside = box(right + 5, bottom, right + 6, bottom + 1), box(right, bottom, right + 1, top)
    shapes = [bow, inside, inside.reverse(), line, shapely.Point(left, top), outside, beside, shapely.Polygon(), inside]
    kinds = ["tree"] * 8 + ["water"]
    path = write_polygons(tmp_path / "mixed.gpkg", shapes, **{"class": kinds})
    made = import_labels(folder, path)
    assert made.added == {"tree": 2, "water": 1} and made.repaired == 1
    assert made.skipped == {
        "without area": 3, "of other values": 0, "outside of the images": 2, "that are labels already": 1
    }  # fmt: skip
    assert shapely.is_valid(labels_of(folder)[0]).all()
    assert labels_of(folder)[0][0].area == pytest.approx(2)


def test_a_project_of_one_class_needs_no_field(tmp_path: Path) -> None:
    folder = make_project(tmp_path, ["tree"])
    path = write_polygons(tmp_path / "sam.gpkg", [shrink(TRAINING[0])], value=[17])
    assert import_labels(folder, path).added == {"tree": 1}


def test_the_labels_of_another_project_keep_their_origin(folder: Path, tmp_path: Path) -> None:
    labels = [Label(shrink(TRAINING[0]), "tree"), Label(shrink(TRAINING[1]), "water", "suggested")]
    write_label_file(tmp_path / "colleague.gpkg", project_areas(), labels, GRID.crs)
    import_labels(folder, tmp_path / "colleague.gpkg")
    assert labels_of(folder)[2].tolist() == [False, True]
    fresh = make_project(tmp_path / "fresh")
    import_labels(fresh, tmp_path / "colleague.gpkg", origin="drawn")
    assert labels_of(fresh)[2].tolist() == [False, False]


def test_a_score_against_a_models_outlines_is_refused_until_they_are_checked(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "scene.tif", textured(3, GRID.height, GRID.width))
    crowns = write_polygons(tmp_path / "sam.gpkg", [shrink(window) for window in (*TRAINING, *SCORING)])
    for origin, advised in ((None, 4), ("drawn", 0)):
        folder = project(tmp_path / f"p{advised}", image, ["tree"], AreaConfig(0)).folder
        write_label_file(folder / "labels.gpkg", project_areas(), [], GRID.crs)
        made = import_labels(folder, crowns, origin=origin)  # type: ignore[arg-type]
        assert made.unchecked == advised
        source = VectorSource(image, folder / "labels.gpkg")
        if advised:
            with pytest.raises(InputError):
                prepare(source, tmp_path / "tiles", PREPARE)
        else:
            prepare(source, tmp_path / "tiles", PREPARE)


@pytest.mark.parametrize(
    ("classes", "field", "columns"),
    [
        ("forest", None, {"class": ["tree"]}),
        ("tree=forest", None, {"class": ["tree"]}),
        ("tree=tree,tree=water", None, {"class": ["tree"]}),
        ("oak", "species", {"species": ["oak"]}),
        ("tree", "species", {"species": ["oak"]}),
        ("", None, {"species": ["oak"]}),
        ("", "genus", {"species": ["oak"]}),
        ("", "species", {"species": ["oak"]}),
        ("", "class", {"class": [None]}),
    ],
)
def test_a_class_that_nothing_says_is_an_error(
    folder: Path, tmp_path: Path, classes: str, field: str | None, columns: dict[str, list[Any]]
) -> None:
    path = write_polygons(tmp_path / "a.gpkg", [shrink(TRAINING[0])], **columns)
    before = (folder / "labels.gpkg").read_bytes()
    with pytest.raises((InputError, SettingError)):
        import_labels(folder, path, classes, field)
    assert (folder / "labels.gpkg").read_bytes() == before


@pytest.mark.parametrize("crs", [None, "EPSG:32755"])
def test_polygons_without_or_with_another_place_are_refused(folder: Path, tmp_path: Path, crs: str | None) -> None:
    path = write_polygons(tmp_path / "a.gpkg", [shrink(TRAINING[0])], crs, **{"class": ["tree"]})
    with pytest.raises(InputError):
        import_labels(folder, path)


def test_a_limit_of_outlines_is_told_from_headers_or_while_counting(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.commands.import_labels.MAX_OUTLINES", 2)
    write_polygons(tmp_path / "a.gpkg", [shrink(window) for window in TRAINING], **{"class": ["tree"] * 3})
    write_raster(tmp_path / "b.tif", objects()[None])
    for name in ("a.gpkg", "b.tif"):
        with pytest.raises(InputError, match="at most 2"):
            import_labels(folder, tmp_path / name, "tree")


# ------------------------------------------------------------------------------------------------- one transaction


def test_a_failure_between_two_labels_leaves_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_polygons(tmp_path / "a.gpkg", [shrink(window) for window in TRAINING], **{"class": ["tree"] * 3})
    insert, calls = LabelFileEditor.insert, iter((True, True, False))

    def insert_or_fail(self: LabelFileEditor, *args: Any) -> int:
        if not next(calls):
            raise KeyboardInterrupt
        return insert(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LabelFileEditor, "insert", insert_or_fail)
        with pytest.raises(KeyboardInterrupt):
            import_labels(folder, path)
    assert len(labels_of(folder)[0]) == 0
    assert import_labels(folder, path).added == {"tree": 3}
    with closing(sqlite3.connect(folder / "labels.gpkg")) as file:
        assert file.execute("SELECT count(*) FROM rtree_labels_geom").fetchone() == (3,)
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_change_of_another_program_in_the_meantime_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_polygons(tmp_path / "a.gpkg", [shrink(TRAINING[0])], **{"class": ["tree"]})
    other = write_polygons(tmp_path / "b.gpkg", [shrink(TRAINING[1])], **{"class": ["water"]})

    def read_late(*args: Any) -> Any:
        found = read_outlines(*args)
        monkeypatch.undo()
        import_labels(folder, other)
        return found

    monkeypatch.setattr("geograft.commands.import_labels.read_outlines", read_late)
    with pytest.raises(ConflictError):
        import_labels(folder, path)
    assert labels_of(folder)[1] == ("water",)


# ------------------------------------------------------------------------------------------------- the command line


def test_the_command_line_imports_and_says_what_it_did(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raster(tmp_path / "a.tif", objects()[None])
    write_raster(tmp_path / "b.tif", np.fliplr(objects())[None])
    files = [str(tmp_path / name) for name in ("a.tif", "b.tif")]
    with pytest.raises(SystemExit) as ended:
        main(["project", str(folder), "--import", *files, "--class", "tree", "--origin", "drawn"])
    assert not ended.value.code
    assert f"{len(labels_of(folder)[0])} labels added: tree" in capsys.readouterr().out
    assert not labels_of(folder)[2].any()


@pytest.mark.parametrize(
    "options",
    [
        ["scene.tif", "--import", "a.tif"],
        ["--import", "a.tif", "--classes", "tree"],
        ["--import", "a.tif", "--scoring-areas", "3"],
        ["--import", "a.tif", "--area-m", "0"],
        ["--class", "tree", "--classes", "tree"],
        ["--origin", "drawn"],
    ],
)
def test_options_of_making_and_of_importing_exclude_each_other(folder: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["project", str(folder), *options])
    assert ended.value.code not in (0, None)


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        import_labels(tmp_path, tmp_path / "a.gpkg")
    with pytest.raises(InputError):
        import_labels(make_project(tmp_path), [])


def test_large_pictures_are_decoded_once_from_their_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PNG is decoded from its first row for any window: the rows of a block are read together."""
    path = write_png(tmp_path / "a.png", objects())
    windows = []
    read = Image.read

    def counted(self: Image, window: Any, bands: Any = None) -> Any:
        windows.append(window)
        return read(self, window, bands)

    monkeypatch.setattr("geograft.mapping.polygons.regions.BLOCK_PX", 64)
    monkeypatch.setattr(Image, "read", counted)
    target = read_target(folder, read_project(folder)[0])
    assert len(read_outlines(path, target, ClassChoice(("tree",), "tree"), None).shapes)
    assert all(window.width == 256 for window in windows)


def test_the_result_says_nothing_of_what_did_not_happen() -> None:
    made = ImportedLabels(Path("labels.gpkg"), {"tree": 1}, {"without area": 0}, 0, 0, 0)
    assert made.lines() == ["labels.gpkg: 1 label added: tree 1"]
