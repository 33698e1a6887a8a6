"""The cheapest ways to a loss, and multipliers whose value is known."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from latentpt.compare.fits.frontier import Costs, frontier, least_cost, multipliers, size_exponent
from latentpt.compare.fits.isoflop import parabola

LAW = np.array([[np.log(1.2), np.log(40.0), 0.34, np.log(300.0), 0.37]])
SIZES = np.geomspace(1e5, 2e6, 5)
COSTS = Costs(SIZES, 6 * SIZES, 2 * SIZES)


def loss(n, d):
    return 1.2 + 40 * n**-0.34 + 300 * d**-0.37


def test_the_frontier_is_the_lowest_loss_over_sizes():
    found = frontier(LAW, COSTS, 1e13)
    best = minimize_scalar(
        lambda u: loss(np.exp(u), 1e13 / (6 * np.exp(u))), bounds=np.log([1e4, 1e7]), method="bounded"
    )
    assert found.loss[0] == pytest.approx(best.fun, rel=1e-5)
    assert found.parameters[0] == pytest.approx(np.exp(best.x), rel=0.03)


def test_the_least_cost_of_a_frontier_s_loss_is_its_budget():
    assert least_cost(LAW, COSTS, frontier(LAW, COSTS, 1e13).loss).cost[0] == pytest.approx(1e13, rel=1e-3)


def test_many_tokens_served_ask_for_a_smaller_model_that_is_trained_longer():
    at = frontier(LAW, COSTS, 1e13)
    trained, served = least_cost(LAW, COSTS, at.loss), least_cost(LAW, COSTS, at.loss, served=1e9)
    assert served.parameters[0] < 0.8 * trained.parameters[0]
    assert served.cost[0] < trained.cost[0] + 1e9 * trained.inference[0]


def test_a_loss_below_the_law_s_floor_is_never_reached():
    assert least_cost(LAW, COSTS, np.array([1.1])).cost[0] == np.inf


def test_an_arm_that_is_the_same_at_half_the_cost_is_worth_two_times():
    half = Costs(SIZES, 3 * SIZES, SIZES)
    found = multipliers(LAW, COSTS, LAW, half, 1e13, [1e9])
    for value in (found.training[0], found.inference[0], found.lifetime[1e9][0]):
        assert value == pytest.approx(2, rel=0.01)


def test_an_arm_whose_floor_is_lower_than_the_baseline_reaches_is_out_of_reach():
    better = LAW.copy()
    better[0, 0] = np.log(0.1)
    found = multipliers(LAW, COSTS, better, COSTS, 1e16, [1e9])
    assert found.training[0] == found.inference[0] == found.lifetime[1e9][0] == np.inf


def test_costs_between_and_beyond_sizes_follow_the_power_law_of_their_neighbours():
    found = COSTS.grid()
    assert found.training == pytest.approx(6 * found.parameters)
    assert found.parameters[0] < SIZES[0] / 3 and found.parameters[-1] > 3 * SIZES[-1]


def test_the_size_exponent_is_that_of_the_frontier():
    one, two = (frontier(LAW, COSTS, c).parameters[0] for c in (1e12, 1e14))
    assert np.log(two / one) / np.log(100) == pytest.approx(size_exponent(LAW)[0], abs=0.01)


def test_a_parabola_is_exact_for_parabolas_and_none_without_three_sizes():
    log_n = np.log(SIZES)
    found = parabola(SIZES, (2 + 0.1 * (log_n - 13) ** 2)[None])
    assert found.parameters[0] == pytest.approx(np.exp(13)) and found.loss[0] == pytest.approx(2)
    assert parabola(SIZES[:2], np.ones((1, 2))) is None
    assert np.isnan(parabola(SIZES, -((log_n - 13) ** 2)[None]).parameters[0])
