"""Means, spreads and the smallest difference that seeds do not explain."""

import numpy as np
import pytest

from latentpt.compare.report.spread import estimate, smallest_difference


def test_an_estimate_of_one_seed_claims_no_spread():
    assert f"{estimate([3.25]):.3f}" == "3.250"
    assert f"{estimate([3.0, 3.5]):.2f}" == "3.25 ± 0.35"
    assert estimate([3.25]).error is None


def test_the_standard_error_is_that_of_the_mean():
    assert estimate([3.0, 3.5]).error == pytest.approx(0.25)


def test_one_seed_or_one_arm_gives_no_smallest_difference():
    assert smallest_difference(np.array([[3.0], [2.9]])) is None
    assert smallest_difference(np.array([[3.0, 2.9, 2.8]])) is None


def test_equal_arms_are_called_different_in_at_most_one_comparison_of_twenty():
    """Four arms without any difference, seeds that shift all arms together: 5 % over the three comparisons."""
    generator = np.random.default_rng(0)
    trials, wrong = 1500, 0
    for _ in range(trials):
        losses = generator.normal(size=(4, 3)) + 10 * generator.normal(size=(1, 3))
        means = losses.mean(1)
        wrong += bool((np.abs(means[1:] - means[0]) > smallest_difference(losses)).any())
    assert wrong / trials < 0.06


def test_a_difference_far_beyond_the_noise_is_found():
    generator = np.random.default_rng(1)
    losses = 0.01 * generator.normal(size=(3, 3)) + np.array([[3.0], [2.8], [3.0]])
    assert smallest_difference(losses) < 0.1
