"""How unsure runs are: the measures by hand, and turns that come back as they went."""

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
from geograft.inference.uncertainty import MEASURES, Doubt, entropy, margin, mean_inside, spread
from tests.support.rasters import textured
from tests.support.runs import COVERS, TREES, USES, Bandwise, Contextual, Pointwise, make_run


def views_of(*each: list[float]) -> ndarray:
    """Return one pixel as several views see it, by class."""
    return np.array(each, np.float32)[:, None, :, None, None]


def test_one_view_by_hand() -> None:
    sure, torn, three = views_of([1.0, 0.0]), views_of([0.5, 0.5]), views_of([0.5, 0.25, 0.25])
    assert [float(entropy(v)[0, 0, 0]) for v in (sure, torn)] == pytest.approx([0, 1], abs=1e-6)
    assert float(entropy(three)[0, 0, 0]) == pytest.approx(1.5 * math.log(2) / math.log(3), abs=1e-6)
    assert [float(margin(v)[0, 0, 0]) for v in (sure, torn, three)] == pytest.approx([0, 1, 0.75])
    assert [float(spread(v)[0, 0, 0]) for v in (sure, torn, three)] == [0, 0, 0]


def test_views_that_disagree() -> None:
    torn = views_of([1.0, 0.0], [0.0, 1.0])
    assert [float(measure(torn)[0, 0, 0]) for measure in (entropy, margin, spread)] == pytest.approx([1, 1, 1])
    some = views_of([0.9, 0.1], [0.7, 0.3])
    assert float(spread(some)[0, 0, 0]) == pytest.approx(0.2, abs=1e-6)
    assert float(margin(some)[0, 0, 0]) == pytest.approx(0.4, abs=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 5))
def test_every_measure_lies_between_0_and_1(seed: int, views: int, classes: int) -> None:
    raw = np.random.default_rng(seed).gamma(0.3, size=(views, 2, classes, 3, 3)) + 1e-9
    p = (raw / raw.sum(axis=2, keepdims=True)).astype(np.float32)
    for measure in MEASURES.values():
        found = measure(p)
        assert found.shape == (2, 3, 3)
        assert found.min() >= 0
        assert found.max() <= 1


def test_the_mean_is_over_the_pixels_that_count() -> None:
    doubt = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    counted = np.array([[[True, False], [False, True]], [[False, False], [False, False]]])
    assert mean_inside(doubt, counted).tolist() == [1.5, 0]


def doubt_of(mapper: type[Pointwise], run: Path, measure: module.Measure, tta: module.Tta) -> Doubt:
    return Doubt([mapper(read_card(run), batch_size=2)], measure, tta)


@pytest.fixture
def tiles() -> tuple[ndarray, ndarray]:
    return textured(3, 32, 64).reshape(3, 32, 2, 32).transpose(2, 0, 1, 3), np.ones((2, 32, 32), bool)


def test_a_network_that_looks_at_single_pixels_says_the_same_in_every_turn(
    tmp_path: Path, tiles: tuple[ndarray, ndarray]
) -> None:
    run = make_run(tmp_path / "run")
    assert doubt_of(Pointwise, run, "spread", 8)(*tiles).max() < 1e-6
    one, eight = (doubt_of(Pointwise, run, "entropy", tta)(*tiles) for tta in (1, 8))  # type: ignore[arg-type]
    assert eight == pytest.approx(one, abs=1e-6)
    p = tiles[0][:, 0] / 255
    assert one == pytest.approx(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), abs=1e-5)


def test_a_network_that_heeds_the_place_disagrees_with_itself_and_every_turn_of_a_tile_agrees_on_that(
    tmp_path: Path, tiles: tuple[ndarray, ndarray]
) -> None:
    disagreement = doubt_of(Contextual, make_run(tmp_path / "run", COVERS), "spread", 8)
    found = disagreement(*tiles)
    assert found.mean() > 0.1
    pixels, valid = tiles
    turned = disagreement(np.rot90(pixels, 1, (2, 3)), np.rot90(valid, 1, (1, 2)))
    assert np.rot90(turned, -1, (1, 2)) == pytest.approx(found, abs=1e-5)


def test_overlapping_classes_are_doubted_each_for_itself(tmp_path: Path, tiles: tuple[ndarray, ndarray]) -> None:
    run, (pixels, valid) = make_run(tmp_path / "run", USES, mean=(90.0,) * 3), tiles
    p = np.where(valid[:, None], pixels, 90) / 255
    entropies = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(axis=1)
    assert doubt_of(Bandwise, run, "entropy", 1)(*tiles) == pytest.approx(entropies, abs=1e-5)
    margins = (1 - np.abs(2 * p - 1)).mean(axis=1)
    assert doubt_of(Bandwise, run, "margin", 4)(*tiles) == pytest.approx(margins, abs=1e-5)
    assert doubt_of(Bandwise, run, "spread", 8)(*tiles) == pytest.approx(0, abs=1e-3)


def test_runs_of_other_classes_or_tiles_are_refused(tmp_path: Path) -> None:
    first, classes, size = (
        make_run(tmp_path / "a", TREES),
        make_run(tmp_path / "b", COVERS),
        make_run(tmp_path / "c", TREES, tile_px=64),
    )
    with pytest.raises(InputError, match=r"b cannot be set beside .*a: its classes are water, grass, crops, trees"):
        Doubt.load((first, classes), "entropy")
    with pytest.raises(InputError, match="its tiles are 64 px, there 32 px"):
        Doubt.load((first, size), "entropy")
