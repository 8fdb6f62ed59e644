"""Masks of colours, tables of classes, and masks whose names have affixes; what is not declared is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from PIL import Image as Picture

from geograft.cli import app
from geograft.cli.data import parse_classes
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.masks import parse_colour, read_class_table
from geograft.dataset.scenes import LabelledScenes, find_affixes, pair_names
from geograft.dataset.sources import MaskSource
from geograft.errors import GeograftError, InputError, SettingError
from geograft.legend import IGNORE
from tests.support.rasters import textured, write_raster

SIDE = 32
COLOURS = np.array([(0, 0, 0), (0xB5, 0, 0), (0x1F, 0x7B, 0x16)], np.uint8)
CLASSES = {"#000000": "background", "#b50000": "building", "#1F7B16": "plants"}
INDICES = np.zeros((SIDE, SIDE), np.uint8)
INDICES[4:12, 4:12] = 1
INDICES[20:30, 8:28] = 2


class Folders:
    """Builder of a folder of images and a folder of masks."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.masks = root, root / "images", root / "masks"
        self.images.mkdir()
        self.masks.mkdir()

    def add(self, mask: ndarray, name: str = "a.png", image: str = "a.png", **options: Any) -> None:
        Picture.fromarray(np.moveaxis(textured(3, SIDE, SIDE), 0, 2)).save(self.images / image)
        Picture.fromarray(mask).save(self.masks / name, **options)

    def source(self, classes: Any, **options: Any) -> MaskSource:
        return MaskSource(self.images, self.masks, classes, **options)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def labels_of(gathered: LabelledScenes) -> ndarray:
    return gathered.scenes[0].label_reader()(gathered.scenes[0].info.grid.window)


# -------------------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "palette"])
def test_colours_become_classes(folders: Folders, kind: str) -> None:
    picture = Picture.fromarray(COLOURS[INDICES])
    converted = picture.quantize(3) if kind == "palette" else picture.convert(kind)
    folders.add(COLOURS[INDICES])
    converted.save(folders.masks / "a.png")
    gathered = folders.source(CLASSES).gather()
    assert gathered.legend.names == ("background", "building", "plants")
    assert gathered.legend.values == (0, 1, 2)
    assert np.array_equal(labels_of(gathered), INDICES)


def test_of_two_colours_the_first_is_the_positive_class(folders: Folders) -> None:
    folders.add(COLOURS[(INDICES > 0).astype(int)])
    gathered = folders.source({"#b50000": "building", "#000000": "rest"}).gather()
    assert gathered.legend.names == ("rest", "building")
    assert np.array_equal(labels_of(gathered), INDICES > 0)


def test_a_grey_mask_has_shades_of_grey(folders: Folders) -> None:
    folders.add((INDICES > 0) * np.uint8(255))
    gathered = folders.source({"#ffffff": "building", "#000000": "rest"}).gather()
    assert np.array_equal(labels_of(gathered), INDICES > 0)


def test_an_undeclared_colour_is_counted_or_ignored(folders: Folders) -> None:
    folders.add(COLOURS[INDICES])
    some = {"#000000": "background", "#b50000": "building"}
    with pytest.raises(InputError, match=r"a\.png .*#1f7b16 in 200 pixels") as caught:
        labels_of(folders.source(some).gather())
    assert "\n" not in str(caught.value)
    expected = np.where(INDICES == 2, IGNORE, 1 - INDICES)
    assert np.array_equal(labels_of(folders.source(some, ignore_undeclared=True).gather()), expected)
    assert np.array_equal(labels_of(folders.source(some, ignore="#1f7b16").gather()), expected)


def test_an_undeclared_value_is_counted_or_ignored(folders: Folders) -> None:
    folders.add(INDICES)
    with pytest.raises(InputError, match=r"2 in 200 pixels"):
        labels_of(folders.source({0: "rest", 1: "building"}).gather())
    found = labels_of(folders.source({1: "building", 0: "rest"}, ignore_undeclared=True).gather())
    assert np.array_equal(found, np.where(INDICES == 2, IGNORE, INDICES))


def test_colours_that_jpeg_has_mixed_are_not_listed_one_by_one(folders: Folders) -> None:
    folders.add(COLOURS[INDICES], "a.jpg")
    with pytest.raises(InputError, match="JPEG") as caught:
        labels_of(folders.source(CLASSES).gather())
    assert len(str(caught.value)) < 700


def test_masks_with_colours_for_values_say_what_to_declare(folders: Folders) -> None:
    folders.add(COLOURS[INDICES])
    for skip in (False, True):
        with pytest.raises(InputError) as caught:
            folders.source({0: "rest", 1: "building"}, skip_mismatched=skip).gather()
        for fact in ("a.png has 3 bands", '--classes "#000000=', "#b50000=", "#1f7b16 in 200", "--overlapping"):
            assert fact in str(caught.value)


def test_colours_need_bytes_in_three_bands(folders: Folders) -> None:
    folders.add(COLOURS[INDICES])
    (folders.masks / "a.png").unlink()
    write_raster(folders.masks / "a.tif", np.moveaxis(COLOURS[INDICES], 2, 0).astype(np.uint16), crs=None)
    with pytest.raises(InputError, match="uint16"):
        folders.source(CLASSES).gather()


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        ({"#000000": "a", 1: "b"}, {}),
        ({"#000000": "a", "000000": "b"}, {}),
        ({"#000000": "a", "#ff": "b"}, {}),
        ({"#000000": "a", "300 0 0": "b"}, {}),
        (CLASSES, {"ignore": 3}),
        (CLASSES, {"ignore": "#b50000"}),
        (CLASSES, {"overlapping": True}),
        (CLASSES, {"fractional": True}),
        ({1: "a", 2: "b"}, {"ignore": "#000000"}),
        ({1: "a", 2: "b"}, {"fractional": True, "ignore_undeclared": True}),
    ],
)
def test_settings_that_contradict_each_other(folders: Folders, classes: Any, options: dict[str, Any]) -> None:
    folders.add(COLOURS[INDICES])
    with pytest.raises(SettingError):
        folders.source(classes, **options).gather()


@given(st.integers(0, 2**24 - 1))
def test_colours_in_all_notations(colour: int) -> None:
    red, green, blue = colour >> 16, colour >> 8 & 255, colour & 255
    for text in (f"#{colour:06x}", f"{colour:06X}", f"{red},{green},{blue}", f"({red}, {green}, {blue})"):
        assert parse_colour(text) == colour


# ------------------------------------------------------------------------------------------- tables of classes


@pytest.mark.parametrize(
    "text",
    [
        "name,colour\nbackground,#000000\nbuilding,#b50000\nplants,#1f7b16\n",
        "Class;Color\nbackground;000000\nbuilding;B50000\nplants;31 123 22\n",
        "name,r,g,b\nbackground,0,0,0\nbuilding,181,0,0\nplants,31,123,22\n",
        "\ufefflabel\tred\tgreen\tblue\tid\nbackground\t0\t0\t0\t1\nbuilding\t181\t0\t0\t2\nplants\t31\t123\t22\t3\n",
    ],
)
def test_a_table_of_colours(folders: Folders, text: str) -> None:
    (folders.root / "classes.csv").write_text(text, encoding="utf-8")
    table = parse_classes(str(folders.root / "classes.csv"))
    assert table == {"#000000": "background", "#b50000": "building", "#1f7b16": "plants"}
    folders.add(COLOURS[INDICES])
    assert np.array_equal(labels_of(folders.source(table).gather()), INDICES)


def test_a_table_of_values(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("value,name\n0,rest\n7,building\n")
    assert read_class_table(tmp_path / "classes.csv") == {0: "rest", 7: "building"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"name,colour\n",
        b"#b50000,building\n#000000,rest\n",
        b"name,colour\nbuilding,red\n",
        b"name,colour\nbuilding\n",
        b"name,colour\n,#b50000\n",
        b"name,colour\na,#b50000\nb,#b50000\n",
        b"name,r,g,b\na,1,2\n",
        b"name,r,g,b\na,1,2,300\n",
        b"name,value\na,x\n",
        b"name,colour\na,#b50000,extra,cells\n,,,\n",
        b"\xff\xfe\x00",
        b"name,colour\na,\x00\n",
        b'name,colour\n"a',
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "classes.csv"
    path.write_bytes(content)
    with pytest.raises(GeograftError, match=r"classes\.csv") as caught:
        read_class_table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1=a,1=b", "#b50000=a,#B50000=b", "#b50000", "#b50000=", "missing.csv"])
def test_bad_classes_on_the_command_line(text: str) -> None:
    with pytest.raises(GeograftError):
        parse_classes(text)


# ------------------------------------------------------------------------------------------- forgotten classes


@pytest.mark.parametrize(
    ("mask", "options", "facts"),
    [
        (INDICES, {}, ("2 in 200", "0=", "1=", "2=")),
        ((INDICES > 0).astype(np.uint8), {}, ("1 in 264", '"1=NAME1,0=background"')),
        (COLOURS[INDICES], {}, ("#1f7b16 in 200", "#b50000=")),
        (COLOURS[INDICES], {"overlapping": True}, ("3 bands", "1=NAME1,2=NAME2,3=NAME3")),
        (np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE), {}, ("1,024", "too many")),
    ],
)
def test_without_classes_the_values_of_the_masks_are_listed(
    folders: Folders, mask: ndarray, options: dict[str, Any], facts: tuple[str, ...]
) -> None:
    folders.add(mask)
    with pytest.raises(SettingError, match="--classes") as caught:
        folders.source({}, **options).gather()
    for fact in facts:
        assert fact in str(caught.value)


def test_the_example_for_forgotten_classes_works(folders: Folders) -> None:
    folders.add(COLOURS[INDICES])
    command = ["prepare", "masks", str(folders.images), str(folders.masks), "--out", str(folders.root / "tiles")]
    flags = ["--tile-px", "16", "--buffer-px", "0", "--val", "0", "--test", "0"]
    with pytest.raises(SettingError) as caught:
        app([*command, *flags], result_action="return_value")
    example = str(caught.value).split('--classes "')[1].split('"')[0]
    app([*command, *flags, "--classes", example], result_action="return_value")
    settings = PrepareConfig(tile_px=16, buffer_px=0, val=0, test=0)
    assert prepare(folders.source(parse_classes(example)), folders.root / "again", settings).meta.legend.names == (
        "background",
        "NAME2",
        "NAME3",
    )


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["7", "12", "100"], ["7_mask", "12_mask", "100_mask"]),
        (["img_7", "img_12", "img_100"], ["gt_7", "gt_12", "gt_100"]),
        (["city1", "city2", "village1"], ["city1-labels", "city2-labels", "village1-labels"]),
        (["a_sat", "b_sat", "c_sat"], ["mask_a", "mask_b", "mask_c"]),
        (["scene"], ["scene_mask"]),
    ],
)
def test_names_are_paired_without_their_affixes(tmp_path: Path, images: list[str], masks: list[str]) -> None:
    for folder, names in ((tmp_path / "images", images), (tmp_path / "masks", masks)):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.png").touch()
    found = pair_names(tmp_path / "images", tmp_path / "masks")
    assert [(image.stem, mask.stem) for image, mask in found.pairs] == sorted(zip(images, masks, strict=True))
    assert found.mismatches == []
    assert "NAME" in found.note


@given(
    st.lists(st.from_regex(r"[a-z]{2,4}_[0-9]{1,3}", fullmatch=True), min_size=2, max_size=12, unique=True),
    st.tuples(
        *map(st.sampled_from, (("", "img_", "RGB-"), ("", "_sat"), ("", "MASK_", "GT-"), ("", "_MASK", "-LABEL")))
    ),
)
def test_whatever_the_affixes_all_names_are_paired(names: list[str], affixes: tuple[str, ...]) -> None:
    before, after, mask_before, mask_after = affixes
    images, masks = [f"{before}{n}{after}" for n in names], [f"{mask_before}{n}{mask_after}" for n in names]
    found = find_affixes(images, masks)
    assert found is not None
    assert [found[0].core(name) for name in images] == [found[1].core(name) for name in masks]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["alone"], ["stray"]),
        (["image"], ["mask"]),
        (["a", "b", "c"], ["d_mask", "e_mask", "f_mask"]),
        (["a", "b", "c", "d"], ["a_mask", "x_mask", "y_mask", "z_mask"]),
        ([], ["a"]),
    ],
)
def test_names_that_differ_otherwise_are_not_paired(images: list[str], masks: list[str]) -> None:
    assert find_affixes(images, masks) is None


def test_affixes_are_noted(folders: Folders) -> None:
    for number in range(3):
        folders.add(INDICES, f"{number}_mask.png", f"{number}.png")
    gathered = folders.source({0: "rest", 1: "building", 2: "plants"}).gather()
    assert len(gathered.scenes) == 3
    assert "NAME_mask" in gathered.notes["names"]
