"""DSTL's own files: the folder as Kaggle ships it, its coordinates, its overlapping classes."""

import csv
import gzip
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from shapely import MultiPolygon, Polygon, box

from geograft.dataset import dstl
from geograft.dataset.sources import DstlSource
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Grid, block_windows
from geograft.geo.rasters.rasterize import rasterize_window
from geograft.legend import Legend
from tests.support.rasters import textured, write_raster

SCENE, OTHER = "6010_1_2", "6140_1_2"
X_MAX, Y_MIN = 0.009, -0.0091
SIZE = 90
ALL_SIZES = Grid(3348, 3403, Affine.identity(), None)


def in_degrees(row: float, col: float, height: float, width: float) -> Polygon:
    """Return the rectangle of pixels of a SIZE x SIZE image in DSTL's coordinates, by its rule turned around."""
    xs, ys = (
        (edge * (SIZE + 1) / SIZE / SIZE) for edge in (np.array([col, col + width]), np.array([row, row + height]))
    )
    return box(xs[0] * X_MAX, ys[0] * Y_MIN, xs[1] * X_MAX, ys[1] * Y_MIN)


TREES = MultiPolygon([in_degrees(10, 10, 20, 30), in_degrees(50, 60, 5, 5)])
CROPS = MultiPolygon([in_degrees(20, 20, 40, 40).difference(in_degrees(30, 50, 5, 5))])


def write_dstl(folder: Path, images: str = "three_band", scenes: tuple[str, ...] = (SCENE, OTHER)) -> Path:
    rows = ["ImageId,ClassType,MultipolygonWKT"]
    for scene in (SCENE, OTHER):
        rows += [
            f'{scene},5,"{TREES.wkt}"',
            f'{scene},6,"{CROPS.wkt}"',
            f"{scene},1,MULTIPOLYGON EMPTY",
        ]
    (folder / "train_wkt_v4.csv").write_text("\n".join(rows) + "\n")
    (folder / "grid_sizes.csv").write_text(f",Xmax,Ymin\n{SCENE},{X_MAX},{Y_MIN}\n{OTHER},{X_MAX},{Y_MIN}\n")
    for scene in scenes:
        name = f"{scene}.tif" if images == "three_band" else f"{scene}_A.tif"
        bands = 3 if images == "three_band" else 8
        write_raster(
            folder / images / name, textured(bands, SIZE, SIZE).astype(np.uint16), Affine.identity(), None, tiled=False
        )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        return write_dstl(tmp_path)


def zipped(path: Path) -> None:
    """Put a file or folder into a zip file of its own, as Kaggle does."""
    with zipfile.ZipFile(path.with_name(f"{path.name}.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._junk.csv", "junk")
        for file in sorted(path.rglob("*.*")) if path.is_dir() else [path]:
            archive.write(file, file.relative_to(path.parent))
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def burnt(source: DstlSource, scene: int = 0) -> np.ndarray:
    found = source.gather().scenes[scene]
    return found.label_reader()(found.info.grid.window)


def expected(*values: int) -> np.ndarray:
    """Return the labels of trees (first value) and then crops (second)."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for value in values:
        if value == 5:
            labels[10:30, 10:40] = labels[50:55, 60:65] = values.index(5) + 1
        else:
            hole = labels[30:35, 50:55].copy()
            labels[20:60, 20:60] = values.index(6) + 1
            labels[30:35, 50:55] = hole
    return labels


def test_polygons_are_placed_by_the_competitions_rule(folder: Path) -> None:
    gathered = DstlSource(folder, (5,)).gather()
    assert gathered.legend == Legend(("background", "trees"))
    assert gathered.scale == 2048
    assert np.array_equal(burnt(DstlSource(folder, (5,))), expected(5))


def test_the_later_of_overlapping_classes_wins(folder: Path) -> None:
    assert np.array_equal(burnt(DstlSource(folder, (5, 6))), expected(5, 6))
    assert np.array_equal(burnt(DstlSource(folder, (6, 5))), expected(6, 5))
    assert not np.array_equal(expected(5, 6), expected(6, 5))


def test_overlapping_classes_have_a_band_each(folder: Path) -> None:
    source = DstlSource(folder, (6, 5), overlapping=True)
    gathered = source.gather()
    assert gathered.legend == Legend(("crops", "trees"), overlapping=True)
    assert gathered.fractional
    assert np.array_equal(burnt(source), np.stack([expected(6), expected(5)]) * 250)


def test_one_class_cannot_overlap(folder: Path) -> None:
    with pytest.raises(SettingError, match=r"--overlapping.*trees"):
        DstlSource(folder, (5,), overlapping=True).gather()


def test_scenes_of_the_same_area_are_one_group(folder: Path) -> None:
    groups = {scene.name: scene.group for scene in DstlSource(folder, (5,)).gather().scenes}
    assert groups == {SCENE: SCENE, OTHER: "6110_1_2+6140_1_2"}
    assert dstl.scene_group("6110_1_2") == groups[OTHER]


def test_everything_may_be_zipped(folder: Path) -> None:
    plain = burnt(DstlSource(folder, (5,)))
    for name in ("train_wkt_v4.csv", "grid_sizes.csv", "three_band"):
        zipped(folder / name)
    gathered = DstlSource(folder, (5,)).gather()
    assert [scene.name for scene in gathered.scenes] == [SCENE, OTHER]
    assert not gathered.scenes[0].info.windowed
    assert np.array_equal(burnt(DstlSource(folder, (5,))), plain)


def test_eight_band_images_are_used_without_three_band_ones(tmp_path: Path) -> None:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_dstl(tmp_path, "sixteen_band")
    assert DstlSource(tmp_path, (5,)).gather().scenes[0].info.bands == 8


def test_labelled_scenes_without_image_are_noted(tmp_path: Path) -> None:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_dstl(tmp_path, scenes=(SCENE,))
    gathered = DstlSource(tmp_path, (5,)).gather()
    assert [scene.name for scene in gathered.scenes] == [SCENE]
    assert gathered.notes["skipped"] == f"1 labelled scene without image: {OTHER}"


def test_invalid_geometry_is_repaired_and_counted(folder: Path) -> None:
    bowtie = "MULTIPOLYGON (((0 0, 0.002 -0.002, 0.002 0, 0 -0.002, 0 0)))"
    (folder / "train_wkt_v4.csv").write_text(f'ImageId,ClassType,MultipolygonWKT\n{SCENE},5,"{bowtie}"\n')
    assert DstlSource(folder, (5,)).gather().notes["labels"] == "1 polygon in 1 scene, 1 of them repaired"


@pytest.mark.parametrize("classes", [(), (0,), (11,), (5, 5)])
def test_classes_that_do_not_exist(folder: Path, classes: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="5 trees, 6 crops"):
        DstlSource(folder, classes).gather()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_wkt_v4.csv", None, r"train_wkt_v4\.csv"),
        ("grid_sizes.csv", None, r"grid_sizes\.csv"),
        ("train_wkt_v4.csv", b"a,b\n1,2\n", "ImageId, ClassType, MultipolygonWKT"),
        ("train_wkt_v4.csv", b"ImageId,ClassType,MultipolygonWKT\nx,five,EMPTY\n", r"train_wkt_v4\.csv.*five"),
        ("train_wkt_v4.csv", b"ImageId,ClassType,MultipolygonWKT\nx,5,POLY((\n", "scene x, class 5"),
        ("train_wkt_v4.csv", b"ImageId,ClassType,MultipolygonWKT\nx,5\n", "scene x, class 5"),
        ("grid_sizes.csv", b",Xmax,Ymin\n6010_1_2,wide,-1\n", r"grid_sizes\.csv.*wide"),
        ("grid_sizes.csv", b",Xmax,Ymin\n", "6010_1_2, 6140_1_2"),
        *(
            ("grid_sizes.csv", f",Xmax,Ymin\n6010_1_2,{x},-1\n".encode(), r"grid_sizes\.csv.*Xmax of 6010_1_2")
            for x in ("nan", "inf", "-inf", "0", "-0.009", "1e-320", "1e308")
        ),
        *(
            ("grid_sizes.csv", f",Xmax,Ymin\n6010_1_2,1,{y}\n".encode(), r"grid_sizes\.csv.*Ymin of 6010_1_2")
            for y in ("nan", "inf", "-inf", "0", "0.0091")
        ),
        ("train_wkt_v4.csv", b"\xff\xfe\x00", r"train_wkt_v4\.csv"),
        (
            "train_wkt_v4.csv",
            b'ImageId,ClassType,MultipolygonWKT\nx,5,"POLYGON ((1e308 0, 1 1, 2 2, 1e308 0))"\n',
            "scene x, class 5",
        ),
    ],
)
def test_bad_tables_are_one_line(folder: Path, name: str, content: bytes | None, message: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        DstlSource(folder, (5,)).gather()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train_wkt_v4.csv", "three_band"])
def test_a_damaged_archive_is_named(folder: Path, name: str) -> None:
    zipped(folder / name)
    path = folder / f"{name}.zip"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"{name}\.zip"):
        DstlSource(folder, (5,)).gather()


def test_a_truncated_gzip_is_named(folder: Path) -> None:
    (folder / "train_wkt_v4.csv").unlink()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(b"ImageId,ClassType,MultipolygonWKT\n" + np.random.default_rng(0).bytes(5000))
    (folder / "train_wkt.csv.gz").write_bytes(packed.getvalue()[:2000])
    with pytest.raises(InputError, match=r"train_wkt\.csv\.gz"):
        DstlSource(folder, (5,)).gather()


def test_no_images_at_all(folder: Path) -> None:
    shutil.rmtree(folder / "three_band")
    with pytest.raises(InputError, match=r"2 labelled scenes.*three_band\.zip"):
        DstlSource(folder, (5,)).gather()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.*train_wkt"):
        DstlSource(tmp_path / "gone", (5,)).gather()


def test_large_fields_are_read_beside_readers_that_end_at_any_time(tmp_path: Path) -> None:
    path, large = tmp_path / "a.csv", "1" * 200_000
    path.write_text(f"ImageId,x\na,{large}\nb,{large}\n")
    before = csv.field_size_limit()
    first, second = dstl._rows(path, ("x",)), dstl._rows(path, ("x",))
    assert next(first)["x"] == next(second)["x"] == large
    first.close()
    assert [row["ImageId"] for row in second] == ["b"]
    assert csv.field_size_limit() == before


@pytest.mark.slow
def test_tree_cover_equals_polygon_area_in_all_25_scenes(shared: Path) -> None:
    """The class-5 area fraction of every scene on a grid of the three-band images' size, to 1 % of itself."""
    labels, extents = dstl.read_dstl_labels(shared / "data/dstl", (5,)), dstl.read_extents(shared / "data/dstl")
    assert len(labels.shapes) == 25
    for scene, shapes in labels.shapes.items():
        x_max, y_min = extents[scene]
        stated = shapely.union_all(shapes).area / abs(x_max * y_min)
        pixels = labels.in_pixels(scene, extents[scene], ALL_SIZES)
        found = sum(
            int(rasterize_window(pixels, cell, fill=0).sum()) for cell in block_windows(ALL_SIZES.window, 512, 4096)
        )
        assert abs(found / (ALL_SIZES.height * ALL_SIZES.width) / stated - 1) < 0.01, scene


def test_the_real_folder_has_25_scenes_of_eight_bands(shared: Path) -> None:
    gathered = DstlSource(shared / "data/dstl", (5, 1)).gather()
    assert len(gathered.scenes) == 25
    assert gathered.legend.names == ("background", "trees", "buildings")
    assert {scene.info.bands for scene in gathered.scenes} == {8}
    assert len({scene.group for scene in gathered.scenes}) == 23
