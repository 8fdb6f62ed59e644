"""Suspected label errors: planted errors are found, thin lines and unconfident pixels are not; error rasters."""

from itertools import product

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from sklearn.metrics import confusion_matrix, jaccard_score

from geograft.geo.grid import Window
from geograft.legend import IGNORE
from geograft.mapping.suspects import binary_probabilities, confidence_thresholds, find_suspects, self_confidence
from geograft.metrics.errors import FALSE_NEGATIVE, FALSE_POSITIVE, error_names, error_raster, tile_counts, worst_tiles

EVEN = np.array([0.5, 0.5])
LABELS = arrays(np.uint8, (9, 8), elements=st.sampled_from([0, 1, 2, IGNORE]))
MAPS = arrays(np.uint8, (9, 8), elements=st.sampled_from([0, 1, 2]))


def forest(side: int = 60) -> tuple[ndarray, ndarray]:
    """A label whose left half is the positive class, and the probabilities of a model that is right and confident."""
    truth = np.zeros((side, side), np.uint8)
    truth[:, : side // 2] = 1
    return truth, np.where(truth == 1, 0.9, 0.1).astype(np.float32)


def test_planted_label_errors_are_found_with_outline_and_area() -> None:
    truth, probability = forest()
    truth[5:15, 10:20] = 0
    truth[30:36, 40:50] = 1
    found = find_suspects(truth, binary_probabilities(probability), EVEN)
    assert found.pixels.tolist() == [100, 60]
    assert (found.labelled.tolist(), found.predicted.tolist()) == ([0, 1], [1, 0])
    assert found.confidence == pytest.approx([0.9, 0.9])
    assert found.label_probability == pytest.approx([0.1, 0.1])
    assert found.shapes[0].equals(shapely.box(10, 5, 20, 15))
    assert found.shapes[1].equals(shapely.box(40, 30, 50, 36))


def test_outlines_are_in_the_coordinates_of_the_transform() -> None:
    truth, probability = forest()
    truth[5:15, 10:20] = 0
    found = find_suspects(truth, binary_probabilities(probability), EVEN, transform=Affine(2, 0, 1000, 0, -2, 500))
    assert found.shapes[0].equals(shapely.box(1020, 470, 1040, 490))


def test_thin_small_unlabelled_or_unconfident_regions_are_not_suspects() -> None:
    truth, probability = forest()
    truth[:, 28:30] = 0  # A line along the edge, two pixels wide.
    truth[50:54, 5:9] = 0  # Sixteen pixels.
    truth[10:20, 45:55] = IGNORE
    probability[10:20, 45:55] = 0.99
    probability[30:40, 45:55] = 0.6  # The model predicts the positive class, but less confidently than usual.
    thresholds = confidence_thresholds(self_confidence(truth, binary_probabilities(probability)))
    assert 0.85 < thresholds[1] < 0.92
    assert len(find_suspects(truth, binary_probabilities(probability), thresholds)) == 0
    assert find_suspects(truth, binary_probabilities(probability), thresholds, min_px=16).pixels.tolist() == [16]
    assert find_suspects(truth, binary_probabilities(probability), EVEN).pixels.tolist() == [100]


def test_suspects_are_sorted_by_area_and_confidence() -> None:
    truth, probability = forest(100)
    for row, size, sure in ((5, 10, 0.95), (30, 12, 0.6), (60, 9, 0.99)):
        truth[row : row + size, 10 : 10 + size] = 0
        probability[row : row + size, 10 : 10 + size] = sure
    assert find_suspects(truth, binary_probabilities(probability), EVEN).pixels.tolist() == [100, 81, 144]


def test_adjacent_regions_of_several_classes_are_separate() -> None:
    truth = np.zeros((20, 40), np.uint8)
    seen = np.zeros((3, 20, 40), np.float32)
    seen[0] = 0.8
    seen[1, 5:12, 5:20], seen[0, 5:12, 5:20] = 0.9, 0.1
    seen[2, 5:12, 20:30], seen[0, 5:12, 20:30] = 0.7, 0.2
    found = find_suspects(truth, seen, np.full(3, 0.5))
    assert found.predicted.tolist() == [1, 2]
    assert found.pixels.tolist() == [105, 70]
    assert found.label_probability == pytest.approx([0.1, 0.2])


def test_a_region_with_a_hole_is_a_polygon_with_a_hole() -> None:
    truth, probability = forest()
    truth[5:25, 5:25] = 0
    truth[10:15, 10:15] = 1
    found = find_suspects(truth, binary_probabilities(probability), EVEN)
    assert found.pixels.tolist() == [375]
    assert found.shapes[0].area == 375
    assert len(found.shapes[0].interiors) == 1


def test_self_confidence_adds_up_over_scenes_and_is_1_for_a_class_without_pixels() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(np.array([0, 1, IGNORE], np.uint8), (2, 12, 10))
    seen = rng.dirichlet([1, 1, 1], (2, 12, 10)).astype(np.float32).transpose(0, 3, 1, 2)
    both = self_confidence(truth[0], seen[0]) + self_confidence(truth[1], seen[1])
    plain = [seen[:, k][truth == k].mean() for k in range(2)]
    np.testing.assert_allclose(both[:2, 0] / both[:2, 1], plain, rtol=1e-6)
    assert confidence_thresholds(both)[2] == 1
    assert (confidence_thresholds(both)[:2] >= 0.5).all()


@given(LABELS, MAPS)
def test_binary_errors_are_false_negatives_or_false_positives(label: ndarray, mapped: ndarray) -> None:
    truth, predicted = (np.where(one == 2, 0, one).astype(np.uint8) for one in (label, mapped))
    found = error_raster(truth, predicted, 2)
    assert found.dtype == np.uint8
    assert ((found == FALSE_NEGATIVE) == ((truth == 1) & (predicted == 0))).all()
    assert ((found == FALSE_POSITIVE) == ((truth == 0) & (predicted == 1))).all()
    assert ((found == IGNORE) == (truth == IGNORE)).all()
    assert ((found == 0) == (truth == predicted)).all()


@pytest.mark.parametrize("classes", [3, 15, 16, 40])
def test_each_pair_of_classes_has_its_own_value_and_name(classes: int) -> None:
    truth, predicted = (np.array(side, np.uint8)[None] for side in zip(*product(range(classes), repeat=2), strict=True))
    found = error_raster(truth, predicted, classes)
    names = error_names([f"c{i}" for i in range(classes)])
    for label, mapped, value in zip(truth[0], predicted[0], found[0], strict=True):
        assert names[int(value)] == ("correct" if label == mapped else f"c{label} mapped as c{mapped}")
    unknown = error_raster(np.full((1, 1), IGNORE, np.uint8), np.zeros((1, 1), np.uint8), classes)[0, 0]
    assert int(unknown) not in names


@given(LABELS, MAPS)
def test_tile_counts_are_confusion_matrices(label: ndarray, mapped: ndarray) -> None:
    windows = [Window(0, 0, 5, 8), Window(4, 3, 9, 9)]
    for window, counts in zip(windows, tile_counts(label, mapped, windows, 3), strict=True):
        known = label[window.slices] != IGNORE
        pair = label[window.slices][known], mapped[window.slices][known]
        plain = confusion_matrix(*pair, labels=[0, 1, 2]) if known.any() else np.zeros((3, 3))
        assert (counts == plain).all()
        ranked = worst_tiles(counts[None], 1)
        if len(ranked.tiles):
            present = sorted(set(pair[0].tolist()) | set(pair[1].tolist()))
            assert ranked.iou[0] == pytest.approx(jaccard_score(*pair, labels=present, average="macro"))
            assert ranked.error_rate[0] == pytest.approx((pair[0] != pair[1]).mean())


def test_the_worst_tiles_have_the_highest_error_rate_and_enough_labels() -> None:
    counts = np.array(
        [[[50, 50], [0, 0]], [[10, 0], [0, 90]], [[0, 5], [0, 0]], [[90, 10], [0, 0]], [[10, 20], [30, 40]]]
    )
    ranked = worst_tiles(counts, 10)
    assert ranked.tiles.tolist() == [0, 4, 3]
    assert ranked.error_rate.tolist() == [0.5, 0.5, 0.1]
    assert ranked.iou == pytest.approx([0, 40 / 90, 0])
    assert worst_tiles(counts, 10, min_labelled=0).tiles.tolist()[0] == 2
    assert worst_tiles(counts, 10, max_tiles=1).tiles.tolist() == [0]
    nothing = worst_tiles(np.array([[[60, 40], [0, 0]], [[90, 0], [0, 0]]]), 10)
    assert nothing.tiles.tolist() == [0]
