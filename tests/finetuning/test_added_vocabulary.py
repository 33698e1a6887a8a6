"""Tables grow by the markers' rows and nothing else changes."""

import pytest
import torch

from latentpt.data.tokenizer import load_tokenizer
from latentpt.finetuning.building import write_symbol_tokenizer
from latentpt.finetuning.vocabulary import grown, marked, vocabulary_tables
from tests.conftest import tiny_ids, tiny_model


@pytest.mark.parametrize(
    "thoughts",
    [{}, {"method": "pause", "num_thoughts": 1}, {"method": "sequential_hidden_decoding", "num_thoughts": 2}],
)
def test_a_grown_model_predicts_what_it_did(thoughts, family):
    model = tiny_model(family, **thoughts)
    larger = grown(model, 40, [37, 38, 39], 5)
    ids = tiny_ids()
    torch.testing.assert_close(larger(ids).logits[..., :37], model(ids).logits)
    for name in vocabulary_tables(larger):
        table = dict(larger.named_parameters())[name]
        assert torch.equal(table[37:], table[5].expand(3, -1))


def test_rows_that_the_table_has_to_spare_are_taken_first():
    model = tiny_model()
    larger = grown(model, 30, [28, 29], None)
    assert larger.config.vocab_size == 37
    old = model.decoder.embedding.weight
    torch.testing.assert_close(larger.decoder.embedding.weight[28:30], old.mean(0).expand(2, -1))
    assert torch.equal(larger.decoder.embedding.weight[30:], old[30:])


def test_every_family_has_tables_of_its_vocabulary_alone(family):
    heads = {"decoder.head.weight"} if family != "gpt2" else set()
    assert vocabulary_tables(tiny_model(family)) == {"decoder.embedding.weight", *heads}


def test_markers_are_single_tokens_that_text_does_not_become(tmp_path):
    write_symbol_tokenizer(tmp_path / "a" / "tokenizer.json", 5)
    plain = load_tokenizer(tmp_path / "a")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(marked(plain, ["<|latent|>"]))
    once = load_tokenizer(path)
    new = once.token_id("<|latent|>")
    assert new == plain.vocab_size and once.vocab_size == plain.vocab_size + 1
    assert new not in once.encode("1 <|latent|> 2")
    assert marked(once, ["<|latent|>"]) == path.read_bytes()
