"""Reading prompts: every solver that is exact equals decoding token by token, whatever the cut."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpt.generation.decode import Session, generate, unpadded
from latentpt.generation.prefill import Prefill
from latentpt.thoughts.schedule import sequential
from tests.conftest import tiny_ids, tiny_model

CAUSAL = {"method": "latent", "num_thoughts": 2}
KINDS = [
    CAUSAL,
    {**CAUSAL, "visibility": "stage_causal"},
    {"method": "vanilla"},
    {"method": "loop", "num_thoughts": 1},
    {"method": "pause", "num_thoughts": 2},
    {"method": "sequential_hidden_decoding", "num_thoughts": 1},
    {"method": "latent_mixture", "num_thoughts": 1},
]
MODELS = {}


def model_of(number):
    """A model of each kind, made once, the families in turn."""
    if number not in MODELS:
        MODELS[number] = tiny_model(("pythia", "llama", "gpt2")[number % 3], **KINDS[number])
    return MODELS[number]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    number=st.integers(0, len(KINDS) - 1),
    length=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 8), max_size=3),
    chunk=st.none() | st.integers(1, 5),
    solver=st.sampled_from(["exact", "sequential", "gauss_seidel", "jacobi"]),
)
def test_any_cutting_and_solver_gives_the_states_of_the_exact_forward(number, length, cuts, chunk, solver):
    model, ids = model_of(number), tiny_ids(2, length)
    prefill = Prefill(solver, tolerance=0.0, max_sweeps=length * 3 + 1, chunk=chunk)
    session = Session(model, 2, length)
    borders = [0, *sorted({cut for cut in cuts if cut < length}), length]
    pieces = [session.extend(ids[:, a:b], prefill) for a, b in itertools.pairwise(borders)]
    logits = model.decoder.head(torch.cat(pieces, dim=1))
    expected = model(ids, schedule=sequential(model.method.slots)).logits
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)


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


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), left=st.booleans(), extra=st.integers(0, 2)
)
def test_padding_on_either_side_changes_nothing(lengths, left, extra):
    prompts = [tiny_ids(1, n, seed=n)[0].tolist() for n in lengths]
    width = max(lengths) + extra
    blanks = [[36] * (width - len(prompt)) for prompt in prompts]
    rows = [b + p if left else p + b for p, b in zip(prompts, blanks, strict=True)]
    mask = [
        [0] * len(b) + [1] * len(p) if left else [1] * len(p) + [0] * len(b)
        for p, b in zip(prompts, blanks, strict=True)
    ]
    assert unpadded(torch.tensor(rows), torch.tensor(mask)) == prompts
    model = model_of(0)
    assert generate(model, prompts, 3) == [generate(model, [prompt], 3)[0] for prompt in prompts]


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
