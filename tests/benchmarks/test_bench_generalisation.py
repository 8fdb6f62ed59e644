"""The generalisation benchmark: changes of tiles, planned runs, bootstrap over scenes, Holm's correction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

import tile_changes
from bench_generalisation import (
    DRAWS,
    HALF,
    Means,
    compared,
    confirmation_table,
    holm,
    in_place_table,
    ious,
    scene_weights,
    screen_table,
    transfer_table,
)
from geograft.commands.train import training_data
from geograft.config import Recipe
from geograft.dataset.tileset import TileSet
from geograft.training.loader import Scaling, TileLoader
from laboratory import CROWN_SCENES, PIECE_PX, PLACES, VARIANTS, Laboratory, Run, planned, read_scene
from tile_changes import ChangedTiles, blur, drop_band, match_histogram, mix_amplitudes

TILES = arrays(np.float32, st.tuples(st.integers(1, 5), st.just(12), st.just(10)), elements=st.floats(0, 255, width=16))


@settings(max_examples=20)
@given(image=TILES, data=st.data())
def test_strength_zero_changes_nothing(image: ndarray, data: st.DataObject) -> None:
    donor = data.draw(arrays(np.float32, image.shape, elements=st.floats(0, 255, width=16)))
    assert np.array_equal(blur(image, 0), image)
    assert np.array_equal(match_histogram(image, donor, 0), image)
    assert mix_amplitudes(image, donor, 0) == pytest.approx(image, abs=1e-3)


def test_full_strength_takes_histogram_and_low_frequencies_of_the_donor() -> None:
    rng = np.random.default_rng(0)
    image, donor = rng.normal(100, 10, (2, 40, 40)), rng.normal(150, 30, (2, 40, 40))
    matched = match_histogram(image, donor, 1)
    assert np.quantile(matched, [0.1, 0.5, 0.9], axis=(1, 2)) == pytest.approx(
        np.quantile(donor, [0.1, 0.5, 0.9], axis=(1, 2)), abs=1
    )
    mixed = mix_amplitudes(image, donor, 1)
    assert mixed.mean(axis=(1, 2)) == pytest.approx(donor.mean(axis=(1, 2)), abs=0.1)
    own, after = (np.abs(np.fft.rfft2(each))[:, 10, 10] for each in (image, mixed))
    assert after == pytest.approx(own, rel=1e-3)


def test_one_band_is_dropped_and_blur_keeps_bands_apart() -> None:
    image = np.random.default_rng(0).normal(100, 10, (4, 16, 16)).astype(np.float32)
    dropped = drop_band(image, 2)
    assert np.ptp(dropped[2]) == 0
    assert np.array_equal(dropped[[0, 1, 3]], image[[0, 1, 3]])
    blurred = blur(image, 1.5)
    assert np.allclose(blurred[1], blur(image[1:2], 1.5)[0])
    assert (blurred.std(axis=(1, 2)) < image.std(axis=(1, 2))).all()


def batches(tiles: Path, seed: int, change: tile_changes.Change) -> list[torch.Tensor]:
    recipe = Recipe().with_settings(train={"seed": seed, "crops": True, "batch_size": 4, "augment": "none"})
    data = training_data(TileSet.open(tiles), recipe, Scaling((0.0,) * 3, (1.0,) * 3))
    data = replace(data, train=ChangedTiles(TileSet.open(tiles).samples("train"), change))
    return [images for images, _ in TileLoader(data, recipe.train, torch.device("cpu")).train(epoch=1)]


@pytest.mark.parametrize(
    "change",
    [
        tile_changes.randomly_blurred,
        tile_changes.without_random_band,
        tile_changes.with_donor_histogram,
        tile_changes.with_donor_amplitudes,
    ],
)
def test_changes_depend_on_seed_epoch_and_tile_alone(tiles: Path, change: tile_changes.Change) -> None:
    first, again, other = (batches(tiles, seed, change) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_pixels_without_image_data_stay_zero() -> None:
    class Samples:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[ndarray, ndarray]:
            image, label = np.full((3, 8, 8), 50 + 100 * index, np.float32), np.zeros((8, 8), np.uint8)
            image[:, :2], label[:2] = 0, 255
            return image, label

    tiles = ChangedTiles(Samples(), lambda image, donor, rng: image + donor() + rng.random())  # type: ignore[arg-type]
    found = [tiles.random_crop(0, np.random.default_rng(seed))[0] for seed in range(20)]
    assert all((image[:, :2] == 0).all() for image in found)
    assert 0 < sum((image[:, 2:] != 50).any() for image in found) < 20


def test_every_variant_trains_in_every_place_once() -> None:
    runs = planned(VARIANTS, ["trees", "roads"], [0, 1])
    keys = [(run.variant.name, run.kind, run.sources, run.seed) for run in runs]
    assert len(set(keys)) == len(keys) == 2 * (len(VARIANTS) * 5 - 2)
    assert all(run.sources for run in runs)


def test_iou_from_histograms_is_that_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (5, 2, 1001))
    found = ious(counts, scene_weights("x", 5), np.array([HALF]))
    total = counts.sum(axis=0)
    hit, wrong = total[1, HALF:].sum(), total[0, HALF:].sum()
    assert found.shape == (DRAWS + 1, 1)
    assert found[0, 0] == pytest.approx(hit / (wrong + total[1].sum()))


def test_a_difference_has_the_draws_of_both() -> None:
    draws = np.linspace(0.1, 0.2, DRAWS)
    gain = Means(0.25, draws + 0.1, 30) - Means(0.15, draws, 30)
    assert gain.interval() == pytest.approx((0.1, 0.1))
    assert gain.p_value == pytest.approx(2 / DRAWS)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_agrees_with_its_definition(p_values: list[float]) -> None:
    corrected, levels = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    expected = np.maximum.accumulate([min(1, (len(order) - rank) * p_values[i]) for rank, i in enumerate(order)])
    assert [corrected[i] for i in order] == pytest.approx(expected)
    assert sorted(levels) == sorted(1 - 0.05 / (rank + 1) for rank in range(len(levels)))


class Finished(Laboratory):
    """Runs with random histograms, except for label smoothing on roads; the variant's are those of the default."""

    def path(self, run: Run) -> Path:
        missing = run.kind == "roads" and run.variant.name == "label smoothing"
        return Path("no such file") if missing else Path(__file__)

    def scores(self, run: Run) -> dict[str, ndarray]:
        rng = np.random.default_rng((run.seed, *run.kind.encode()))
        return {f"{place}:{i}": rng.integers(0, 9, (2, 1001)) for place in PLACES[run.kind] for i in range(12)}


def test_the_table_has_the_kinds_that_are_finished(tmp_path: Path) -> None:
    variants = [each for each in VARIANTS if each.name in ("the default", "nothing frozen", "label smoothing")]
    found = compared(Finished(tmp_path, tmp_path, Recipe()), variants, ("trees", "roads"), (0,))
    assert [each.kinds for each in found] == [("trees", "roads"), ("trees", "roads"), ("trees",)]
    default, frozen, smoothing = (line.split(" | ") for line in screen_table(found).splitlines()[2:])
    assert len(default) == len(frozen) == len(smoothing)
    assert frozen[2] == "+0.000 (+0.000 to +0.000)"
    assert smoothing[-1] == " |"
    own = [line.split(" | ") for line in in_place_table(found).splitlines()[2:]]
    assert [len(cells) for cells in own] == [3, 3, 3]
    assert own[1][1] == "+0.000 (+0.000 to +0.000)"
    assert own[2][2] == " |"
    assert len(transfer_table(found[0].laboratory, ["roads"], [0]).splitlines()) == 2 + 4
    assert confirmation_table(found[1:]).count("+0.000 (+0.000 to +0.000)") == 6


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pieces_of_a_scene_of_crowns_are_its_pixels_with_their_labels(tmp_path: Path) -> None:
    tiles = Laboratory(tmp_path, tmp_path, Recipe()).tiles("crowns", "slope")
    with rasterio.open(CROWN_SCENES["slope"]) as scene:
        whole, shape = scene.read(), scene.shape
    assert len(tiles.scenes) == (shape[0] // PIECE_PX) * (shape[1] // PIECE_PX)
    assert {tile.split for tile in tiles.tiles} == {"train", "test"}
    for name in tiles.scenes:
        row, col = (int(each) for each in name.split("_")[1:])
        image, label = read_scene(tiles, name)
        assert np.array_equal(image, whole[:, row : row + PIECE_PX, col : col + PIECE_PX])
        assert set(np.unique(label)) <= {0, 1, 255}
    assert 0.1 < np.mean([tile.class_fractions[1] for tile in tiles.tiles]) < 0.9
