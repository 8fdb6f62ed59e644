"""COCO annotations: polygons and run-length encoded masks as exporters write them; invalid files are one line."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from PIL import Image as Picture

from geograft.cli import app
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.coco import decode_counts, run_length_mask
from geograft.dataset.scenes import LabelledScenes
from geograft.dataset.sources import CocoSource, VectorSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window
from geograft.legend import IGNORE
from tests.support.rasters import textured

HEIGHT, WIDTH = 60, 80
FIELD, POND = Window(10, 20, 20, 30), Window(25, 40, 20, 30)
# Strings and run lengths by pycocotools' rleToString.
ENCODED = {
    "61X13mN000`0": [6, 1, 40, 4, 5, 4, 5, 4, 21],
    "0``3`U1": [0, 3600, 1200],
    "jU1d0X10000000RX3": [1210, 20, 40, 20, 40, 20, 40, 20, 40, 20, 3370],
    "012_[T21`V\\l0=_^_QO?a02QOok^k0": [0, 1, 2, 70000, 3, 1000000, 16, 15, 31, 32, 33, 1, 900000],
}


def outline(window: Window) -> list[float]:
    left, top, right, bottom = window.col, window.row, window.stop_col, window.stop_row
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(mask: ndarray) -> list[int]:
    """Return the lengths of alternating runs down the columns, outside first."""
    flat = np.concatenate([[False], mask.T.ravel().astype(bool)])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def encoded(window: Window, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    mask = np.zeros(size, bool)
    mask[window.slices] = True
    return {"size": list(size), "counts": run_lengths(mask)}


def instance(category: int, segmentation: Any, **others: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": category, "segmentation": segmentation, "iscrowd": 0} | others


class Export:
    """Builder of a folder with one image and a COCO file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()
        pixels = np.moveaxis(textured(3, HEIGHT, WIDTH), 0, 2)
        Picture.fromarray(pixels).save(folder / "images" / "a.png")
        self.content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
            "categories": [{"id": 1, "name": "field"}, {"id": 2, "name": "pond", "supercategory": "water"}],
            "annotations": [],
        }

    def source(self, *annotations: dict[str, Any], **options: Any) -> CocoSource:
        path = self.folder / "labels.json"
        path.write_text(json.dumps(self.content | ({"annotations": annotations} if annotations else {})))
        return CocoSource(self.folder / "images", path, **options)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path)


def labels_of(gathered: LabelledScenes) -> ndarray:
    return gathered.scenes[0].label_reader()(gathered.scenes[0].info.grid.window)


def filled(*windows: Window) -> ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, window in enumerate(windows, start=1):
        labels[window.slices] = value
    return labels


@pytest.mark.parametrize("text", ENCODED)
def test_encoded_strings_are_decoded_as_pycocotools_does(text: str) -> None:
    assert decode_counts(text) == ENCODED[text]


@given(data=st.data(), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_window_of_a_mask_is_that_part_of_it(data: st.DataObject, height: int, width: int) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)), bool)
    mask = mask.reshape(height, width)
    found = run_length_mask(run_lengths(mask), height, 1)
    if found is None:
        assert not mask.any()
        return
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    stop_row, stop_col = data.draw(st.integers(row + 1, height)), data.draw(st.integers(col + 1, width))
    window = Window(row, col, stop_row - row, stop_col - col).intersection(found.box)
    whole = np.zeros_like(mask)
    whole[found.box.slices] = found.read(found.box)
    assert np.array_equal(whole, mask)
    if window is not None:
        assert np.array_equal(found.read(window), mask[window.slices])


def test_polygons_are_rasterised_as_those_of_a_layer(export: Export, tmp_path: Path) -> None:
    shape = [20.3, 10.1, 51.7, 14.2, 44.4, 33.3, 18.5, 29.9]
    gathered = export.source(instance(1, [shape])).gather()
    pairs = np.reshape(shape, (-1, 2)).tolist()
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        geopandas.GeoSeries.from_wkt([f"POLYGON (({', '.join(f'{x} {y}' for x, y in [*pairs, pairs[0]])}))"]).to_file(
            tmp_path / "a.shp"
        )
    layer = VectorSource((tmp_path / "images" / "a.png",), tmp_path / "a.shp").gather()
    assert np.array_equal(labels_of(gathered), labels_of(layer))
    assert gathered.legend.names == ("background", "field")


@pytest.mark.parametrize("form", ["polygon", "run lengths", "string"])
def test_the_later_instance_wins(export: Export, form: str) -> None:
    runs = encoded(POND)
    pond = {"polygon": [outline(POND)], "run lengths": runs, "string": runs | {"counts": encode(runs["counts"])}}[form]
    field = [outline(FIELD)]
    both = export.source(instance(1, field), instance(2, pond)).gather()
    assert both.legend.names == ("background", "field", "pond")
    assert np.array_equal(labels_of(both), filled(FIELD, POND))
    turned = labels_of(export.source(instance(2, pond), instance(1, field)).gather())
    assert (turned[FIELD.slices] == 1).all()
    assert (turned == 2).sum() == 600 - 50


def encode(counts: list[int]) -> str:
    """Return run lengths as a string, written from the description of the format."""
    text = ""
    for place, count in enumerate(counts):
        number, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            digit, number = number & 31, number >> 5
            more = number != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
    return text


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_strings_hold_any_run_length(counts: list[int]) -> None:
    assert decode_counts(encode(counts)) == counts


def test_overlapping_classes_have_a_band_each(export: Export) -> None:
    gathered = export.source(instance(1, [outline(FIELD)]), instance(2, encoded(POND)), overlapping=True).gather()
    assert gathered.legend.names == ("field", "pond")
    field, pond = labels_of(gathered)
    assert np.array_equal(field > 0, filled(FIELD) > 0)
    assert np.array_equal(pond > 0, filled(POND) > 0)


def test_fractions_of_masks_are_whole_pixels(export: Export) -> None:
    half = [20.5, 10, 50, 10, 50, 30, 20.5, 30]
    gathered = export.source(instance(1, [half]), instance(2, encoded(POND)), fractional=True).gather()
    background, field, pond = labels_of(gathered)
    assert field[15, 20] == background[15, 20] == 125
    assert np.array_equal(pond, 250 * (filled(POND) > 0))


def test_crowds_are_below_all_instances_or_ignored(export: Export) -> None:
    crowd, field = instance(2, encoded(POND), iscrowd=1), instance(1, [outline(FIELD)])
    expected = np.where(filled(FIELD) == 1, 1, 2 * (filled(POND) > 0))
    kept = export.source(field, crowd).gather()
    assert np.array_equal(labels_of(kept), expected)
    assert "1 crowd" in kept.notes["labels"]
    ignored = export.source(field, crowd, classes=("field", "pond"), ignore_crowds=True).gather()
    assert np.array_equal(labels_of(ignored), np.where(expected == 2, IGNORE, expected))
    painted = export.source(crowd).gather()  # CVAT marks painted masks as crowds
    assert np.array_equal(labels_of(painted), filled(POND))


def test_where_only_a_box_is_known_the_class_is_unknown(export: Export) -> None:
    a_box = instance(2, [], bbox=[POND.col, POND.row, POND.width, POND.height])
    gathered = export.source(instance(1, [outline(FIELD)]), a_box).gather()
    expected = np.where(filled(POND) == 1, IGNORE, 0)
    expected[FIELD.slices] = 1
    assert np.array_equal(labels_of(gathered), expected)
    assert "1 with only a box" in gathered.notes["labels"]
    with pytest.raises(InputError, match="box"):
        export.source(a_box).gather()


def test_categories_are_those_with_annotations_or_those_chosen(export: Export) -> None:
    export.content["categories"].insert(0, {"id": 0, "name": "land", "supercategory": "none"})  # as Roboflow does
    annotations = (instance(2, encoded(POND)), instance(1, [outline(FIELD)]))
    assert export.source(*annotations).gather().legend.names == ("background", "field", "pond")
    chosen = export.source(*annotations, classes=("pond",)).gather()
    assert chosen.legend.names == ("background", "pond")
    assert np.array_equal(labels_of(chosen), filled(POND))
    with pytest.raises(SettingError, match=r"lake.*field.*pond"):
        export.source(*annotations, classes=("lake",)).gather()


@pytest.mark.parametrize(
    "name",
    ["a.png", "images/a.png", "images\\1\\a.png", "/data/upload/1/a.png", "http://host:1/x/a.png", "../../a.png"],
)
def test_names_with_the_exporters_folders_are_found(export: Export, name: str) -> None:
    export.content["images"] = [{"id": 7, "file_name": name, "height": None, "width": None}]
    (scene,) = export.source(instance(1, [outline(FIELD)])).gather().scenes
    assert scene.info.path == export.folder / "images" / "a.png"


def test_images_without_annotations_are_background(export: Export) -> None:
    Picture.new("RGB", (30, 20), "white").save(export.folder / "images" / "empty.png")
    export.content["images"].append({"id": "e", "file_name": "empty.png", "height": 20, "width": 30})
    gathered = export.source(instance(1, [outline(FIELD)])).gather()
    assert not gathered.scenes[1].label_reader()(Window(0, 0, 20, 30)).any()
    assert gathered.notes["images without annotations"].startswith("1")


@pytest.mark.parametrize(
    ("entry", "fact"),
    [
        ({"file_name": "b.png"}, "b.png"),
        ({"file_name": "n" * 300 + ".png"}, "nnn"),
        ({"file_name": "a\0.png"}, "missing"),
        ({"height": 30}, "80 x 60"),
    ],
)
def test_images_that_do_not_match_are_listed_or_skipped(export: Export, entry: dict[str, Any], fact: str) -> None:
    Picture.new("RGB", (30, 20), "white").save(export.folder / "images" / "other.png")
    export.content["images"].append(export.content["images"][0] | {"id": 8} | entry)
    annotations = (instance(1, [outline(FIELD)]),)
    with pytest.raises(InputError, match=fact):
        export.source(*annotations).gather()
    gathered = export.source(*annotations, skip_mismatched=True).gather()
    assert len(gathered.scenes) == 1
    assert fact in gathered.notes["skipped"]


WRONG_SEGMENTATIONS = [
    [[1, 2, 3, 4, 5, 6, 7]],
    [["x", 1, 2, 3, 4, 5]],
    [[float("nan"), 1, 2, 3, 4, 5]],
    [[1e300, 1, 2, 3, 4, 5]],
    {"size": [WIDTH, HEIGHT], "counts": [4800]},
    {"size": [2**30, 2**30], "counts": [2**60 - 1]},
    {"size": [HEIGHT, WIDTH], "counts": [4799]},
    {"size": [HEIGHT, WIDTH], "counts": [-1, 4801]},
    {"size": [HEIGHT, WIDTH], "counts": "not a mask é"},
    {"size": [HEIGHT, WIDTH], "counts": "P" * 100},
    {"size": [HEIGHT, WIDTH], "counts": "_"},
    {"size": [HEIGHT], "counts": [4800]},
    {"counts": [4800]},
    "x",
    5,
]


@pytest.mark.parametrize("segmentation", WRONG_SEGMENTATIONS)
def test_a_wrong_segmentation_is_named(export: Export, segmentation: Any) -> None:
    with pytest.raises(InputError, match=r"labels\.json.*annotation") as caught:
        export.source(instance(1, [outline(FIELD)], id=40), instance(1, segmentation, id=41)).gather()
    assert "41" in str(caught.value) or "annotations.1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"images": []},
        {"categories": []},
        {"annotations": 3},
        {"annotations": [instance(9, [outline(FIELD)])]},
        {"annotations": [instance(1, [outline(FIELD)], image_id=9)]},
        {"annotations": [instance(1, [outline(FIELD)], bbox=[1, 2, 3]), instance(1, [], bbox=[1, 2, 3])]},
        {"annotations": [instance(1, [[1, 2, 3, 4]])]},
        {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
        {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
        {"categories": [{"id": 1, "name": "background"}]},
        {"images": [{"id": 7, "file_name": "a.png"}] * 2},
        {"images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.png"}]},
        {"images": [{"id": 7, "file_name": ""}]},
    ],
)
def test_a_file_that_is_no_coco_file_is_one_line(export: Export, change: dict[str, Any]) -> None:
    export.content["annotations"] = [instance(1, [outline(FIELD)])]
    export.content |= change
    with pytest.raises(InputError) as caught:
        export.source().gather()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"images": NaN}'])
def test_a_file_that_is_no_json_is_one_line(export: Export, content: bytes) -> None:
    source = export.source()
    source.labels.write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.json") as caught:
        source.gather()
    assert "\n" not in str(caught.value)
    source.labels.unlink()
    with pytest.raises(InputError, match=r"labels\.json"):
        source.gather()


def test_prepare_coco_on_the_command_line(export: Export) -> None:
    source = export.source(instance(1, [outline(FIELD)]), instance(2, encoded(POND)))
    out = export.folder / "tiles"
    command = ["prepare", "coco", str(source.images), "--labels", str(source.labels), "--out", str(out)]
    flags = ["--tile-px", "16", "--buffer-px", "0", "--block-px", "16", "--classes", "field, pond"]
    app([*command, *flags], result_action="return_value")
    settings = PrepareConfig(tile_px=16, buffer_px=0, block_px=16)
    again = prepare(source, export.folder / "again", settings)
    assert TileSet.open(out).meta.fingerprint == again.meta.fingerprint
