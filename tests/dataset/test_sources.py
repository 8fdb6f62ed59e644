"""Label sources: polygons and mask folders; invalid input gives a one-line error."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from numpy import ndarray
from PIL import Image as Picture
from pyproj import CRS
from shapely import Polygon, box

from geograft.dataset.scenes import LabelledScenes, scene_groups, scene_names
from geograft.dataset.sources import MaskSource, VectorSource
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.legend import IGNORE, Legend
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

GRID = Grid(60, 80, TENTH_METRE, CRS.from_user_input(UTM12))
FIELD, POND = Window(10, 20, 20, 30), Window(25, 40, 20, 30)


def write_layer(path: Path, shapes: list[Polygon], crs: Any = UTM12, **columns: Any) -> Path:
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def write_pixel_layer(path: Path, shapes: list[Polygon]) -> Path:
    """Write a layer without CRS; a Shapefile, for pyogrio warns of the others."""
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        return write_layer(path, shapes, None)


def labels_of(gathered: LabelledScenes, scene: int = 0) -> ndarray:
    found = gathered.scenes[scene]
    return found.label_reader()(found.info.grid.window)


def filled(*windows: Window) -> ndarray:
    labels = np.zeros((60, 80), np.uint8)
    for value, window in enumerate(windows, start=1):
        labels[window.slices] = value
    return labels


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", textured(3, 60, 80))


def test_a_single_class_is_named_after_the_file(tmp_path: Path, image: Path) -> None:
    path = write_layer(tmp_path / "fields.gpkg", [GRID.footprint(FIELD)])
    gathered = VectorSource((image,), path).gather()
    assert gathered.legend.names == ("background", "fields")
    assert np.array_equal(labels_of(gathered), filled(FIELD))
    assert gathered.scenes[0].name == gathered.scenes[0].group == "scene"


def test_classes_are_in_order_and_the_later_polygon_wins(tmp_path: Path, image: Path) -> None:
    shapes = [GRID.footprint(FIELD), GRID.footprint(POND)]
    gathered = VectorSource((image,), write_layer(tmp_path / "a.gpkg", shapes, kind=["field", "pond"]), "kind").gather()
    assert gathered.legend.names == ("background", "field", "pond")
    assert np.array_equal(labels_of(gathered), filled(FIELD, POND))
    turned = write_layer(tmp_path / "b.gpkg", shapes[::-1], kind=["pond", "field"])
    assert labels_of(VectorSource((image,), turned, "kind").gather())[27, 45] == 1


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path, image: Path) -> None:
    shapes = [GRID.footprint(FIELD)] * 2
    gathered = VectorSource((image,), write_layer(tmp_path / "a.gpkg", shapes, code=[10, 9]), "code").gather()
    assert gathered.legend.names == ("background", "9", "10")


def test_a_field_of_unique_values_is_no_class_field(tmp_path: Path, image: Path) -> None:
    path = write_layer(tmp_path / "a.gpkg", [GRID.footprint(FIELD)] * 300, fid_2=list(range(300)))
    with pytest.raises(InputError, match="300 different values"):
        VectorSource((image,), path, "fid_2").gather()


def test_a_class_called_background_is_the_background(tmp_path: Path, image: Path) -> None:
    shapes = [GRID.footprint(FIELD), GRID.footprint(POND)]
    path = write_layer(tmp_path / "a.gpkg", shapes, kind=["field", "background"])
    gathered = VectorSource((image,), path, "kind").gather()
    assert gathered.legend.names == ("background", "field")
    assert labels_of(gathered)[27, 45] == 0


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32611"])
def test_polygons_are_reprojected_to_the_image(tmp_path: Path, image: Path, crs: str) -> None:
    there = geopandas.GeoSeries([GRID.footprint(FIELD)], crs=UTM12).to_crs(crs)
    gathered = VectorSource((image,), write_layer(tmp_path / "a.gpkg", list(there), crs)).gather()
    assert np.array_equal(labels_of(gathered), filled(FIELD))


def test_images_of_two_crs_share_one_layer(tmp_path: Path, image: Path) -> None:
    left, bottom, right, top = geopandas.GeoSeries([GRID.footprint()], crs=UTM12).to_crs(4326).total_bounds
    degrees = Affine((right - left) / 80, 0, left, 0, (bottom - top) / 60, top)
    other = write_raster(tmp_path / "other.tif", textured(3, 60, 80), degrees, "EPSG:4326")
    path = write_layer(tmp_path / "a.gpkg", [GRID.footprint(FIELD)])
    gathered = VectorSource((image, other), path).gather()
    assert np.array_equal(labels_of(gathered, 0), filled(FIELD))
    assert (labels_of(gathered, 1) == filled(FIELD)).mean() > 0.95
    assert (labels_of(gathered, 1) == 1).sum() > 400


def test_pixels_outside_the_area_of_interest_are_unknown(tmp_path: Path, image: Path) -> None:
    labels = write_layer(tmp_path / "a.gpkg", [GRID.footprint(FIELD)])
    looked = write_layer(tmp_path / "aoi.gpkg", [GRID.footprint(Window(0, 0, 60, 40))])
    gathered = VectorSource((image,), labels, aoi=looked).gather()
    found = labels_of(gathered)
    assert (found[:, 40:] == IGNORE).all()
    assert np.array_equal(found[:, :40], filled(FIELD)[:, :40])
    assert "aoi.gpkg" in gathered.notes["area of interest"]


def test_repairs_and_images_without_polygons_are_noted(tmp_path: Path, image: Path) -> None:
    far = write_raster(tmp_path / "far.tif", textured(3, 60, 80), Affine(0.1, 0, 0, 0, -0.1, 0))
    x, y = TENTH_METRE.c, TENTH_METRE.f
    bowtie = Polygon([(x, y), (x + 2, y - 2), (x + 2, y), (x, y - 2)])
    gathered = VectorSource((image, far), write_layer(tmp_path / "a.gpkg", [bowtie])).gather()
    assert gathered.notes["labels"].startswith("1 polygon in ")
    assert gathered.notes["labels"].endswith("a.gpkg, 1 of them repaired, none on 1 of 2 images")


def test_labels_outside_all_images_are_reported_with_both_extents(tmp_path: Path, image: Path) -> None:
    path = write_layer(tmp_path / "a.gpkg", [shapely.affinity.translate(GRID.footprint(FIELD), 5000, 0)])
    with pytest.raises(InputError, match=r"533002 to 533005 .* 528000 to 528008 ") as caught:
        VectorSource((image,), path).gather()
    assert "no polygon of" in str(caught.value)
    assert "WGS 84 / UTM zone 12N" in str(caught.value)


def test_an_image_without_crs_needs_polygons_without(tmp_path: Path) -> None:
    bare = write_raster(tmp_path / "bare.tif", textured(3, 60, 80), crs=None)
    path = write_layer(tmp_path / "a.gpkg", [GRID.footprint(FIELD)])
    with pytest.raises(InputError, match=r"bare\.tif .*a\.gpkg .*WGS 84 / UTM zone 12N"):
        VectorSource((bare,), path).gather()


@pytest.mark.parametrize("drawn", ["rows downwards", "as a GIS draws it"])
def test_without_crs_polygons_are_in_pixels(tmp_path: Path, drawn: str) -> None:
    Picture.fromarray(np.moveaxis(textured(3, 60, 80), 0, 2)).save(tmp_path / "picture.png")
    outline = box(20, 10, 50, 30) if drawn == "rows downwards" else box(20, -30, 50, -10)
    path = write_pixel_layer(tmp_path / "a.shp", [outline])
    assert np.array_equal(labels_of(VectorSource((tmp_path / "picture.png",), path).gather()), filled(FIELD))


def test_images_that_differ_are_named(tmp_path: Path, image: Path) -> None:
    labels = write_layer(tmp_path / "a.gpkg", [GRID.footprint(FIELD)])
    four = write_raster(tmp_path / "four.tif", textured(4, 60, 80), photometric="MINISBLACK")
    with pytest.raises(InputError, match=r"scene\.tif has 3 bands, .*four\.tif has 4"):
        VectorSource((image, four), labels).gather()
    wide = write_raster(tmp_path / "wide.tif", textured(3, 60, 80).astype(np.uint16))
    with pytest.raises(InputError, match=r"scene\.tif .*uint8, .*wide\.tif .*uint16"):
        VectorSource((image, wide), labels).gather()


def test_an_image_of_colour_indices_is_refused(tmp_path: Path) -> None:
    Picture.fromarray(textured(1, 60, 80)[0]).convert("P").save(tmp_path / "a.png")
    with pytest.raises(InputError, match="colour table"):
        VectorSource((tmp_path / "a.png",), write_pixel_layer(tmp_path / "a.shp", [box(0, 0, 9, 9)])).gather()


def test_scene_names_are_different_and_kept_where_they_can() -> None:
    assert scene_names([Path("a/Amazon_1.tiff_29.tiff"), Path("b/x.tif")]) == ("Amazon_1.tiff_29", "x")
    assert scene_names([Path("a/x.tif"), Path("b/X.tif")]) == ("a_x", "b_X")
    with pytest.raises(InputError, match=r"\ba_x\b"):
        scene_names([Path("a/x.tif"), Path("a/x.tif")])


def test_groups_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("scene,group\nmay,north\njuly , north\nmay,north\n")
    expected = {"may": "north", "july": "north", "far": "far"}
    assert scene_groups(tmp_path / "groups.csv", ["may", "july", "far"]) == (expected, {})
    assert scene_groups({"may": "x"}, ["may"]) == ({"may": "x"}, {})
    assert scene_groups(None, ["may"]) == ({"may": "may"}, {})


def test_other_names_in_groups_are_a_note(tmp_path: Path, image: Path) -> None:
    groups, note = scene_groups({"may": "x", "june": "x"}, ["may"])
    assert groups == {"may": "x"}
    assert "june" in note["groups"]
    path = write_layer(tmp_path / "fields.gpkg", [GRID.footprint(FIELD)])
    gathered = VectorSource((image,), path, groups={"scene": "here", "other": "here"}).gather()
    assert gathered.scenes[0].group == "here"
    assert "1 of 2 names are of no scene: other" in gathered.notes["groups"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scene,group\nmaj,north\n", r"maj\..*may"),
        ("scene,group\nmay,north\nmay,south\n", r"groups\.csv.*may.*north.*south"),
        ("name,place\nmay,north\n", "scene,group"),
        ("scene,group\nmay\n", "scene,group"),
        ("scene,group\nmay,\n", r"groups\.csv.*may"),
        ("", "scene,group"),
        ("name,place\n", "scene,group"),
        ("scene,group\n,north\n", r"groups\.csv.*north"),
        (None, r"groups\.csv"),
    ],
)
def test_bad_groups_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        scene_groups(tmp_path / "groups.csv", ["may"])


class Folders:
    """Builder of a folder of images and a folder of masks."""

    def __init__(self, root: Path) -> None:
        self.images, self.masks = root / "images", root / "masks"
        self.images.mkdir()
        self.masks.mkdir()

    def image(self, name: str, height: int = 60, width: int = 80) -> None:
        Picture.fromarray(np.moveaxis(textured(3, height, width), 0, 2)).save(self.images / name)

    def mask(self, name: str, values: ndarray) -> None:
        Picture.fromarray(values).save(self.masks / name)

    def source(self, classes: dict[int, str], **options: Any) -> MaskSource:
        return MaskSource(self.images, self.masks, classes, **options)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_the_first_of_two_classes_is_the_positive_class(folders: Folders) -> None:
    folders.image("a.tiff_29.tiff")
    folders.mask("a.tiff_29.png", np.where(filled(FIELD) == 1, 1, 2).astype(np.uint8))
    gathered = folders.source({1: "forest", 2: "other"}).gather()
    assert gathered.legend.names == ("other", "forest")
    assert gathered.legend.values == (2, 1)
    assert gathered.scenes[0].name == "a.tiff_29"
    assert np.array_equal(labels_of(gathered), filled(FIELD))


def test_three_classes_keep_their_order(folders: Folders) -> None:
    folders.image("a.png")
    folders.mask("a.png", np.array([7, 3, 5], np.uint8)[filled(FIELD, POND)])
    gathered = folders.source({3: "field", 5: "pond", 7: "rest"}).gather()
    assert gathered.legend.names == ("field", "pond", "rest")
    assert gathered.legend.values == (3, 5, 7)
    assert np.array_equal(labels_of(gathered), np.array([2, 0, 1])[filled(FIELD, POND)])


def test_an_ignored_value_is_unknown(folders: Folders) -> None:
    folders.image("a.png")
    folders.mask("a.png", np.array([0, 1, 99], np.uint8)[filled(FIELD, POND)])
    found = labels_of(folders.source({1: "field", 0: "rest"}, ignore=99).gather())
    assert np.array_equal(found, np.array([0, 1, IGNORE])[filled(FIELD, POND)])


def test_values_beyond_a_maps_bytes_are_classes_too(folders: Folders) -> None:
    folders.image("a.png")
    folders.mask("a.png", filled(FIELD) * np.uint8(255))
    gathered = folders.source({255: "field", 0: "rest"}).gather()
    assert gathered.legend.values == (0, 1)
    assert np.array_equal(labels_of(gathered), filled(FIELD))


def test_palette_masks_are_read_by_their_indices(folders: Folders) -> None:
    folders.image("a.png")
    mask = Picture.fromarray(filled(FIELD), mode="P")
    mask.putpalette([9, 9, 9, 200, 0, 0])
    mask.save(folders.masks / "a.png", transparency=0)
    assert np.array_equal(labels_of(folders.source({1: "field", 0: "rest"}).gather()), filled(FIELD))


def test_a_georeferenced_mask_with_nodata_is_read_as_it_is(folders: Folders, tmp_path: Path) -> None:
    write_raster(folders.images / "a.tif", textured(3, 60, 80))
    write_raster(folders.masks / "a.tif", filled(FIELD)[None], nodata=0)
    assert np.array_equal(labels_of(folders.source({1: "field", 0: "rest"}).gather()), filled(FIELD))


def test_an_undeclared_value_is_named_with_its_file(folders: Folders) -> None:
    folders.image("a.png")
    folders.mask("a.png", np.array([0, 1, 99], np.uint8)[filled(FIELD, POND)])
    gathered = folders.source({1: "field", 0: "rest"}).gather()
    with pytest.raises(InputError, match=r"a\.png .* 99 .*0, 1\)"):
        gathered.scenes[0].label_reader()(Window(30, 50, 5, 5))


def test_fractions_are_undeclared(folders: Folders) -> None:
    folders.image("a.png")
    write_raster(folders.masks / "a.tif", np.full((1, 60, 80), 0.5, np.float32), crs=None)
    with pytest.raises(InputError, match=r"values 0\.5"):
        labels_of(folders.source({1: "field", 0: "rest"}).gather())


def test_everything_that_does_not_match_is_in_one_error(folders: Folders) -> None:
    for name in ("alone.png", "wide.png", "colour.png", "fine.png", "twice.png", "twice.jpg"):
        folders.image(name)
    for name in ("stray.png", "fine.png", "twice.png"):
        folders.mask(name, filled(FIELD))
    folders.mask("wide.png", np.zeros((60, 83), np.uint8))
    folders.mask("colour.png", np.zeros((60, 80, 3), np.uint8))
    (folders.images / "notes.txt").write_text("not an image")
    with pytest.raises(InputError) as caught:
        folders.source({1: "field", 0: "rest"}).gather()
    text = str(caught.value)
    for part in (
        "5 images",
        "image alone.png has no mask",
        "mask stray.png has no image",
        "image wide.png has 80 x 60 pixels, its mask 83 x 60",
        "mask colour.png has 3 bands",
        "twice.jpg and twice.png",
        "--skip-mismatched",
    ):
        assert part in text
    assert "fine.png" not in text
    assert "\n" not in text


def test_many_mismatches_are_counted(folders: Folders) -> None:
    for number in range(25):
        folders.image(f"{number:02}.png")
    folders.mask("stray.png", filled(FIELD))
    with pytest.raises(InputError, match=r"26 .*image 00\.png .*image 19\.png .*and 6 more"):
        folders.source({1: "field", 0: "rest"}).gather()


def test_mismatched_files_can_be_skipped(folders: Folders) -> None:
    folders.image("alone.png")
    folders.image("fine.png")
    folders.mask("fine.png", filled(FIELD))
    gathered = folders.source({1: "field", 0: "rest"}, skip_mismatched=True).gather()
    assert [scene.name for scene in gathered.scenes] == ["fine"]
    assert "image alone.png has no mask" in gathered.notes["skipped"]


def test_nothing_left_is_an_error(folders: Folders) -> None:
    folders.image("a.png")
    folders.mask("b.png", filled(FIELD))
    with pytest.raises(InputError, match="images"):
        folders.source({1: "field", 0: "rest"}, skip_mismatched=True).gather()


def test_a_mask_of_another_place_does_not_match(folders: Folders) -> None:
    write_raster(folders.images / "a.tif", textured(3, 60, 80))
    write_raster(folders.masks / "a.tif", filled(FIELD)[None], TENTH_METRE @ Affine.translation(3, 0))
    with pytest.raises(InputError, match=r"mask a\.tif"):
        folders.source({1: "field", 0: "rest"}).gather()


@pytest.mark.parametrize(("classes", "ignore"), [({1: "field"}, None), ({1: "a", 2: "a"}, None), ({1: "a", 2: "b"}, 2)])
def test_invalid_classes(folders: Folders, classes: dict[int, str], ignore: int | None) -> None:
    with pytest.raises(SettingError):
        folders.source(classes, ignore=ignore).gather()


@pytest.mark.parametrize("which", ["images", "masks"])
def test_a_missing_or_empty_folder_is_named(folders: Folders, which: str) -> None:
    folders.image("a.png")
    folders.mask("a.png", filled(FIELD))
    (getattr(folders, which) / "a.png").unlink()
    with pytest.raises(InputError, match=f"{which} .*PNG, JPEG or TIFF"):
        folders.source({1: "a", 0: "b"}).gather()
    getattr(folders, which).rmdir()
    with pytest.raises(InputError, match=f"{which}"):
        folders.source({1: "a", 0: "b"}).gather()


def test_the_amazon_masks_that_do_not_fit(shared: Path) -> None:
    source = MaskSource(shared / "data/amazon/images", shared / "data/amazon/masks", {1: "forest", 2: "other"})
    with pytest.raises(InputError, match=r"^1 .*image Amazon_181\.tiff_34\.tiff .* its mask 515 x 512"):
        source.gather()


def test_polygons_of_overlapping_classes_have_a_band_each(tmp_path: Path, image: Path) -> None:
    kinds = ["field", "pond", "background"]
    shapes = [GRID.footprint(window) for window in (FIELD, POND, Window(0, 0, 15, 80))]
    path = write_layer(tmp_path / "all.gpkg", shapes, kind=kinds)
    gathered = VectorSource((image,), path, "kind", overlapping=True).gather()
    assert gathered.legend == Legend(("field", "pond"), overlapping=True)
    assert (gathered.fractional, gathered.implicit_background) == (True, False)
    # A polygon of no class takes nothing from the others.
    assert np.array_equal(labels_of(gathered), np.stack([filled(FIELD), filled(POND)]) * 250)


def test_a_pixel_half_in_a_polygon_is_half_of_its_class(tmp_path: Path, image: Path) -> None:
    half = shapely.transform(GRID.footprint(FIELD), lambda xy: xy + np.array([0.05, 0]))
    gathered = VectorSource((image,), write_layer(tmp_path / "fields.gpkg", [half]), fractional=True).gather()
    shares = filled(FIELD) * 250.0
    shares[FIELD.slices[0], FIELD.col] = shares[FIELD.slices[0], FIELD.stop_col] = 125
    assert gathered.legend.names == ("background", "fields")
    assert np.array_equal(labels_of(gathered), shares[None])


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x01", "x" * 101])
def test_names_of_classes_are_printable(tmp_path: Path, image: Path, folders: Folders, name: str) -> None:
    path = write_layer(tmp_path / "a.gpkg", [GRID.footprint(FIELD)] * 2, kind=["field", name])
    with pytest.raises(InputError, match="class name") as caught:
        VectorSource((image,), path, "kind").gather()
    assert "\n" not in str(caught.value)
    folders.image("a.png")
    folders.mask("a.png", filled(FIELD))
    with pytest.raises(InputError, match="class name"):
        folders.source({0: "rest", 1: name}).gather()


def test_too_many_classes(folders: Folders) -> None:
    folders.image("a.png")
    folders.mask("a.png", filled(FIELD))
    with pytest.raises(InputError, match="300"):
        folders.source({value: f"c{value}" for value in range(300)}).gather()
