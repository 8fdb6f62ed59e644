"""Labelled areas of a project: what is scored, what is trained, what is refused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy import ndarray
from pyproj import CRS
from shapely import Polygon, box
from shapely.geometry.base import BaseGeometry

from geograft.commands.audit import audit_tile_set
from geograft.commands.prepare import prepare
from geograft.commands.trials import subset
from geograft.config import PrepareConfig
from geograft.dataset.areas import labelled_area_tiles, place_label_file, plan_area_tiles
from geograft.dataset.autocorrelation import estimate_autocorrelation
from geograft.dataset.folds import write_derived_set, write_fold_sets
from geograft.dataset.joined import join_tile_sets
from geograft.dataset.sources import VectorSource, _area_reader
from geograft.dataset.splits import SplitScene
from geograft.dataset.statistics import ClassCounts, count_labels
from geograft.dataset.tileset import SPLITS, Split, Tile, TileSet
from geograft.dataset.units import units_of
from geograft.dataset.vector_labels import LabelEncoding, pixel_windows
from geograft.errors import InputError, SettingError
from geograft.geo.coverage import ignored_windows
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.vectors.label_file import Area, Label, write_label_file
from geograft.geo.vectors.reader import reproject
from geograft.legend import IGNORE, Legend
from tests.geo.vectors.test_reader import write_layer
from tests.support.labelled_areas import GRID, SCORING, TRAINING, area, project_areas, shrink, trees, write_project
from tests.support.rasters import read_labels, textured, write_raster

AREAS = PrepareConfig(tile_px=48, overlap=0.5, buffer_px=6, val=0.25)
SIZE = 160


def labels_of(tile_set: TileSet, split: Split) -> ndarray:
    """Return how often each pixel of the scene has a label in a split's samples."""
    seen = np.zeros((GRID.height, GRID.width), int)
    samples = tile_set.samples(split, unique_pixels=split != "train")
    for number, tile in enumerate(samples.tiles):
        seen[tile.window.slices] += samples[number][1] != IGNORE
    return seen


def inside(windows: Sequence[Window]) -> ndarray:
    mask = np.zeros((GRID.height, GRID.width), bool)
    for window in windows:
        mask[window.slices] = True
    return mask


def test_random_scoring_areas_are_the_test_split(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    assert (labels_of(tiles, "test") == inside(SCORING)).all()
    assert (labels_of(tiles, "val")[~inside(TRAINING)] == 0).all()
    assert (labels_of(tiles, "train")[~inside(TRAINING)] == 0).all()
    assert labels_of(tiles, "val").max() == 1
    assert not (labels_of(tiles, "val").astype(bool) & labels_of(tiles, "train").astype(bool)).any()
    assert len(tiles.split("test")) == 4
    assert {tile.area.name for tile in tiles.split("test") if tile.area} == {f"area {i}" for i in (4, 5, 6, 7)}
    assert tiles.meta.settings.split == "areas"
    mask = read_labels(tiles.mask_path("scene"), GRID.window)
    assert ((mask != IGNORE) == inside([*TRAINING, *SCORING])).all()
    assert sorted(np.unique(mask).tolist()) == [0, 1, IGNORE]


# ------------------------------------------------------------------------------------------------- what always holds


@st.composite
def windows(draw: st.DrawFn) -> Window:
    row, col = draw(st.integers(0, SIZE - 3)), draw(st.integers(0, SIZE - 3))
    return Window(row, col, draw(st.integers(2, SIZE - row)), draw(st.integers(2, SIZE - col)))


def seen_labels(tiles: Sequence[Tile], mask: ndarray, unique: bool = True) -> ndarray:
    """Return how often each labelled pixel counts in `tiles`."""
    seen = np.zeros(mask.shape, int)
    ignored = ignored_windows([(tile.scene, tile.window, tile.part) for tile in tiles], unique)
    for tile, without in zip(tiles, ignored, strict=True):
        label = mask[tile.window.slices].copy()
        for window in without:
            label[window.slices] = IGNORE
        seen[tile.window.slices] += label != IGNORE
    return seen


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    training=st.lists(windows(), max_size=7),
    scoring=st.lists(windows(), min_size=1, max_size=5),
    tile_px=st.integers(16, 60),
    buffer_px=st.integers(0, 12),
    val=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_scored_pixels_are_those_of_scoring_areas_once_and_away_from_training(
    training: list[Window], scoring: list[Window], tile_px: int, buffer_px: int, val: float, tmp_path: Path
) -> None:
    path, info = tmp_path / "labels.gpkg", image_info(tmp_path, SIZE)
    write_label_file(path, project_areas(training, scoring), trees(scoring), GRID.crs)
    placed = place_label_file(path, [info], ["scene"])
    mask = _area_reader(placed.scenes[0], {"tree": 1}, LabelEncoding(Legend(("background", "tree"))))(info.grid.window)
    config = PrepareConfig(tile_px=tile_px, overlap=0.5, buffer_px=buffer_px, val=val, split="areas", min_valid=0)
    try:
        planned = plan_area_tiles(placed.windows, [scene_of(info, mask)], {"scene": info.grid}, config)
    except SettingError:
        assert val > 0
        return
    tiles = labelled_area_tiles(planned, placed.windows, lambda _, window: counts(mask, window), 0)
    train, held, test = ([tile for tile in tiles if tile.split == split] for split in ("train", "val", "test"))
    scored = np.zeros((SIZE, SIZE), bool)
    for window in scoring:
        scored[window.slices] = True
    assert (seen_labels(test, mask) == scored).all()
    validated = seen_labels(held, mask)
    assert validated.max() <= 1
    assert not validated[scored].any()
    kept_out = scored | (validated > 0)
    for tile in train:
        near = tile.window.pad(buffer_px).intersection(info.grid.window)
        assert near is not None
        assert not kept_out[near.slices].any()
    trained = np.zeros((SIZE, SIZE), bool)
    for window in training:
        trained[window.slices] = True
    assert not seen_labels(train, mask, unique=False)[~trained].any()
    assert all(0 <= tile.window.row <= SIZE - tile_px and 0 <= tile.window.col <= SIZE - tile_px for tile in tiles)


def counts(mask: ndarray, window: Window) -> ClassCounts:
    return count_labels(mask[window.slices][None], Legend(("background", "tree")), False)


def scene_of(info: ImageInfo, mask: ndarray) -> SplitScene:
    return SplitScene(
        "scene", info.grid.height, info.grid.width, "scene", lambda w: counts(mask, w).stratification_counts
    )


def image_info(folder: Path, size: int) -> ImageInfo:
    path = folder / "small.tif"
    if not path.exists():
        write_raster(path, textured(1, size, size))
    with Image.open(path) as image:
        return image.info


def test_the_window_of_an_area_has_the_pixels_whose_centre_is_inside() -> None:
    shapes = np.array([box(2, 3, 5, 7), box(1.999, 2.999, 5.001, 7.001), box(2.6, 3.4, 4.4, 6.6), Polygon()], object)
    found = pixel_windows(shapes, Affine.identity())
    assert found == [Window(3, 2, 4, 3), Window(3, 2, 4, 3), Window(3, 2, 4, 3), Window(0, 0, 0, 0)]


# -------------------------------------------------------------------------------------------------- train and val


def test_six_training_areas_are_divided_whole(tmp_path: Path) -> None:
    training = [Window(8 + 40 * row, 8 + 50 * col, 30, 40) for row in range(6) for col in range(2)]
    source = write_project(tmp_path, project_areas(training), trees([*training, *SCORING]))
    tiles = prepare(source, tmp_path / "tiles", AREAS)
    seen = labels_of(tiles, "val").astype(bool)
    touched = [seen[window.slices].mean() for window in training]
    assert set(touched) == {0.0, 1.0}
    assert sum(touched) == 3
    assert units_of(tiles, "val").description == "3 training areas of 1 scene"
    assert tiles.meta.source["validation"] == "3 whole training areas"


def test_blocks_of_few_training_areas_are_validated_on(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    assert units_of(tiles, "val").kind == "block"
    assert "blocks of training areas" in tiles.meta.source["validation"]


def test_training_areas_too_small_for_validation_are_an_error(tmp_path: Path) -> None:
    small = [Window(10, 10, 20, 20)]
    source = write_project(tmp_path, project_areas(small), trees([*small, *SCORING]))
    with pytest.raises(SettingError, match=r"1 training area of at most 20 pixels .* --val 0"):
        prepare(source, tmp_path / "tiles", AREAS)
    tiles = prepare(source, tmp_path / "tiles", replace(AREAS, val=0.0))
    assert [len(tiles.split(split)) for split in SPLITS] == [1, 0, 4]
    assert tiles.split("train")[0].window == Window(0, 0, 48, 48)


def test_of_two_small_training_areas_one_is_validated_on(tmp_path: Path) -> None:
    small = [Window(10, 10, 20, 20), Window(120, 10, 20, 20)]
    source = write_project(tmp_path, project_areas(small), trees([*small, *SCORING]))
    tiles = prepare(source, tmp_path / "tiles", AREAS)
    assert [len(tiles.split(split)) for split in SPLITS] == [1, 1, 4]


def test_training_keeps_the_part_of_an_area_beyond_the_buffer_of_a_scoring_area(tmp_path: Path) -> None:
    training, scoring = [Window(0, 0, 200, 100)], [Window(80, 60, 40, 80)]
    source = write_project(tmp_path, project_areas(training, scoring), trees([*training, *scoring]))
    tiles = prepare(source, tmp_path / "tiles", replace(AREAS, val=0.0))
    trained, near = labels_of(tiles, "train").astype(bool), scoring[0].pad(AREAS.buffer_px)
    assert (trained == (inside(training) & ~inside([near]))).all()
    assert "1 training area cut by scoring areas" in tiles.meta.source["areas"]
    assert tiles.meta.source["unused"].startswith(f"{1 - trained.sum() / inside(training).sum():.0%} of the training")


def test_areas_for_scoring_alone_make_a_test_split(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path, project_areas([])), tmp_path / "tiles", AREAS)
    assert [len(tiles.split(split)) for split in SPLITS] == [0, 0, 4]


def test_without_labelled_scoring_areas_there_is_no_test_split(tmp_path: Path) -> None:
    drawn = [*project_areas(scoring=[]), area(SCORING[0], "scoring", "random", labelled=False, rank=1)]
    tiles = prepare(write_project(tmp_path, drawn), tmp_path / "tiles", AREAS)
    assert not tiles.split("test")
    assert "no test split" in tiles.meta.source["areas"]
    mask = read_labels(tiles.mask_path("scene"), GRID.window)
    assert ((mask != IGNORE) == inside(TRAINING)).all()


def test_nodata_is_not_labelled(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    pixels = textured(3, GRID.height, GRID.width)
    pixels[:, SCORING[1].slices[0], SCORING[1].slices[1]] = 0
    pixels[:, : SCORING[0].row + 10, SCORING[0].col :] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    tiles = prepare(source, tmp_path / "tiles", AREAS)
    seen = labels_of(tiles, "test")
    assert not seen[SCORING[1].slices].any()
    assert seen[SCORING[0].slices].sum() == 30 * 40
    assert tiles.meta.source["without valid pixels"] == "area 5"


# --------------------------------------------------------------------------------------------- several scenes


def test_areas_across_adjacent_scenes_keep_their_split_and_buffer(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    pixels = textured(3, GRID.height, GRID.width)
    # A scoring area lies across the edge; the sheets overlap by 16 pixels.
    for name, window in (("left", Window(0, 0, 256, 200)), ("right", Window(0, 184, 256, 72))):
        write_raster(tmp_path / f"{name}.tif", pixels[:, *window.slices], GRID.crop(window).transform)
    both = replace(source, images=(tmp_path / "left.tif", tmp_path / "right.tif"))
    training = [*TRAINING[:2], Window(140, 140, 100, 30)]
    write_label_file(tmp_path / "labels.gpkg", project_areas(training), trees([*training, *SCORING]), GRID.crs)
    tiles = prepare(both, tmp_path / "tiles", replace(AREAS, val=0.0))
    origin = {"left": (0, 0), "right": (0, 184)}
    held = [_moved(tile.part, origin[tile.scene]) for tile in tiles.split("test")]
    assert {tile.scene for tile in tiles.split("test")} == {"left", "right"}
    for tile in tiles.split("train"):
        padded = _moved(tile.window, origin[tile.scene]).pad(AREAS.buffer_px)
        assert not any(padded.intersection(window) for window in held)
    units = units_of(tiles, "test")
    assert (len(units.names), units.scenes) == (4, 2)
    assert audit_tile_set(tiles).verdict != "LEAK"
    assert all(one.duplicate_fraction == 0 for one in audit_tile_set(tiles).held_out)


def _moved(window: Window, by: tuple[int, int]) -> Window:
    return Window(window.row + by[0], window.col + by[1], window.height, window.width)


def test_scenes_in_two_crs_share_no_pixel_between_training_and_scoring(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    centre = GRID.footprint().centroid
    other = CRS.from_epsg(32613)
    x, y = _to(centre, other).coords[0]
    turned = Affine(0.1, 0, x - 12.8, 0, -0.1, y + 12.8)
    write_raster(tmp_path / "other.tif", textured(3, GRID.height, GRID.width, seed=1), turned, "EPSG:32613")
    training = [*TRAINING, Window(20, 100, 200, 60)]
    write_label_file(tmp_path / "labels.gpkg", project_areas(training), trees([*training, *SCORING]), GRID.crs)
    both = replace(source, images=(tmp_path / "scene.tif", tmp_path / "other.tif"))
    tiles = prepare(both, tmp_path / "tiles", AREAS)
    assert Counter(tile.scene for tile in tiles.split("test")) == {"scene": 4, "other": 4}
    assert {tile.scene for tile in tiles.split("train")} == {"scene", "other"}
    found = audit_tile_set(tiles)
    assert not found.leaks
    assert all(one.distances.min() >= 0.8 * AREAS.buffer_px * 0.1 for one in found.held_out)


def test_an_area_with_a_scene_counts_there_alone(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    write_raster(tmp_path / "later.tif", textured(3, GRID.height, GRID.width, seed=1))
    own = [area(window, "training", scene="scene") for window in TRAINING]
    write_label_file(tmp_path / "labels.gpkg", [*own, *project_areas([])], trees([*TRAINING, *SCORING]), GRID.crs)
    two_dates = replace(source, images=(tmp_path / "scene.tif", tmp_path / "later.tif"))
    tiles = prepare(two_dates, tmp_path / "tiles", AREAS)
    assert {tile.scene for tile in tiles.split("train")} == {"scene"}
    assert Counter(tile.scene for tile in tiles.split("test")) == {"scene": 4, "later": 4}
    assert units_of(tiles, "test").description == "4 random scoring areas of 2 scenes"


def test_areas_in_another_crs_are_reprojected(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    expected = prepare(source, tmp_path / "tiles", AREAS)
    degrees = CRS.from_epsg(4326)
    moved = [replace(one, shape=_to(one.shape, degrees)) for one in project_areas()]
    labels = [replace(one, shape=_to(one.shape, degrees)) for one in trees([*TRAINING, *SCORING])]
    write_label_file(tmp_path / "labels.gpkg", moved, labels, degrees)
    found = prepare(source, tmp_path / "again", AREAS)
    assert found.tiles == expected.tiles
    assert found.meta.areas == expected.meta.areas


def _to(shape: BaseGeometry, crs: CRS) -> BaseGeometry:
    assert GRID.crs is not None
    found: BaseGeometry = reproject(np.array([shape], object), GRID.crs, crs)[0]
    return found


def test_areas_outside_all_images_are_counted(tmp_path: Path) -> None:
    far = area(Window(2000, 2000, 40, 40), "scoring", "random", rank=5)
    tiles = prepare(write_project(tmp_path, [*project_areas(), far]), tmp_path / "tiles", AREAS)
    assert "1 outside all images" in tiles.meta.source["areas"]
    assert len(tiles.split("test")) == 4


def test_scoring_areas_that_overlap_are_one_unit(tmp_path: Path) -> None:
    scoring = [*SCORING[:3], Window(SCORING[0].row + 10, SCORING[0].col - 20, 40, 40)]
    tiles = prepare(write_project(tmp_path, project_areas(TRAINING, scoring)), tmp_path / "tiles", AREAS)
    assert sorted(units_of(tiles, "test").names) == ["area 5", "area 6", "areas 4, 7"]
    assert (labels_of(tiles, "test") == inside(scoring)).all()


# ------------------------------------------------------------------------------------------------------ refusals


def suggested(window: Window) -> Label:
    return Label(shrink(window), "tree", "suggested")


@pytest.mark.parametrize(
    ("areas", "labels", "named"),
    [
        ([], None, ["0 areas", "labelled"]),
        ([area(SCORING[0], "scoring", "random", labelled=False)], None, ["1 area", "labelled"]),
        ([*project_areas(), area(TRAINING[0], "scoring")], None, ["area 8", "drawn", "role"]),
        ([*project_areas(), area(TRAINING[0], "scoring", "suggested")], None, ["area 8", "suggested"]),
        (None, [*trees(TRAINING), suggested(SCORING[0]), suggested(SCORING[2])], ["2 polygons", "suggested"]),
        (None, [], ["no polygon", "background"]),
        (None, [Label(shrink(Window(100, 100, 40, 40)), "tree")], ["no polygon", "background"]),
        (None, [Label(shrink(TRAINING[0]), "background")], ["no polygon", "background"]),
        (None, trees(SCORING), ["class tree", "training area"]),
        ([area(Window(900, 900, 40, 40), "training")], None, ["no labelled area", "CRS"]),
    ],
)
def test_what_cannot_be_scored_or_trained_is_refused(
    areas: list[Area] | None, labels: list[Label] | None, named: list[str], tmp_path: Path
) -> None:
    source = write_project(tmp_path, areas, labels)
    with pytest.raises(InputError) as caught:
        prepare(source, tmp_path / "tiles", AREAS)
    assert all(word in str(caught.value) for word in named), caught.value
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiles").exists()


def test_unlabelled_scoring_areas_of_another_origin_do_not_matter(tmp_path: Path) -> None:
    other = area(TRAINING[0], "scoring", "suggested", labelled=False)
    prepare(write_project(tmp_path, [*project_areas(), other]), tmp_path / "tiles", AREAS)


def test_suggested_polygons_in_training_areas_are_used(tmp_path: Path) -> None:
    labels = [*trees(SCORING), *(suggested(window) for window in TRAINING)]
    tiles = prepare(write_project(tmp_path, labels=labels), tmp_path / "tiles", AREAS)
    assert all(tile.class_fractions[1] > 0 for tile in tiles.split("val"))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"split": "scene"}, "--split scene"),
        ({"test": 0.3}, "--test 0.3"),
        ({"test_groups": ("scene",), "split": "auto"}, "--test-groups"),
        ({"val_groups": ("scene",), "split": "auto"}, "--val-groups"),
        ({"val": 1.0, "test": 0.0}, "--val 1"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], flag: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=flag):
        prepare(write_project(tmp_path), tmp_path / "tiles", replace(AREAS, **changes))


@pytest.mark.parametrize("option", ["class_field", "aoi", "groups"])
def test_options_that_the_file_answers_are_refused(option: str, tmp_path: Path) -> None:
    source = replace(write_project(tmp_path), **{option: "class"})
    with pytest.raises(SettingError, match=f"--{option.replace('_', '-')}"):
        prepare(source, tmp_path / "tiles", AREAS)


def test_areas_need_a_label_file(tmp_path: Path) -> None:
    write_project(tmp_path)
    crowns = write_layer(tmp_path / "crowns.gpkg", [shrink(TRAINING[0])], GRID.crs)
    with pytest.raises(SettingError, match="--split areas"):
        prepare(VectorSource(tmp_path / "scene.tif", crowns), tmp_path / "tiles", replace(AREAS, split="areas"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_images_without_crs_need_labels_of_their_own(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    write_raster(tmp_path / "plain.tif", textured(3, 256, 256), Affine.identity(), None)
    write_label_file(tmp_path / "labels.gpkg", project_areas(), trees(SCORING), None)
    two = replace(source, images=(tmp_path / "scene.tif", tmp_path / "plain.tif"))
    with pytest.raises(InputError, match="not georeferenced"):
        prepare(two, tmp_path / "tiles", AREAS)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_without_crs_has_areas_in_pixels_below_zero_as_in_a_gis(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    write_raster(tmp_path / "scene.tif", textured(3, 256, 256), Affine.identity(), None)
    flip = Grid(256, 256, Affine.scale(1, -1), None)
    areas = [
        replace(one, shape=flip.footprint(window))
        for one, window in zip(project_areas(), [*TRAINING, *SCORING], strict=True)
    ]
    labels = [Label(flip.footprint(window), "tree") for window in (TRAINING[0], SCORING[0])]
    write_label_file(tmp_path / "labels.gpkg", areas, labels, None)
    tiles = prepare(source, tmp_path / "tiles", replace(AREAS, val=0.0))
    assert (labels_of(tiles, "test") == inside(SCORING)).all()
    assert audit_tile_set(tiles).verdict != "LEAK"


# ------------------------------------------------------------------------------------- the tile set and its readers


def test_skipped_ranks_are_a_warning(tmp_path: Path) -> None:
    areas = [replace(one, labelled=one.rank not in (1, 3)) for one in project_areas()]
    tiles = prepare(write_project(tmp_path, areas), tmp_path / "tiles", AREAS)
    assert tiles.meta.source["areas"].startswith("3 training areas, 2 of 4 random scoring areas")
    assert "rank 1, 3" in tiles.meta.source["WARNING"]


def test_equal_labels_give_equal_tile_sets(tmp_path: Path) -> None:
    source = write_project(tmp_path)
    one, other = (prepare(source, tmp_path / name, AREAS) for name in ("one", "other"))
    assert one.meta.fingerprint == other.meta.fingerprint
    assert one.tiles == other.tiles == TileSet.open(tmp_path / "one").tiles


def test_the_audit_counts_only_what_is_scored_and_finds_a_leak(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    found = audit_tile_set(tiles)
    assert (found.verdict, found.sampled) == ("OK", True)
    assert all(one.overlap.shared_pixels == 0 and one.duplicate_fraction == 0 for one in found.held_out)
    assert all((one.gap_px or 0) >= AREAS.buffer_px for one in found.held_out)
    measured = replace(found, autocorrelation=estimate_autocorrelation(tiles))
    assert measured.verdict == "OK"
    assert "random areas of the images" in measured.conclusion
    part = tiles.split("test")[0].part
    leak = Tile("scene", Window(part.row, part.col - 40, 48, 48), "train", 1.0, (1.0, 0.0))
    planted = audit_tile_set(TileSet.open(write_derived_set(tiles, [*tiles.tiles, leak], tmp_path / "leak")))
    assert planted.verdict == "LEAK"
    assert planted.held_out[-1].overlap.shared_pixels == 40 * 8


def test_units_are_the_random_scoring_areas(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    units = units_of(tiles, "test")
    assert (units.kind, units.description) == ("random scoring area", "4 random scoring areas of 1 scene")
    assert [cell.window for cell in units.cells] == SCORING
    assert "sample of 1 scene" in units.caveat
    assert units_of(tiles, "train").kind == "block"


def test_folds_are_refused(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    with pytest.raises(SettingError, match="random scoring areas"):
        write_fold_sets(tiles.folder, 3, tmp_path / "folds")


def test_a_derived_tile_set_keeps_the_areas(tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    folder = write_derived_set(tiles, subset(tiles, 0, 2), tmp_path / "two")
    derived = TileSet.open(folder)
    assert len(derived.split("train")) == 2
    assert (labels_of(derived, "test") == inside(SCORING)).all()


def test_joined_tile_sets_have_the_areas_of_all(tmp_path: Path) -> None:
    sets = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sets.append(prepare(write_project(tmp_path / name), tmp_path / f"tiles_{name}", AREAS))
    joined = join_tile_sets(sets)
    assert len(units_of(joined, "test").names) == 8
    samples = joined.samples("test", unique_pixels=True)
    assert sum(int((samples[i][1] != IGNORE).sum()) for i in range(len(samples))) == 2 * inside(SCORING).sum()


@pytest.mark.parametrize("name", ["area 99", ""])
def test_an_edited_index_is_an_error_or_scores_the_window(name: str, tmp_path: Path) -> None:
    tiles = prepare(write_project(tmp_path), tmp_path / "tiles", AREAS)
    frame = geopandas.read_file(tmp_path / "tiles" / "tiles.gpkg", layer="tiles")
    assert set(frame.loc[frame["split"] == "train", "area"]) == {""}
    held = frame["split"] == "test"
    parts = [GRID.footprint(tile.part) for tile in tiles.split("test")]
    assert all(shape.equals(part) for shape, part in zip(frame.geometry[held], parts, strict=True))
    frame.loc[held, "area"] = name
    frame.to_file(tmp_path / "tiles" / "tiles.gpkg", layer="tiles")
    if name:
        with pytest.raises(InputError, match="its area 'area 99'"):
            TileSet.open(tmp_path / "tiles")
    else:
        assert all(tile.area is None for tile in TileSet.open(tmp_path / "tiles").split("test"))
