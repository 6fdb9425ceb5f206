"""The statistics of a few seeds, against scipy, against hand, and against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imgnet.results import statistics

FINITE = st.floats(-1e3, 1e3)


@pytest.mark.parametrize("values", [[97.0, 98.0], [98.61, 98.06, 98.89], [12.3, 11.8, 12.9, 12.1, 12.6]])
def test_the_interval_is_students(values: list[float]) -> None:
    found = statistics.estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high), rel=1e-12)
    assert found.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_the_interval_of_three_by_hand() -> None:
    """1, 2, 3: deviation 1, standard error 1/sqrt(3), and 4.3027 is the quantile of two degrees of freedom."""
    found = statistics.estimate([1.0, 2.0, 3.0])
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize("values", [[75.0], [0.1, 0.1, 0.1]])  # 3 * 0.1 / 3 is not 0.1
def test_values_that_do_not_spread_have_no_interval(values: list[float]) -> None:
    found = statistics.estimate(values)
    assert found.mean == pytest.approx(values[0])
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_what_is_no_finite_number_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers are needed"):
        statistics.estimate(values)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_of_2000_studies_the_interval_holds_the_truth_in_95_percent(num_seeds: int) -> None:
    studies = np.random.default_rng(num_seeds).normal(76.0, 0.2, size=(2000, num_seeds))
    intervals = [statistics.estimate(study) for study in studies]
    share = np.mean([interval.low <= 76.0 <= interval.high for interval in intervals])
    assert 0.94 <= share <= 0.96


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_so_does_the_interval_of_a_paired_difference(num_seeds: int) -> None:
    """A seed moves both by far more than they differ in, which an unpaired interval would take for doubt."""
    draw = np.random.default_rng(100 + num_seeds)
    of_seed = draw.normal(76.0, 2.0, size=(2000, num_seeds))
    ours, baseline = of_seed + draw.normal(0.3, 0.1, of_seed.shape), of_seed + draw.normal(0.0, 0.1, of_seed.shape)
    found = [statistics.paired_difference(*pair).estimate for pair in zip(ours, baseline, strict=True)]
    assert 0.94 <= np.mean([one.low <= 0.3 <= one.high for one in found]) <= 0.96
    assert max(one.half_width for one in found) < 2.0


def test_a_paired_difference_is_scipys_paired_test() -> None:
    ours, baseline = [76.1, 76.4, 75.9, 76.3], [75.8, 76.2, 75.9, 75.7]
    found = statistics.paired_difference(ours, baseline)
    wanted = stats.ttest_rel(ours, baseline)
    interval = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-8)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high), rel=1e-8)


@pytest.mark.parametrize("images", [0, 1])
def test_differences_that_are_equal_but_for_rounding_have_no_p(images: int) -> None:
    """Three seeds, each better by one of 360 images: the quotients differ in their last digits."""
    baseline = [100 * correct / 360 for correct in (351, 353, 357)]
    ours = [100 * (correct + images) / 360 for correct in (351, 353, 357)]
    found = statistics.paired_difference(ours, baseline)
    assert found.estimate.mean == pytest.approx(images / 3.6)
    assert math.isnan(found.p)
    assert math.isnan(found.estimate.low)


def test_a_ratio_is_one_of_logarithms() -> None:
    found = statistics.paired_ratio([2.0, 8.0], [1.0, 1.0])
    assert found.mean == pytest.approx(4.0)  # the geometric mean
    logs = np.log([2.0, 8.0])
    assert (found.low, found.high) == pytest.approx(np.exp(stats.t.interval(0.95, 1, logs.mean(), stats.sem(logs))))


def test_holm_by_hand() -> None:
    """0.01 of four, 0.02 of three, 0.03 of two is less than what stands before it, 0.04 of one likewise."""
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([0.3]) == [0.3]


def test_what_was_not_tested_is_no_comparison() -> None:
    adjusted = statistics.holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    for p, of_holm in zip(p_values, adjusted, strict=True):
        assert p <= of_holm <= min(1.0, len(p_values) * p)
    assert [adjusted[index] for index in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def test_the_binomial_error_of_imagenet_and_of_the_digits() -> None:
    assert statistics.binomial_deviation(76.0, 50_000) == pytest.approx(0.191, abs=5e-4)
    assert statistics.binomial_deviation(98.6, 360) == pytest.approx(0.619, abs=5e-4)
    drawn = np.random.default_rng(0).binomial(50_000, 0.76, size=20_000) / 500
    assert statistics.binomial_deviation(76.0, 50_000) == pytest.approx(drawn.std(), rel=0.02)


def test_time_to_a_target_is_the_first_evaluation_that_reaches_it() -> None:
    times, accuracies = [10.0, 20.0, 30.0, 40.0], [50.0, math.nan, 75.0, 74.0]
    assert statistics.time_to(75.0, times, accuracies) == 30.0
    assert statistics.time_to(10.0, times, accuracies) == 10.0
    assert statistics.time_to(75.1, times, accuracies) == math.inf
    assert statistics.time_to(1.0, [], []) == math.inf


def curve(x: list[float], y: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(x, dtype=float), np.array(y, dtype=float)


def test_curves_are_interpolated_inside_their_common_range_only() -> None:
    places, values = statistics.on_common_range([curve([0, 2, 4], [0, 20, 40]), curve([1, 3, 5], [1, 3, 5])])
    assert places.tolist() == [1, 2, 3, 4]
    assert values.tolist() == [[10, 20, 30, 40], [1, 2, 3, 4]]


def test_without_a_common_range_there_is_nothing() -> None:
    places, values = statistics.on_common_range([curve([0, 1], [0, 1]), curve([2, 3], [0, 1])])
    assert len(places) == 0
    assert values.shape == (2, 0)


@given(
    st.lists(st.lists(FINITE, min_size=2, max_size=30, unique=True).map(sorted), min_size=1, max_size=5),
    st.integers(2, 40),
)
def test_interpolation_keeps_within_range_and_points(xs: list[list[float]], most_points: int) -> None:
    """Of y = x every interpolation is exact, whatever the places."""
    curves = [curve(x, x) for x in xs]
    places, values = statistics.on_common_range(curves, most_points)
    assert len(places) <= most_points
    for x, row in zip(xs, values, strict=True):
        np.testing.assert_allclose(row, places, atol=1e-9)
        assert all(x[0] <= place <= x[-1] for place in places)


def test_bands_are_the_intervals_of_each_place() -> None:
    values = np.random.default_rng(3).normal(size=(4, 6))
    mean, low, high = statistics.interval_of_columns(values)
    for place in range(values.shape[1]):
        one = statistics.estimate(values[:, place])
        assert (mean[place], low[place], high[place]) == pytest.approx((one.mean, one.low, one.high))
    assert np.isnan(statistics.interval_of_columns(values[:1])[1]).all()


def test_the_front_is_what_nobody_beats() -> None:
    costs, gains = [3.0, 1.0, 2.0, 2.0, 4.0], [80.0, 70.0, 60.0, 75.0, 80.0]
    assert statistics.pareto_front(costs, gains) == [1, 3, 0]
    assert statistics.pareto_front([], []) == []
