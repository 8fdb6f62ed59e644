"""The ensemble predictor: means over runs and TTA, standard deviation, invalid pixels, and compatible runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy import ndarray

from geograft.card import WEIGHTS, ModelCard, read_card
from geograft.config import ModelConfig
from geograft.errors import InputError
from geograft.inference.predictor import EnsembleMember, EnsemblePredictor
from geograft.inference.runners import Runner, TileWorkers
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.training.checkpoint import save_weights
from tests.support.tilewise import tile_logits

CARD = ModelCard(
    name="squares",
    model=ModelConfig(architecture="unet"),
    weights_from="random",
    legend=Legend(("rest", "crown")),
    band_names=("red", "green"),
    dtype="uint8",
    mean=(130.0, 90.5),
    std=(30.0, 20.0),
    tile_px=32,
    resolution_m=None,
    threshold=0.5,
    epoch=1,
)
THREE = replace(CARD, legend=Legend(("rest", "crown", "road")))
CPU = TileWorkers(4)
ALL = np.ones((4, 32, 32), bool)


def tiles(seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).integers(0, 255, (4, 2, 32, 32), dtype=np.uint8)


def make_run(folder: Path, card: ModelCard = CARD, seed: int = 0) -> Path:
    folder.mkdir()
    torch.manual_seed(seed)
    card.write(folder)
    save_weights(folder / WEIGHTS, build(card.model, len(card.band_names), card.legend.outputs))
    return folder


def member(runner: Runner, card: ModelCard = CARD) -> EnsembleMember:
    return EnsembleMember(card.mean, card.std, card.temperature, runner)


def by_hand(run: Path, pixels: ndarray, valid: ndarray = ALL) -> ndarray:
    """Return the layers of tiles from torch alone, in float64 after the network."""
    card = read_card(run)
    logits = torch.from_numpy(tile_logits(run, pixels, valid)).double() / card.temperature
    return (logits.softmax(dim=1) if logits.shape[1] > 1 else logits.sigmoid()).numpy()


@pytest.mark.parametrize("card", [CARD, THREE])
def test_one_run_gives_the_probabilities_of_its_network(card: ModelCard, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", card)
    mapper = EnsemblePredictor.load([run], device="cpu", backend="torch", batch_size=4)
    found = mapper(tiles(), ALL)
    assert found.dtype == np.float32
    assert found.shape[1] == mapper.layers == card.legend.outputs
    np.testing.assert_allclose(found, by_hand(run, tiles()), atol=2e-6)


def test_several_runs_are_averaged_each_with_its_own_scaling(tmp_path: Path) -> None:
    other = replace(THREE, mean=(100.0, 100.0), std=(50.0, 10.0), temperature=2.0)
    runs = [make_run(tmp_path / str(seed), card, seed) for seed, card in enumerate((THREE, other, THREE))]
    mapper = EnsemblePredictor.load(runs, device="cpu", backend="torch", batch_size=4, spread=True)
    each = np.stack([by_hand(run, tiles()) for run in runs]).astype(np.float64)
    found = mapper(tiles(), ALL)
    assert found.shape[1] == mapper.layers == 4
    np.testing.assert_allclose(found[:, :3], each.mean(axis=0), atol=2e-6)
    np.testing.assert_allclose(found[:, 3], each.std(axis=0).max(axis=1), atol=2e-6)
    alone = EnsemblePredictor.load(runs, device="cpu", backend="torch", batch_size=4)(tiles(), ALL)
    assert np.array_equal(found[:, :3], alone)


def test_the_order_of_two_runs_does_not_matter_and_a_run_agrees_with_itself(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", seed=1)
    options: dict[str, Any] = {"device": "cpu", "backend": "torch", "batch_size": 4, "spread": True}
    found = EnsemblePredictor.load([first, second], **options)(tiles(), ALL)
    assert np.array_equal(found, EnsemblePredictor.load([second, first], **options)(tiles(), ALL))
    itself = EnsemblePredictor.load([first, first], **options)(tiles(), ALL)
    assert np.array_equal(itself[:, :1], EnsemblePredictor.load([first], **options | {"spread": False})(tiles(), ALL))
    assert not itself[:, 1].any()


@pytest.mark.parametrize("tta", [1, 2, 4, 8])
def test_tta_does_not_change_a_pixelwise_network(tta: Literal[1, 2, 4, 8]) -> None:
    """Such a network commutes with all transforms, so equal bits prove that each is undone correctly."""
    once = EnsemblePredictor(CARD, [member(lambda images: images[:, :1])], CPU)(tiles(), ALL)
    assert np.array_equal(
        EnsemblePredictor(CARD, [member(lambda images: images[:, :1])], CPU, tta=tta)(tiles(), ALL), once
    )


@pytest.mark.parametrize("tta", [2, 4, 8])
def test_tta_is_equivariant(tta: Literal[2, 4, 8], tmp_path: Path) -> None:
    mapper = EnsemblePredictor.load([make_run(tmp_path / "run")], device="cpu", backend="torch", batch_size=4, tta=tta)
    upright, turned = mapper(tiles(), ALL), mapper(np.rot90(tiles(), 2, (2, 3)), ALL)
    np.testing.assert_allclose(np.rot90(turned, 2, (2, 3)), upright, atol=1e-6)
    alone = EnsemblePredictor.load([tmp_path / "run"], device="cpu", backend="torch", batch_size=4)
    assert not np.allclose(
        np.rot90(alone(np.rot90(tiles(), 2, (2, 3)), ALL), 2, (2, 3)), alone(tiles(), ALL), atol=1e-6
    )


def test_all_transforms_are_averaged() -> None:
    """A network that marks the first row of what it sees marks each side of the tile in a quarter of the turns."""

    def marks(images: ndarray) -> ndarray:
        logits = np.full_like(images[:, :1], -100)
        logits[:, :, 0] = 100
        return logits

    found = EnsemblePredictor(CARD, [member(marks)], CPU, tta=8)(tiles(), ALL)[0, 0]
    assert (found[0, 5], found[5, 0], found[-1, 5], found[5, -1], found[0, 0], found[9, 9]) == (*[0.25] * 4, 0.5, 0)


def test_invalid_pixels_are_replaced_by_the_mean() -> None:
    seen = []

    def watching(images: ndarray) -> ndarray:
        seen.append(images.copy())
        return images[:, :1]

    valid = ALL.copy()
    valid[:, :7] = False
    wild = tiles().astype(np.float32)
    wild[:, :, :7] = np.nan
    found = EnsemblePredictor(CARD, [member(watching)], TileWorkers(1))(wild, valid)
    images = np.concatenate(seen)
    assert (images[:, :, :7] == 0).all()
    assert (found[:, :, :7] == 0.5).all()
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (CARD.mean, CARD.std))
    assert np.array_equal(images[:, :, 7:], ((tiles() - mean) / std)[:, :, 7:])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_every_dtype_and_memory_layout_of_pixels(dtype: str) -> None:
    mapper = EnsemblePredictor(CARD, [member(lambda images: images[:, :1])], CPU)
    expected = mapper(tiles(), ALL)
    pixels = np.asfortranarray(tiles().astype(dtype))
    pixels.flags.writeable = False
    assert np.array_equal(mapper(pixels, ALL), expected)


def test_runners_get_contiguous_images_that_no_other_view_shares() -> None:
    """A backend may keep the array, or write into it."""
    seen: list[ndarray] = []

    def overwriting(images: ndarray) -> ndarray:
        assert images.flags.c_contiguous
        assert not any(np.shares_memory(images, other) for other in seen)
        seen.append(images)
        logits = images[:, :1].copy()
        images[:] = np.nan
        return logits

    found = EnsemblePredictor(CARD, [member(overwriting)] * 2, TileWorkers(0), tta=8)(tiles(), ALL)
    assert len(seen) == 16
    assert np.array_equal(found, EnsemblePredictor(CARD, [member(lambda images: images[:, :1])], CPU)(tiles(), ALL))


def test_spread_over_views_is_that_of_every_run_in_every_transform() -> None:
    """The first row of what a network sees is class 1: each side of a tile in a quarter of the eight views."""

    def marks(images: ndarray) -> ndarray:
        logits = np.full_like(images[:, :1], -100)
        logits[:, :, 0] = 100
        return logits

    found = EnsemblePredictor(CARD, [member(marks)], CPU, tta=8, spread=True, spread_views=True)(tiles(), ALL)[0]
    assert found.shape[0] == 2
    assert (found[0, 0, 5], found[0, 0, 0], found[0, 9, 9]) == (0.25, 0.5, 0)
    assert found[1, 0, 5] == pytest.approx(np.sqrt(0.25 * 0.75), abs=1e-6)
    assert (found[1, 0, 0], found[1, 9, 9]) == (0.5, 0)
    plain = EnsemblePredictor(CARD, [member(marks)], CPU, tta=8, spread=True)(tiles(), ALL)[0]
    assert np.array_equal(plain[0], found[0])
    assert not plain[1].any()
    bright, dark = (member(lambda images, sign=sign: np.full_like(images[:, :1], sign)) for sign in (100, -100))
    both = EnsemblePredictor(CARD, [bright, dark], CPU, tta=2, spread=True, spread_views=True)(tiles(), ALL)
    assert (both == 0.5).all()


def test_the_temperature_divides_the_logits(tmp_path: Path) -> None:
    run, cool = make_run(tmp_path / "run"), make_run(tmp_path / "cool", replace(CARD, temperature=2.5))
    expected = 1 / (1 + np.exp(-tile_logits(run, tiles(), ALL).astype(np.float64) / 2.5))
    options: dict[str, Any] = {"device": "cpu", "backend": "torch", "batch_size": 4}
    np.testing.assert_allclose(EnsemblePredictor.load([cool], **options)(tiles(), ALL), expected, atol=2e-6)
    asked = EnsemblePredictor.load([run], temperature=2.5, **options)
    np.testing.assert_allclose(asked(tiles(), ALL), expected, atol=2e-6)
    neither = EnsemblePredictor.load([cool], temperature=1.0, **options)
    assert np.array_equal(neither(tiles(), ALL), EnsemblePredictor.load([run], **options)(tiles(), ALL))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"legend": Legend(("rest", "tree"))}, "classes 0 rest, 1 tree, not 0 rest, 1 crown"),
        ({"legend": Legend(("rest", "crown"), (0, 7))}, "classes 0 rest, 7 crown, not 0 rest, 1 crown"),
        ({"band_names": ("red",), "mean": (1.0,), "std": (1.0,)}, "number of bands 1, not 2"),
        ({"dtype": "uint16"}, "dtype uint16, not uint8"),
    ],
)
def test_incompatible_runs_are_rejected(change: dict[str, Any], difference: str, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "first"), make_run(tmp_path / "second", replace(CARD, **change))]
    with pytest.raises(InputError, match=f"second .*first: {difference}"):
        EnsemblePredictor.load(runs, device="cpu", backend="torch", batch_size=4)
