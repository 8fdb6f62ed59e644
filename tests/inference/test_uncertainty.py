"""Uncertainty: the acquisition functions against values by hand, and TTA views."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.card import read_card
from geograft.errors import InputError
from geograft.inference import uncertainty as module
from geograft.inference.uncertainty import ACQUISITIONS, Uncertainty, disagreement, entropy, margin, mean_over_mask
from tests.support.rasters import textured
from tests.support.runs import COVERS, TREES, USES, BandPredictor, ContextPredictor, PixelwisePredictor, make_run


def views_of(*each: list[float]) -> ndarray:
    """Return the class probabilities of one pixel by several views."""
    return np.array(each, np.float32)[:, None, :, None, None]


def test_one_view_by_hand() -> None:
    sure, torn, three = views_of([1.0, 0.0]), views_of([0.5, 0.5]), views_of([0.5, 0.25, 0.25])
    assert [float(entropy(v)[0, 0, 0]) for v in (sure, torn)] == pytest.approx([0, 1], abs=1e-6)
    assert float(entropy(three)[0, 0, 0]) == pytest.approx(1.5 * math.log(2) / math.log(3), abs=1e-6)
    assert [float(margin(v)[0, 0, 0]) for v in (sure, torn, three)] == pytest.approx([0, 1, 0.75])
    assert [float(disagreement(v)[0, 0, 0]) for v in (sure, torn, three)] == [0, 0, 0]


def test_views_that_disagree() -> None:
    torn = views_of([1.0, 0.0], [0.0, 1.0])
    assert [float(measure(torn)[0, 0, 0]) for measure in (entropy, margin, disagreement)] == pytest.approx([1, 1, 1])
    some = views_of([0.9, 0.1], [0.7, 0.3])
    assert float(disagreement(some)[0, 0, 0]) == pytest.approx(0.2, abs=1e-6)
    assert float(margin(some)[0, 0, 0]) == pytest.approx(0.4, abs=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 5))
def test_acquisition_functions_lie_between_0_and_1(seed: int, views: int, classes: int) -> None:
    raw = np.random.default_rng(seed).gamma(0.3, size=(views, 2, classes, 3, 3)) + 1e-9
    p = (raw / raw.sum(axis=2, keepdims=True)).astype(np.float32)
    for measure in ACQUISITIONS.values():
        found = measure(p)
        assert found.shape == (2, 3, 3)
        assert found.min() >= 0
        assert found.max() <= 1


def test_the_mean_is_over_the_mask() -> None:
    uncertainty = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    mask = np.array([[[True, False], [False, True]], [[False, False], [False, False]]])
    assert mean_over_mask(uncertainty, mask).tolist() == [1.5, 0]


def uncertainty_of(
    mapper: type[PixelwisePredictor], run: Path, measure: module.Acquisition, tta: module.Tta
) -> Uncertainty:
    return Uncertainty([mapper(read_card(run), batch_size=2)], measure, tta)


@pytest.fixture
def tiles() -> tuple[ndarray, ndarray]:
    return textured(3, 32, 64).reshape(3, 32, 2, 32).transpose(2, 0, 1, 3), np.ones((2, 32, 32), bool)


def test_a_pixelwise_network_agrees_in_all_views(tmp_path: Path, tiles: tuple[ndarray, ndarray]) -> None:
    run = make_run(tmp_path / "run")
    assert uncertainty_of(PixelwisePredictor, run, "disagreement", 8)(*tiles).max() < 1e-6
    one, eight = (uncertainty_of(PixelwisePredictor, run, "entropy", tta)(*tiles) for tta in (1, 8))  # type: ignore[arg-type]
    assert eight == pytest.approx(one, abs=1e-6)
    p = tiles[0][:, 0] / 255
    assert one == pytest.approx(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), abs=1e-5)


def test_disagreement_of_a_position_dependent_network_is_equivariant(
    tmp_path: Path, tiles: tuple[ndarray, ndarray]
) -> None:
    disagreement = uncertainty_of(ContextPredictor, make_run(tmp_path / "run", COVERS), "disagreement", 8)
    found = disagreement(*tiles)
    assert found.mean() > 0.1
    pixels, valid = tiles
    turned = disagreement(np.rot90(pixels, 1, (2, 3)), np.rot90(valid, 1, (1, 2)))
    assert np.rot90(turned, -1, (1, 2)) == pytest.approx(found, abs=1e-5)


def test_overlapping_classes_have_binary_uncertainty(tmp_path: Path, tiles: tuple[ndarray, ndarray]) -> None:
    run, (pixels, valid) = make_run(tmp_path / "run", USES, mean=(90.0,) * 3), tiles
    p = np.where(valid[:, None], pixels, 90) / 255
    entropies = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(axis=1)
    assert uncertainty_of(BandPredictor, run, "entropy", 1)(*tiles) == pytest.approx(entropies, abs=1e-5)
    margins = (1 - np.abs(2 * p - 1)).mean(axis=1)
    assert uncertainty_of(BandPredictor, run, "margin", 4)(*tiles) == pytest.approx(margins, abs=1e-5)
    assert uncertainty_of(BandPredictor, run, "disagreement", 8)(*tiles) == pytest.approx(0, abs=1e-3)


def test_runs_of_other_classes_or_tiles_are_rejected(tmp_path: Path) -> None:
    first, classes, size = (
        make_run(tmp_path / "a", TREES),
        make_run(tmp_path / "b", COVERS),
        make_run(tmp_path / "c", TREES, tile_px=64),
    )
    with pytest.raises(InputError, match=r"b .*a: classes are water, grass, crops, trees"):
        Uncertainty.load((first, classes), "entropy")
    with pytest.raises(InputError, match="tiles are 64 px, not 32 px"):
        Uncertainty.load((first, size), "entropy")
