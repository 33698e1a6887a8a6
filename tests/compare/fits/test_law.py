"""Laws that are known are found again, and the solver finds what scipy finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from latentpt.compare.fits.law import Design, fit_law, jacobian, log_loss, solve
from latentpt.compare.fits.projection import project

LAW = np.array([np.log(1.2), np.log(40.0), 0.34, np.log(300.0), 0.37])


def grid(sizes=5, budgets=4, times=1.0):
    """A ladder: sizes x budgets, FLOPs of 6 N D."""
    n = np.tile(np.geomspace(1e5, 2e6, sizes), budgets)
    d = np.repeat(np.geomspace(2e12, 6e13, budgets), sizes) / (6 * times * n)
    return n, d


def losses(theta, design, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    return np.exp(log_loss(theta[None], design)[0] + noise * generator.normal(size=len(design.tokens)))


@settings(max_examples=25, deadline=None)
@given(
    e=st.floats(0.5, 2.0),
    a=st.floats(0.25, 0.6),
    b=st.floats(0.25, 0.6),
    at=st.floats(0.3, 1.0),
    bt=st.floats(0.3, 1.0),
)
def test_a_law_without_noise_is_found_exactly(e, a, b, at, bt):
    """`at` and `bt` are what the two terms are in the middle of the ladder."""
    n, d = grid()
    theta = np.array([np.log(e), np.log(at) + a * np.log(4e5), a, np.log(bt) + b * np.log(5e6), b])
    design = Design.plain(n, d)
    found = fit_law(design, losses(theta, design))
    assert found.theta == pytest.approx(theta, rel=1e-3, abs=2e-3)
    assert project(n, d, losses(theta, design)) == pytest.approx(theta, rel=0.02, abs=0.02)


def test_the_slopes_are_the_derivatives():
    n, d = grid()
    design = Design(0.3 * n, 0.7 * n, np.tile([1.0, 2.0], len(n) // 2), d)
    theta = np.array([[*LAW, 0.4]])
    _, slopes = jacobian(theta, design)
    for k in range(6):
        step = np.zeros_like(theta)
        step[0, k] = 1e-6
        numeric = (log_loss(theta + step, design) - log_loss(theta - step, design)) / 2e-6
        assert slopes[..., k] == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_that_of_scipy(seed):
    design = Design.plain(*grid())
    measured = losses(LAW, design, noise=0.01, seed=seed)
    found = solve(LAW[None], design, measured, delta=0.008)[0]
    theirs = least_squares(
        lambda theta: log_loss(theta[None], design)[0] - np.log(measured), LAW, loss="huber", f_scale=0.008,
        x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=2000,
    )  # fmt: skip

    def objective(theta):
        size = np.abs(log_loss(theta[None], design)[0] - np.log(measured))
        return np.where(size < 0.008, size**2 / 2, 0.008 * (size - 0.004)).sum()

    assert objective(found) <= objective(theirs.x) * (1 + 1e-6)


def test_rows_are_solved_together_as_one_by_one():
    design = Design.plain(*grid())
    rows = np.stack([losses(LAW, design, noise=0.01, seed=seed) for seed in range(4)])
    together = solve(np.tile(LAW, (4, 1)), design, rows, delta=0.01)
    alone = [solve(LAW[None], design, row, delta=0.01)[0] for row in rows]
    assert together == pytest.approx(np.stack(alone), rel=1e-6)


def test_one_run_gone_wrong_moves_the_law_little():
    design = Design.plain(*grid(5, 5))
    clean = losses(LAW, design, noise=0.003)
    wrong = clean.copy()
    wrong[7] *= 1.3
    assert fit_law(design, wrong).theta[[2, 4]] == pytest.approx(
        fit_law(design, clean).theta[[2, 4]], abs=0.06
    )


@pytest.mark.parametrize("phi", [0.0, 0.46, 1.0])
def test_the_recurrence_exponent_is_found(phi):
    n, d = grid()
    design = Design(np.tile(0.1 * n, 2), np.tile(0.9 * n, 2), np.repeat([1.0, 2.0], len(n)), np.tile(d, 2))
    found = fit_law(design, losses(np.array([*LAW, phi]), design), recurrence=True)
    assert found.theta[5] == pytest.approx(phi, abs=1e-3)


def test_too_few_runs_or_sizes_give_no_law():
    n, d = grid(2, 4)
    assert fit_law(Design.plain(n, d), np.linspace(3, 2, len(n))) is None
    n, d = grid(3, 1)
    assert fit_law(Design.plain(n, d), np.array([3.0, 2.0, 2.5])) is None


def test_no_recurrence_exponent_is_fitted_where_all_repeat_equally_often():
    n, d = grid()
    design = Design(0 * n, n, np.full(len(n), 2.0), d)
    assert fit_law(design, losses(np.array([*LAW, 0.5]), design), recurrence=True) is None
