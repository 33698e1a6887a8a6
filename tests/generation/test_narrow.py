"""Matrices in fewer bits than their input: the numbers are those of the widened matrix."""

import copy

import pytest
import torch

from latentpt.generation import narrow as rooms
from latentpt.generation.decode import generate
from latentpt.generation.narrow import FEW_ROWS, narrow_matrices
from latentpt.modeling.linear import Linear, linear
from tests.conftest import tiny_ids, tiny_model


@pytest.fixture(
    params=[pytest.param(True, marks=pytest.mark.slow, id="compiled"), pytest.param(False, id="plain")]
)
def compiling(request, monkeypatch):
    """The product of few rows, compiled or not."""
    if not request.param:
        monkeypatch.setattr(rooms, "_compiled", lambda rows: rooms._products)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_a_narrow_matrix_gives_the_product_of_its_widened_form(compiling, rows, monkeypatch):
    layer = Linear(48, 70)
    x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(0))
    narrow_matrices(layer, torch.bfloat16)
    expected = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    calls, used = [], rooms.few_rows
    monkeypatch.setattr(rooms, "few_rows", lambda *given: calls.append(rows) or used(*given))
    found = layer(x)
    assert found.dtype == torch.float32 and calls == [rows] * (rows <= FEW_ROWS)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear(x, layer.weight, layer.bias), found)


@torch.no_grad()
def test_gradients_flow_where_they_are_wanted():
    with torch.enable_grad():
        x = torch.randn(2, 8, requires_grad=True)
        linear(x, torch.ones(3, 8).bfloat16()).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 8), 3.0))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["vanilla", "latent", "loop", "ponder", "pause"])
def test_matrices_in_bf16_decode_the_tokens_of_the_same_numbers_in_float32(family, method, tied, monkeypatch):
    monkeypatch.setattr(rooms, "_compiled", lambda rows: rooms._products)
    thoughts = {"method": method, "num_thoughts": int(method != "vanilla")}
    if method == "pause":
        thoughts["pause_token"] = 36
    model = tiny_model(family, torch.float32, size={"tie_embeddings": tied}, **thoughts)
    model = model.to(torch.bfloat16).to(torch.float32)
    narrow = copy.deepcopy(model)
    narrow_matrices(narrow, torch.bfloat16)
    assert narrow.decoder.head.weight.dtype == torch.bfloat16
    assert narrow.decoder.embedding.weight.dtype == torch.float32
    prompts = tiny_ids(2, 5).tolist()
    assert generate(narrow, prompts, 8) == generate(model, prompts, 8)


def test_without_a_compiler_the_product_is_the_plain_one_and_says_so(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    rooms._compiled.cache_clear()
    with pytest.warns(UserWarning, match="no C"):
        assert rooms._compiled(1) is rooms._products
    rooms._compiled.cache_clear()


def test_generation_takes_the_fast_product_for_every_matrix_outside_of_no_grad_too(monkeypatch):
    model = tiny_model(dtype=torch.float32, method="latent", num_thoughts=1)
    narrow_matrices(model, torch.bfloat16)
    rows, used = [], rooms._products
    monkeypatch.setattr(
        rooms, "_compiled", lambda _: lambda weight, *x: rows.append(len(weight)) or used(weight, *x)
    )
    generate(model, [[1, 2], [3, 4]], 3)
    assert rows.count(model.config.vocab_size) == 3  # the head, once a token
