"""Intervals cover the truth at their rate, for laws that are known."""

import numpy as np
import pytest

from latentpt.compare.fits.draws import bootstrap, interval, signs
from latentpt.compare.fits.frontier import Costs, multipliers, size_exponent
from latentpt.compare.fits.law import ALPHA, BETA, Design, fit_law, log_loss

TRIALS, DRAWS = 200, 200
SIZES, BUDGETS, SEEDS = np.geomspace(1e5, 2e6, 5), np.geomspace(2e12, 6.4e13, 4), 2
LAWS = {
    "vanilla": np.array([0.0, np.log(40.0), 0.36, np.log(250.0), 0.38]),
    "thought": np.array([0.0, np.log(30.0), 0.36, np.log(250.0), 0.38]),
}
FLOPS = {"vanilla": 6.0, "thought": 12.0}  # of training for each parameter and token
COSTS = {name: Costs(SIZES, SIZES * flops, SIZES * flops / 3) for name, flops in FLOPS.items()}
SERVED = 1e10


def ladder(flops):
    """Sizes, tokens and the number of each run's block, which runs of other arms share."""
    runs = [
        (n, c / (flops * n), block)
        for block, (c, n, _) in enumerate((c, n, s) for c in BUDGETS for n in SIZES for s in range(SEEDS))
        if 3 <= c / (flops * n) / n <= 600
    ]
    n, d, block = (np.array(column) for column in zip(*runs, strict=True))
    return Design.plain(n, d), block


def figures(theta):
    """What is claimed of laws [k, p] of both arms."""
    found = multipliers(
        theta["vanilla"], COSTS["vanilla"], theta["thought"], COSTS["thought"], BUDGETS[-1], [SERVED]
    )
    return {
        "a": theta["vanilla"][:, ALPHA],
        "b": theta["vanilla"][:, BETA],
        "a of the thought": theta["thought"][:, ALPHA],
        "b of the thought": theta["thought"][:, BETA],
        "size exponent": size_exponent(theta["vanilla"]),
        "training multiplier": found.training,
        "inference multiplier": found.inference,
        "lifetime multiplier": found.lifetime[SERVED],
    }


@pytest.mark.slow
def test_the_truth_lies_in_90_percent_intervals_in_85_to_95_of_100_draws():
    """Half of the noise is shared by the two arms' runs of the same size, budget and seed."""
    designs = {name: ladder(flops) for name, flops in FLOPS.items()}
    truth = figures({name: law[None] for name, law in LAWS.items()})
    blocks = 1 + max(block.max() for _, block in designs.values())
    covered = dict.fromkeys(truth, 0)
    for trial in range(TRIALS):
        generator = np.random.default_rng(trial)
        shared, sign = generator.normal(size=blocks), signs(np.arange(blocks), DRAWS, generator)
        one, many = {}, {}
        for name, (design, block) in designs.items():
            noise = 0.003 * (shared + generator.normal(size=blocks))[block]
            fit = fit_law(design, np.exp(log_loss(LAWS[name][None], design)[0] + noise))
            one[name], many[name] = fit.theta[None], bootstrap(fit, sign[:, block])
        values, drawn = figures(one), figures(many)
        for key, true in truth.items():
            found = interval(float(values[key][0]), drawn[key])
            covered[key] += found.low <= true[0] <= found.high
    rates = {key: count / TRIALS for key, count in covered.items()}
    assert all(0.85 <= rate <= 0.95 for rate in rates.values()), rates


def test_signs_are_shared_in_a_block_and_nowhere_else():
    drawn = signs(np.array([0, 1, 0, 2]), 500, np.random.default_rng(0))
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert abs((drawn[:, 0] * drawn[:, 1]).mean()) < 0.15


def test_draws_that_never_reach_the_loss_count_as_larger_than_all_others():
    draws = np.concatenate([np.linspace(1, 2, 89), np.full(11, np.inf)])
    found = interval(1.5, draws)
    assert found.low < 1.1 and found.high == np.inf
