"""Paired differences: what is shared cancels, and the margin holds at its rate."""

import numpy as np
import pytest

from latentpt.compare.fits.paired import paired, seed_deviation


def test_only_shared_sizes_and_seeds_count():
    base = {(2, 0): 3.0, (2, 1): 3.2, (3, 0): 2.5}
    arm = {(2, 0): 2.9, (2, 1): 3.0, (4, 0): 9.0}
    found = paired(base, arm)
    assert found.mean == pytest.approx(-0.15) and (found.sizes, found.seeds, found.freedom) == (1, 2, 1)
    assert paired(base, {(9, 9): 1.0}) is None


def test_one_seed_says_nothing_of_the_spread():
    found = paired({(2, 0): 3.0, (3, 0): 2.0}, {(2, 0): 2.0, (3, 0): 2.0})
    assert found.mean == -0.5 and found.error is None and found.margin(0.9) is None
    assert seed_deviation({(2, 0): 3.0, (3, 0): 2.0}) is None


def test_margins_hold_the_truth_at_their_rate_whatever_seeds_and_sizes_share():
    generator, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        seeds, sizes = generator.normal(size=3), {2: 3.0, 3: 2.5, 5: 2.2}
        base = {(n, s): level + 5 * seeds[s] for n, level in sizes.items() for s in range(3)}
        arm = {(n, s): x - 0.02 * n + 0.01 * generator.normal() for (n, s), x in base.items()}
        found = paired(base, arm)
        hits += abs(found.mean + 0.02 * np.mean([*sizes])) <= found.margin(0.9)
    assert 0.88 <= hits / 2000 <= 0.92
