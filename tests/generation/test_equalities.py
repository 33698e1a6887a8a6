"""However a prompt is cut, padded, batched and solved, exact decoding is one thing: all methods, all families."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from latentpt.generation.decode import Session, generate, unpadded
from latentpt.generation.prefill import Prefill
from latentpt.hub import from_hf
from latentpt.thoughts.registry import METHODS
from latentpt.thoughts.schedule import sequential
from tests.conftest import tiny_ids
from tests.generation.conftest import KINDS

SOLVERS = ("exact", "sequential", "gauss_seidel", "jacobi")
GOLDENS = Path(__file__).parents[1] / "goldens" / "pretraining"

few = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
prefills = st.builds(
    Prefill,
    solver=st.sampled_from(SOLVERS),
    tolerance=st.just(0.0),
    max_sweeps=st.just(40),
    chunk=st.none() | st.integers(1, 5),
)


def exact_logits(model, ids):
    """Logits [B, L, V] of the full forward by the sequential solver."""
    return model(ids, schedule=sequential(model.method.slots)).logits


def test_the_kinds_hold_every_method():
    assert {kind["method"] for kind in KINDS} == set(METHODS)


@few
@given(length=st.integers(1, 8), cuts=st.lists(st.integers(1, 7), max_size=3), prefill=prefills)
def test_any_cutting_and_solver_gives_the_logits_of_the_full_forward(model, length, cuts, prefill):
    """Pieces of one token and of many, one after another in one session."""
    ids = tiny_ids(2, length)
    session = Session(model, 2, length)
    borders = [0, *sorted({cut for cut in cuts if cut < length}), length]
    pieces = [session.extend(ids[:, a:b], prefill) for a, b in itertools.pairwise(borders)]
    logits = model.decoder.head(torch.cat(pieces, dim=1))
    torch.testing.assert_close(logits, exact_logits(model, ids), atol=1e-9, rtol=0)


@few
@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    left=st.booleans(),
    extra=st.integers(0, 2),
    prefill=prefills,
)
def test_padded_batches_say_what_each_prompt_says_alone_and_the_full_forward(
    model, lengths, left, extra, prefill
):
    prompts = [tiny_ids(1, n, seed=n)[0].tolist() for n in lengths]
    width = max(lengths) + extra
    ids, mask = torch.full((len(prompts), width), 36), torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), True
    together = generate(model, unpadded(ids, mask), 3, prefill=prefill)
    assert together == [generate(model, [prompt], 3)[0] for prompt in prompts]
    for prompt, found in zip(prompts, together, strict=True):
        read = torch.tensor([[*prompt, *found[:-1]]])
        assert found == exact_logits(model, read)[0, len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("name", ["llama-latent-n1-k3", "llama-latent-n2-k2", "llama-latent-n3-k1"])
def test_cached_decoding_equals_that_of_the_published_code(name):
    entries = {entry["file"]: entry for entry in json.loads((GOLDENS / "index.json").read_text())}
    entry, tensors = entries[f"{name}.safetensors"], load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.removeprefix("param."): v for key, v in tensors.items() if key.startswith("param.")}
    thoughts = {"method": "latent", "num_thoughts": entry["num_latent_thoughts"]}
    model = from_hf({"model_type": entry["arch"], **entry["config"]}, weights, thoughts)
    ids = tensors["input_ids"]
    for prefill in (Prefill(), Prefill("gauss_seidel", 1e-7, 60), Prefill("jacobi", 1e-7, 60, chunk=4)):
        hidden = Session(model, *ids.shape).extend(ids, prefill)
        logits = model.decoder.head(hidden)
        torch.testing.assert_close(logits, tensors["sequential_logits"], atol=1e-4, rtol=0)
