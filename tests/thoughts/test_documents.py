"""Documents kept apart: a packed row gives what its documents give alone."""

import pytest
import torch

from latentpt.thoughts.documents import document_ids, document_positions
from latentpt.thoughts.registry import METHODS
from tests.conftest import thinking, tiny_ids, tiny_model

END = 36
SOLVERS = {
    "jacobi": {"refinements": 2},
    "gauss_seidel": {"solver": "gauss_seidel", "refinements": 1},
    "strided": {"solver": "strided", "stride": 3, "refinements": 9},
    "stage_causal": {"visibility": "stage_causal"},
    "sequential": {"solver": "sequential"},
    "chunked": {"visibility": "stage_causal", "chunk": 4},
}


def packed_row(lengths, seed=0):
    """One row of documents of the lengths given, each but the first opened by the end token, and their slices."""
    parts, slices, start = [], [], 0
    for index, length in enumerate(lengths):
        document = tiny_ids(1, length, vocab=END, seed=seed + index)[0]
        if index:
            document[0] = END
        parts.append(document)
        slices.append(slice(start, start + length))
        start += length
    return torch.cat(parts)[None], slices


def check(model, lengths=(4, 1, 6)):
    row, slices = packed_row(lengths)
    packed = model(row, documents=document_ids(row, END)).logits
    for part in slices:
        torch.testing.assert_close(packed[:, part], model(row[:, part]).logits, atol=1e-10, rtol=0)
    assert (packed - model(row).logits).abs().max() > 1e-6  # without it, documents see one another


def test_the_end_of_document_token_opens_the_next_document_and_positions_restart_with_it():
    tokens = torch.tensor([[5, 6, 0, 7, 0, 0, 8, 9], [0, 1, 2, 3, 4, 5, 6, 0]])
    documents = document_ids(tokens, eod_id=0)
    assert documents.tolist() == [[0, 0, 1, 1, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 1, 2]]
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 0]]


@pytest.mark.parametrize("solver", SOLVERS)
def test_packed_documents_equal_single_ones_by_every_solver(family, solver):
    check(tiny_model(family, method="latent", num_thoughts=2, **SOLVERS[solver]))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "latent"])
def test_packed_documents_equal_single_ones_by_every_method(method):
    check(tiny_model("pythia", refinements=1, **thinking(method)))


def test_gradients_do_not_cross_documents():
    model = tiny_model(method="latent", num_thoughts=1, refinements=2)
    row, slices = packed_row((4, 5))
    hidden = model.think(row, documents=document_ids(row, END))
    hidden[:, slices[1]].sum().backward()
    only_first = sorted(set(row[0, slices[0]].tolist()) - set(row[0, slices[1]].tolist()))
    assert only_first and model.decoder.embedding.weight.grad[only_first].abs().max() == 0
