"""Duplicate scenes are found from their edges, without false positives."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from numpy import ndarray

from geograft.dataset import dstl, duplicates
from geograft.dataset.duplicates import (
    Match,
    StructureAccumulator,
    Thumbnail,
    find_matches,
    find_matches_within,
    image_structure,
    label_structure,
    match_structures,
    read_structures,
    write_structures,
)
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import rasterize_window
from geograft.labels import class_fractions, encode_fractions
from geograft.legend import IGNORE, Legend

NOTHING = np.zeros((0, 2, 64, 64), np.int8)


def seen(pixels: ndarray, valid: ndarray | None = None) -> ndarray:
    """The structure of an image that is given at once."""
    known = np.ones(pixels.shape[1:], bool) if valid is None else valid
    thumbnail = Thumbnail(len(pixels), *known.shape)
    thumbnail.add(np.where(known, pixels, 0), known, Window(0, 0, *known.shape))
    return image_structure(thumbnail)


def labelled(labels: ndarray, classes: int) -> ndarray:
    looks = StructureAccumulator(1, classes - 1, *labels.shape)
    looks.add(np.zeros((1, *labels.shape), np.uint8), labels != IGNORE, labels, Window(0, 0, *labels.shape))
    return looks.structures()[1]


def country(seed: int, side: int = 400) -> ndarray:
    """A landscape of patches, float (3, side, side): where smooth noise crosses levels there are edges."""
    rng = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(side, side)), 8, mode="wrap")
    return np.stack([np.digitize(smooth, np.quantile(smooth, [0.2, 0.5, 0.7])) * gain for gain in (10.0, 30.0, 20.0)])


def all_pairs(looks: Sequence[ndarray]) -> list[Match]:
    found = [match_structures(looks[i], looks[j], (i, j)) for i, j in combinations(range(len(looks)), 2)]
    return [one for one in found if one]


def dstl_looks(folder: Path) -> tuple[list[str], dict[str, list[ndarray]]]:
    labels, extents = dstl.read_dstl_labels(folder, tuple(dstl.CLASS_NAMES)), dstl.read_extents(folder)
    names = sorted(labels.shapes)
    looks: dict[str, list[ndarray]] = {"images": [], "labels": []}
    for name in names:
        with Image.open(folder / "sixteen_band" / f"{name}_A.tif") as image:
            looks["images"].append(seen(*image.read(image.info.grid.window)))
            grid = Grid(512, 512, image.info.grid.transform, None)
        burnt = rasterize_window(labels.in_pixels(name, extents[name], grid), grid.window, fill=0)
        looks["labels"].append(labelled(burnt, len(dstl.CLASS_NAMES) + 1))
    return names, looks


def test_only_the_two_duplicate_pairs_of_dstl_are_found_by_image_and_by_labels(shared: Path) -> None:
    names, looks = dstl_looks(shared / "data" / "dstl")
    for kind, least, most in (("images", 0.67, 0.09), ("labels", 0.76, 0.17)):
        pairs = all_pairs(looks[kind])
        assert len(pairs) == 300
        same = [pair for pair in pairs if pair.is_duplicate]
        assert {(names[pair.left], names[pair.right]) for pair in same} == set(dstl.DUPLICATE_SCENES)
        assert all(pair.similarity > least - 0.005 and pair.shift == (0, 0) for pair in same)
        # The margin that the page on audit states.
        assert max(pair.similarity for pair in pairs if not pair.is_duplicate) < most + 0.005
        assert find_matches_within(np.stack(looks[kind])) == same


def test_the_amazon_scenes_have_no_duplicates(shared: Path) -> None:
    looks = []
    for path in sorted((shared / "data" / "amazon" / "images").iterdir()):
        with Image.open(path) as image:
            looks.append(seen(*image.read(image.info.grid.window)))
    assert len(looks) == 30
    assert not any(pair.is_duplicate or pair.similarity > 0.165 for pair in all_pairs(looks))


@pytest.mark.parametrize("shift", [(0, 0), (0, 37), (55, -40), (-60, 3)])
def test_a_shifted_scene_of_another_date_is_found_with_its_shift(shift: tuple[int, int]) -> None:
    wide, rng = country(0, 520), np.random.default_rng(1)
    first = wide[:, 100:420, 100:420]
    later = wide[:, 100 + shift[0] : 420 + shift[0], 100 + shift[1] : 420 + shift[1]]
    # Another light, another order of brightness, noise.
    later = (90 - later) ** 1.3 * np.array([0.5, 1.0, 2.0])[:, None, None]
    found = match_structures(seen(first), seen(later + rng.normal(0, 10, later.shape)))
    assert found is not None
    assert found.is_duplicate
    np.testing.assert_allclose(np.array(found.shift) * 320, shift, atol=320 / 64)


def test_the_shift_is_the_position_of_the_right_scene_on_the_left() -> None:
    wide = country(3)
    found = match_structures(seen(wide[:, :320, :320]), seen(wide[:, 40:360, 20:340]))
    assert found is not None
    assert found.shift == (0.125, 0.0625)


def test_duplicates_of_other_sizes_are_found() -> None:
    fine = country(4)
    found = match_structures(seen(fine), seen(scipy.ndimage.zoom(fine, (1, 0.37, 0.41), order=1)))
    assert found is not None
    assert found.is_duplicate


def test_unrelated_landscapes_are_never_duplicates() -> None:
    looks = np.stack([seen(country(seed, 200)) for seed in range(40)])
    assert [(one.left, one.right) for one in find_matches(looks, looks)] == [(i, i) for i in range(40)]
    assert find_matches_within(looks) == []
    assert [(one.left, one.right) for one in find_matches_within(looks[[3, 5, 3, 7, 5]])] == [(0, 2), (1, 4)]
    assert find_matches(looks, NOTHING) == find_matches(NOTHING, looks) == find_matches_within(NOTHING) == []


def test_many_scenes_are_compared_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = np.stack([seen(country(seed % 11, 200)) for seed in range(15)])
    found = find_matches_within(looks)
    assert [(one.left, one.right) for one in found] == [(i, i + 11) for i in range(4)]
    monkeypatch.setattr(duplicates, "BATCH_SIZE", 4)
    assert sorted(find_matches_within(looks), key=lambda one: one.left) == found


def test_two_single_houses_are_no_evidence() -> None:
    one, other = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    one[40:60, 50:80] = 1
    other[100:120, 98:128] = 1
    found = match_structures(labelled(one, 2), labelled(other, 2))
    assert found is not None
    assert found.similarity > 0.9
    assert found.threshold > 1
    assert not found.is_duplicate


def test_repeating_rows_are_no_evidence() -> None:
    rows = np.indices((256, 256)).sum(axis=0) // 16 % 2 * np.ones((1, 256, 256))
    rng = np.random.default_rng(0)
    one, other = (seen(np.roll(rows, 3, axis=2) + rng.normal(0, 0.1, rows.shape)) for _ in range(2))
    found = match_structures(one, other)
    assert found is None or not found.is_duplicate


def test_scenes_without_edges_have_no_match() -> None:
    flat = seen(np.ones((3, 100, 100)))
    assert match_structures(flat, flat) is None
    assert match_structures(seen(np.random.default_rng(0).normal(size=(1, 30, 30))), flat) is None
    assert find_matches(flat[None], flat[None]) == []


def test_the_edge_of_missing_pixels_is_no_structure() -> None:
    frame = np.zeros((256, 256), bool)
    frame[40:200, 30:220] = True
    one, other = (seen(country(seed, 256), frame) for seed in (5, 6))
    found = match_structures(one, other)
    assert found is not None
    assert not found.is_duplicate
    assert not one[:, :10].any()
    again = match_structures(one, seen(country(5, 256) * 2 + 1, frame))
    assert again is not None
    assert again.is_duplicate


def test_structures_do_not_depend_on_the_windows() -> None:
    pixels, labels = country(7, 150), (country(8, 150)[0] > 15).astype(np.uint8)
    labels[:20] = IGNORE
    valid = np.ones((150, 150), bool)
    valid[:, 130:] = False
    whole, parts = StructureAccumulator(3, 1, 150, 150), StructureAccumulator(3, 1, 150, 150)
    whole.add(pixels * valid, valid, labels, Window(0, 0, 150, 150))
    for window in (Window(0, 0, 7, 150), Window(7, 0, 143, 1), Window(7, 1, 143, 149)):
        inside = window.slices
        parts.add((pixels * valid)[:, *inside], valid[inside], labels[inside], window)
    np.testing.assert_array_equal(whole.structures(), parts.structures())


@pytest.mark.parametrize("legend", [Legend(("rest", "tree")), Legend(("rest", "tree", "road"))])
def test_fractions_of_whole_pixels_have_the_structure_of_classes(legend: Legend) -> None:
    labels = (country(8, 150)[0] // 10).clip(max=len(legend.names) - 1).astype(np.uint8)
    labels[:20] = IGNORE
    looks = StructureAccumulator(1, len(legend.names) - 1, 150, 150)
    shares = encode_fractions(class_fractions(labels, legend))[-legend.outputs :]
    looks.add(np.zeros((1, 150, 150), np.uint8), labels != IGNORE, shares, Window(0, 0, 150, 150))
    np.testing.assert_array_equal(looks.structures()[1], labelled(labels, len(legend.names)))


def test_means_are_those_of_the_valid_pixels() -> None:
    pixels, valid = np.arange(128 * 128.0).reshape(1, 128, 128), np.ones((128, 128), bool)
    valid[0, 0] = valid[0:2, 2:4] = False
    thumbnail = Thumbnail(1, 128, 128)
    thumbnail.add(pixels * valid, valid, Window(0, 0, 128, 128))
    means, known = thumbnail.means()
    assert means[0, 0, 0] == pytest.approx((1 + 128 + 129) / 3)
    assert known[0, 0]
    assert not known[0, 1]
    assert known.sum() == 64 * 64 - 1
    assert label_structure(thumbnail).dtype == np.int8


def test_structures_round_trip_through_their_file(tmp_path: Path) -> None:
    looks = np.random.default_rng(0).integers(-127, 128, (3, 2, 2, 64, 64), dtype=np.int8)
    write_structures(tmp_path / "structure.npy", looks)
    np.testing.assert_array_equal(read_structures(tmp_path / "structure.npy", 3), looks)
    assert read_structures(tmp_path / "none.npy", 3) is None


@pytest.mark.parametrize("kind", ["other", "fewer", "torn", "huge", "text", "folder"])
def test_a_damaged_file_of_structures_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.npy"
    write_structures(path, np.zeros((3 - (kind == "fewer"), 2, 2, 64, 64), np.int8))
    if kind == "other":
        np.save(path, np.zeros(3))
    elif kind == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "huge":
        path.write_bytes(
            path.read_bytes().replace(b"(3, 2, 2, 64, 64), }", b"(3" + b"0" * 12 + b", 2, 2, 64, 64), }")[:10_000]
        )
    elif kind == "text":
        path.write_text("structure")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
        assert read_structures(path, 3) is None
        return
    with pytest.raises(InputError, match=rf"{kind}\.npy"):
        read_structures(path, 3)
