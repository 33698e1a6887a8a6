"""Documents inside a sample."""

from __future__ import annotations

import torch

from latentpt.data.masking import document_ids
from latentpt.thoughts.documents import document_positions


def test_the_end_of_document_token_belongs_to_the_document_it_ends_and_positions_restart_after_it() -> None:
    tokens = torch.tensor([[5, 6, 0, 7, 0, 0, 8, 9], [0, 1, 2, 3, 4, 5, 6, 0]])
    documents = document_ids(tokens, eod_id=0)
    assert documents.tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]]
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
