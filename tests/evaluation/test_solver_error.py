"""Errors of the solvers against exact decoding."""

import pytest
import torch

from latentpt.evaluation.solver_error import solver_errors, table
from tests.conftest import tiny_ids, tiny_model


def test_errors_shrink_with_every_sweep_and_gauss_seidel_leads_at_equal_passes():
    model = tiny_model(method="latent", num_thoughts=3, weights=1.0, dtype=torch.float64)
    errors = {e.solver: e for e in solver_errors(model, tiny_ids(2, 20), sweeps=3)}
    for solver in ("jacobi, K = {}", "strided 2, K = {}"):
        assert (
            errors[solver.format(3)].state < errors[solver.format(2)].state < errors[solver.format(1)].state
        )
    swept, refined = errors["gauss_seidel, 3 sweeps"], errors["jacobi, K = 1"]
    assert swept.passes < refined.passes and swept.state < refined.state
    assert all(e.divergence >= -1e-9 for e in errors.values())
    text = table(list(errors.values()), "nothing")
    assert all(name in text for name in errors) and "of the error" in text


@pytest.mark.parametrize(
    "thoughts", [{}, {"method": "latent", "num_thoughts": 1, "visibility": "stage_causal"}]
)
def test_a_method_that_is_exact_in_one_sweep_has_no_solver_to_compare(thoughts):
    with pytest.raises(ValueError, match="exact in one sweep"):
        solver_errors(tiny_model(**thoughts), tiny_ids())


@pytest.mark.parametrize("method", ["lrt", "t2mlr"])
def test_sweeps_of_a_carried_state_come_nearer_to_decoding_and_each_solver_is_named_once(method):
    model = tiny_model(method=method, size={"num_layers": 3}, weights=0.5)
    errors = {e.solver: e.state for e in solver_errors(model, tiny_ids(2, 20), sweeps=8)}
    assert (
        errors["jacobi, K = 8"] < errors["jacobi, K = 4"] < errors["jacobi, K = 1"] < errors["jacobi, K = 0"]
    )
    assert errors["strided 2, K = 4"] < errors["jacobi, K = 4"]
    assert not any("sweeps" in solver for solver in errors)
