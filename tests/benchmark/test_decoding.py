"""The timings: what is compared does the same."""

import pytest
import torch

from latentpt.benchmark.decoding import run, time_decoding, time_prefill, timing_table
from latentpt.config import ConfigError
from latentpt.generation.decode import generate
from latentpt.generation.prefill import Prefill
from tests.conftest import tiny_ids, tiny_model


class Published:
    """Stands in for the other implementation: ours behind transformers' generate."""

    def __init__(self, model, shift=0):
        self.model, self.shift = model, shift

    def parameters(self):
        return self.model.parameters()

    def generate(self, prompt, max_new_tokens, **_):
        found = generate(self.model, prompt.tolist(), max_new_tokens)
        return torch.cat([prompt, (torch.tensor(found) + self.shift) % 37], dim=1)


def test_decoding_is_compared_only_where_the_tokens_are_equal():
    model, prompt = tiny_model(method="latent", num_thoughts=1), tiny_ids(2, 4)
    ways = {"ours": lambda prompts, number: generate(model, prompts, number)}
    timings = time_decoding(ways, prompt, 5, Published(model))
    assert [(t.name, t.tokens) for t in timings] == [("ours", 10), ("published", 10)]
    with pytest.raises(ConfigError, match="only 0 of 10 tokens of 'published' are those of 'ours'"):
        time_decoding(ways, prompt, 5, Published(model, shift=1))


def test_every_prefill_is_timed_and_the_table_names_it():
    model = tiny_model(method="latent", num_thoughts=1)
    prefills = {"exact": Prefill(), "two sweeps": Prefill("gauss_seidel", max_sweeps=2)}
    timings = time_prefill(dict.fromkeys(prefills, model), tiny_ids(1, 9), prefills, Published(model))
    assert [t.tokens for t in timings] == [9, 9, 9]
    lines = timing_table("prefill", timings).split("\n")
    assert len(lines) == 4 and lines[2].startswith("two sweeps") and lines[3].endswith("1.00 1.00")


@pytest.mark.slow
def test_all_ways_to_decode_write_the_same_tokens_and_are_reported():
    model = tiny_model(method="latent", num_thoughts=1)
    report = run(model.config, model.thoughts, 1, 6, 5, "cpu")
    for way in (
        "ours",
        "ours, guessing",
        "ours, bf16 matrices",
        "ours, bf16 matrices, guessing",
        "stage_causal",
    ):
        assert any(line.startswith(way) for line in report.split("\n"))
