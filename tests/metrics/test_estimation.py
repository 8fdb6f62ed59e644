"""Estimators of accuracy and area: published example, definitions, and coverage of the confidence intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.metrics.estimation import (
    ErrorMatrix,
    allocate_points,
    estimate_accuracy,
    estimate_class_areas,
    sample_size,
    undersampled_strata,
)

# Olofsson et al. 2014, section 5, table 8: deforestation, forest gain, stable forest, stable non-forest.
POINTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED = np.array([200_000.0, 150_000, 3_200_000, 6_450_000])


def equal_pixels(points: ndarray) -> ErrorMatrix:
    """Return the error matrix of point counts in pixels of area 1."""
    return ErrorMatrix(points, points.astype(np.float64), points.astype(np.float64))


def test_published_example() -> None:
    """Section 5.2, its tables 8 and 9; a pixel is 0.09 ha.

    The paper also prints 0.23 and 0.01 as the margins of the second and fourth producer's accuracies; its equation 7
    gives 0.25 and 0.02 (see the next test), so these two are left out.
    """
    found = estimate_accuracy(equal_pixels(POINTS), MAPPED)
    assert round(found.area.value[0]) == 235_086
    assert round(found.area.margin[0]) == 68_418
    assert (found.area.value * 0.09).round().tolist() == [21_158, 11_686, 285_770, 581_386]
    assert (found.area.margin * 0.09).round().tolist() == [6_158, 3_756, 15_510, 16_282]
    assert found.overall.value.round(2).tolist() == [0.95]
    assert found.overall.margin.round(2).tolist() == [0.02]
    assert found.users.value.round(2).tolist() == [0.88, 0.73, 0.93, 0.96]
    assert found.users.margin.round(2).tolist() == [0.07, 0.10, 0.04, 0.02]
    assert found.producers.value.round(2).tolist() == [0.75, 0.85, 0.93, 0.96]
    assert found.producers.margin[[0, 2]].round(2).tolist() == [0.21, 0.03]
    table_9 = [[0.0176, 0, 0.0013, 0.0011], [0, 0.0110, 0.0016, 0.0024], [0.0019, 0, 0.2967, 0.0213]]
    assert found.proportions[:3].round(4).tolist() == table_9


def test_producers_accuracy_margins_match_equation_7() -> None:
    """Term by term as the paper prints it, from pixel counts."""
    rows, found = POINTS.sum(axis=1), estimate_accuracy(equal_pixels(POINTS), MAPPED)
    for j in range(4):
        users, total = POINTS[j, j] / rows[j], sum(MAPPED[i] * POINTS[i, j] / rows[i] for i in range(4))
        producers = MAPPED[j] * users / total
        first = MAPPED[j] ** 2 * (1 - producers) ** 2 * users * (1 - users) / (rows[j] - 1)
        shares = {i: POINTS[i, j] / rows[i] for i in range(4) if i != j}
        second = producers**2 * sum(MAPPED[i] ** 2 * p * (1 - p) / (rows[i] - 1) for i, p in shares.items())
        assert found.producers.value[j] == pytest.approx(producers)
        assert found.producers.standard_error[j] == pytest.approx((first + second) ** 0.5 / total)


def test_published_sample_size() -> None:
    """Section 5.1.1: 641 points for a standard error of 0.01."""
    weights, accuracy = MAPPED / MAPPED.sum(), np.array([0.7, 0.6, 0.9, 0.95])
    assert sample_size(weights, accuracy, 0.01, int(MAPPED.sum())) == 641


def test_published_allocation() -> None:
    """Table 5: 75 points for each class of change, the rest in proportion (the paper rounds to 165 and 325)."""
    sizes = allocate_points(MAPPED / MAPPED.sum(), MAPPED.astype(np.int64), 640, 75)
    assert sizes.tolist() == [75, 75, 162, 328]


# ------------------------------------------------------------------------------------ against the definition, by points


def by_points(mapped: ndarray, reference: ndarray, size: ndarray, stratum_area: ndarray, j: int) -> list[float]:
    """Area of class j and its producer's accuracy with standard errors, from residuals of single points."""
    total = variance = right = 0.0
    parts = []
    for i, area in enumerate(stratum_area):
        a, is_j = size[mapped == i], (reference[mapped == i] == j).astype(float)
        share = (a @ is_j) / a.sum()
        residual = a * (is_j - share) / a.mean()
        spread = area**2 * residual.var(ddof=1) / len(a)
        parts.append((area * share, spread))
        total, variance, right = total + area * share, variance + spread, right + (area * share if i == j else 0)
    accuracy = right / total
    error = sum(spread * ((1 - accuracy) if i == j else accuracy) ** 2 for i, (_, spread) in enumerate(parts))
    return [total, variance**0.5, accuracy, error**0.5 / total]


@given(st.integers(0, 10**6), st.booleans())
def test_estimates_match_residuals_of_single_points(seed: int, equal: bool) -> None:
    rng = np.random.default_rng(seed)
    mapped = np.repeat([0, 1, 2], [5, 9, 20])
    reference = rng.integers(0, 3, len(mapped))
    reference[[0, 5, 14]] = 0, 1, 2
    size = np.full(len(mapped), 900.0) if equal else rng.uniform(300, 900, len(mapped))
    areas = np.array([10.0, 200, 3000])
    found = estimate_accuracy(ErrorMatrix.from_points(mapped, reference, size, 3), areas)
    for j in range(3):
        figures = [found.area.value, found.area.standard_error, found.producers.value, found.producers.standard_error]
        assert [figure[j] for figure in figures] == pytest.approx(by_points(mapped, reference, size, areas, j))
    if equal:
        same = estimate_accuracy(equal_pixels(ErrorMatrix.from_points(mapped, reference, size, 3).points), areas)
        assert found.area.standard_error == pytest.approx(same.area.standard_error)
        assert found.users.standard_error == pytest.approx(same.users.standard_error)


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=3, max_size=3))
def test_areas_and_proportions_sum_to_the_total(rows: list[list[int]]) -> None:
    points = np.array(rows) + 2 * np.eye(3, dtype=np.int64)
    areas = np.array([5.0, 70, 900])
    found = estimate_accuracy(equal_pixels(points), areas)
    assert found.area.value.sum() == pytest.approx(areas.sum())
    assert found.proportions.sum() == pytest.approx(1)
    assert found.proportions.sum(axis=1) == pytest.approx(areas / areas.sum())


def test_a_perfect_map_keeps_its_areas() -> None:
    found = estimate_accuracy(equal_pixels(np.diag([3, 4, 5])), np.array([1.0, 2, 3]))
    assert found.area.value.tolist() == pytest.approx([1, 2, 3])
    assert found.area.standard_error.tolist() == [0, 0, 0]
    assert found.overall.value[0] == 1


def test_class_without_reference_points() -> None:
    found = estimate_accuracy(equal_pixels(np.array([[9, 0, 1], [2, 0, 0], [0, 0, 5]])), np.array([50.0, 10, 40]))
    assert found.area.value[1] == 0
    assert np.isnan([found.area.standard_error[1], found.producers.value[1]]).all()
    assert found.users.value[1] == 0


def test_class_that_is_not_mapped() -> None:
    found = estimate_accuracy(equal_pixels(np.array([[8, 2], [0, 0]])), np.array([50.0, 0]))
    assert found.area.value.tolist() == [40, 10]
    assert np.isnan(found.users.value[1])
    assert found.producers.value.tolist() == [1, 0]


def test_strata_with_one_point_are_undersampled_unless_complete() -> None:
    matrix, areas = equal_pixels(np.array([[8, 2], [0, 1]])), np.array([50.0, 1])
    assert undersampled_strata(matrix, areas).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"2 points, got \[10  1\]"):
        estimate_accuracy(matrix, areas)
    found = estimate_accuracy(matrix, areas, np.array([False, True]))
    assert found.area.value.tolist() == [40, 11]
    assert found.users.standard_error[1] == 0


# ----------------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("unequal", [False, True])
def test_confidence_interval_of_area_has_nominal_coverage(unequal: bool) -> None:
    """A map with an error rate of 1 in 8, sampled 2,000 times; pixels of equal size, or up to twice as large."""
    rng = np.random.default_rng(7)
    n = 40_000
    truth = (rng.random(n) < 0.15).astype(int)
    mapped = np.where(rng.random(n) < 0.12, rng.integers(0, 2, n), truth)
    size = np.linspace(1, 2, n) if unequal else np.ones(n)
    # More of the class where pixels are large, so that counting pixels would be wrong.
    truth = np.where(size > (1.5 if unequal else 0), truth | (rng.random(n) < 0.1), truth)
    areas = np.bincount(mapped, size, 2)
    true_area = size[truth == 1].sum()
    covered, means = 0, []
    strata = [np.flatnonzero(mapped == i) for i in range(2)]
    for _ in range(2000):
        chosen = np.concatenate([rng.choice(some, 200) for some in strata])
        found = estimate_accuracy(ErrorMatrix.from_points(mapped[chosen], truth[chosen], size[chosen], 2), areas)
        covered += abs(found.area.value[1] - true_area) <= found.area.margin[1]
        means.append(found.area.value[1])
    assert 0.92 <= covered / 2000 <= 0.98
    assert np.mean(means) == pytest.approx(true_area, rel=0.01)
    assert abs(areas[1] - true_area) > 0.03 * true_area, "the mapped area is wrong"


# ----------------------------------------------------------------------------------------------------------- allocation


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6).filter(any), st.integers(1, 2000), st.integers(2, 100))
def test_allocation_respects_minimum_pixels_and_total(pixels: list[int], points: int, least: int) -> None:
    there = np.array(pixels)
    weights = there / there.sum()
    sizes = allocate_points(weights, there, points, least)
    floors = np.minimum(least, there)
    assert (sizes <= there).all()
    assert (sizes >= floors).all()
    assert sizes.sum() == min(max(points, floors.sum()), there.sum())
    larger = there[:, None] > there
    assert (sizes[:, None] >= sizes)[larger].all(), "larger strata never get fewer points"


def test_points_of_a_small_stratum_are_redistributed() -> None:
    weights = np.array([0.5, 0.5])  # few pixels, large ones
    assert allocate_points(weights, np.array([10, 10_000]), 100, 5).tolist() == [10, 90]


@given(st.lists(st.lists(st.integers(1, 50), min_size=9, max_size=9), min_size=2, max_size=6))
def test_areas_from_random_areas_are_those_of_equation_9(rows: list[list[int]]) -> None:
    """The pixels of the areas are the sample; labels are in rows there, in columns of an error matrix."""
    units = np.array(rows).reshape(-1, 3, 3)
    mapped = np.array([100.0, 0.0, 900.0])
    found = estimate_class_areas(units, mapped)
    expected = estimate_accuracy(equal_pixels(units.sum(axis=0).T), mapped).area.value
    np.testing.assert_allclose(found[:, 0], expected)
    assert (found[:, 1] <= found[:, 0] + 1e-9).all() and (found[:, 0] <= found[:, 2] + 1e-9).all()


def test_the_interval_over_random_areas_covers_the_true_area_as_often_as_it_says() -> None:
    """Random squares of a field of patches, with a map that is wrong in patches: pixels of a square are alike."""
    rng = np.random.default_rng(0)
    side, size, draws = 240, 20, 200
    rough = rng.normal(size=(side // 10, side // 10))
    truth = np.kron(rough, np.ones((10, 10))) > 0.3
    wrong = np.kron(rng.random((side // 15, side // 15)) < 0.2, np.ones((15, 15), bool))
    mapped = truth ^ wrong
    areas = np.array([(~mapped).sum(), mapped.sum()], float)
    inside = 0
    for _ in range(draws):
        corners = rng.integers(0, side - size + 1, (12, 2))
        squares = [(slice(row, row + size), slice(col, col + size)) for row, col in corners]
        units = np.stack([np.bincount((2 * truth[s] + mapped[s]).ravel(), minlength=4).reshape(2, 2) for s in squares])
        _, low, high = estimate_class_areas(units, areas)[1]
        inside += low <= truth.sum() <= high
    assert inside / draws > 0.88


def test_areas_are_unknown_where_a_class_is_mapped_but_in_no_random_area() -> None:
    units = np.array([[[5, 0], [1, 0]], [[6, 0], [0, 0]]])
    assert np.isnan(estimate_class_areas(units, np.array([9.0, 1.0]))).all()
    assert not np.isnan(estimate_class_areas(units, np.array([9.0, 0.0]))).any()
