"""Means, their errors, and the intervals that chance explains."""

import math

import numpy as np
import pytest

from latentpt.intervals import Mean, digits_of, mean_of, ratio_of, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (100, 1.984)]
)
def test_student_quantiles_are_those_of_printed_tables(freedom, quantile):
    assert student_quantile(0.95, freedom) == pytest.approx(quantile, abs=1e-3)


def test_the_error_of_a_mean_is_its_deviation_over_the_root_of_the_items():
    values = [3.0, 4.0, 8.0, 1.0]
    found = mean_of(values)
    assert found.value == 4.0 and found.items == 4
    assert found.error == pytest.approx(np.std(values, ddof=1) / 2)
    half = 3.1824 * found.error  # printed: t of 3 degrees at 95 %
    assert found.interval == pytest.approx((4 - half, 4 + half), abs=1e-3)


def test_the_error_of_a_ratio_is_what_drawing_the_items_again_gives():
    chance = np.random.default_rng(0)
    counts = chance.integers(1, 20, 300)
    sums = 2.5 * counts + chance.normal(0, 2, 300) * np.sqrt(counts)
    found = ratio_of(sums, counts)
    draws = chance.integers(0, 300, (4000, 300))
    again = sums[draws].sum(1) / counts[draws].sum(1)
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    assert found.error == pytest.approx(again.std(), rel=0.1)


def test_a_single_item_says_nothing_about_chance():
    found = mean_of([2.0])
    assert found.error is None and found.interval == (-math.inf, math.inf) and f"{found}" == "2.0000"


def test_figures_are_written_as_finely_as_their_error_allows():
    assert f"{Mean(0.4123, 0.021, 9)}" == "0.412 ± 0.021" and f"{Mean(1.5, 0.3, 9):+}" == "+1.50 ± 0.30"
    assert [digits_of(error) for error in (30.0, 0.02, 2e-4, 1e-9, 0.0, None)] == [2, 3, 5, 6, 4, 4]
