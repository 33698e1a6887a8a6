"""Reading prompts: tolerances, and what is refused; test_equalities.py holds the exact solvers to equality."""

import pytest

from latentpt.generation.decode import Session, generate
from latentpt.generation.prefill import Prefill
from tests.conftest import tiny_ids, tiny_model

CAUSAL = {"method": "latent", "num_thoughts": 2}


@pytest.mark.parametrize("solver", ["gauss_seidel", "jacobi"])
def test_a_smaller_tolerance_comes_nearer_to_the_exact_states(solver):
    model, ids = tiny_model("pythia", weights=1.0, **CAUSAL), tiny_ids(2, 12)
    exact = Session(model, 2, 12).extend(ids)
    errors = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        found = Session(model, 2, 12).extend(ids, Prefill(solver, tolerance))
        errors.append((found - exact).abs().max().item())
    assert errors[0] > errors[2] and errors[1] < 1e-2 and errors[2] < 1e-5


def test_decoding_goes_on_from_any_prefill():
    model = tiny_model("llama", weights=1.0, **CAUSAL)
    prompts = [[3, 1, 4, 1, 5, 9, 2], [2, 7, 1]]
    expected = generate(model, prompts, 6)
    for prefill in (Prefill("jacobi", 1e-9), Prefill("gauss_seidel", 1e-9, chunk=2), Prefill("sequential")):
        assert generate(model, prompts, 6, prefill=prefill) == expected


@pytest.mark.parametrize(
    "options, said",
    [
        ({"solver": "jakobi"}, "prefill solver jakobi is unknown; the nearest is jacobi"),
        ({"tolerance": -1.0}, "tolerance must be 0 or more"),
        ({"max_sweeps": 1}, "max_sweeps must be at least 2"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Prefill(**options)


def test_more_positions_than_a_learned_table_has_are_refused():
    with pytest.raises(ValueError, match=r"65 tokens do not fit model.max_positions = 64"):
        generate(tiny_model("gpt2"), [[1] * 60], 6)
