"""Looking at thoughts."""

import json

import pytest
import torch

from latentpt.data.tokenizer import load_tokenizer
from latentpt.generation.look import look, records, table
from latentpt.thoughts.schedule import sequential
from tests.conftest import tiny_model
from tests.folders import BYTES_VOCAB, write_tokenizer


def test_the_last_slot_leans_to_what_the_model_predicts():
    model = tiny_model("llama", method="latent", num_thoughts=2)
    ids = [3, 1, 4, 1, 5]
    thoughts = look(model, ids, top=3)
    assert [(t.position, t.slot) for t in thoughts] == [(p, s) for p in range(5) for s in range(3)]
    p = model(torch.tensor([ids]), schedule=sequential(3)).logits[0].softmax(-1)
    for position in range(5):
        best = thoughts[3 * position + 2].likeliest
        assert [token for token, _ in best] == p[position].topk(3).indices.tolist()
        torch.testing.assert_close(
            torch.tensor([value for _, value in best]), p[position].topk(3).values.float()
        )
        norm = model.think(torch.tensor([ids]), sequential(3))[0, position].norm()
        assert thoughts[3 * position + 2].norm == pytest.approx(norm.item())


def test_the_table_names_tokens_and_slots(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    model = tiny_model(size={"vocab_size": BYTES_VOCAB + 3}, method="latent", num_thoughts=1)
    ids = tokenizer.encode("a b")
    lines = table(look(model, ids, 2), ids, tokenizer).split("\n")
    assert len(lines) == 9
    assert lines[3].split() == ["1", "'", "'"] and lines[1].strip().startswith("slot 0: |h| ")


def test_thoughts_are_written_as_json_even_for_rows_without_a_text(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    model = tiny_model(size={"vocab_size": BYTES_VOCAB + 3}, method="latent", num_thoughts=1)
    ids = tokenizer.encode("ab")
    found = records(look(model, ids, BYTES_VOCAB + 3), ids, tokenizer)
    assert [(r["position"], r["token"], r["slot"]) for r in found] == [
        (0, "a", 0), (0, "a", 1), (1, "b", 0), (1, "b", 1),
    ]  # fmt: skip
    assert f"<{BYTES_VOCAB + 2}>" in [text for text, _ in found[0]["likeliest"]]
    assert json.loads(json.dumps(found)) == found
