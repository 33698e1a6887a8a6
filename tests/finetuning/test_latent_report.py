"""The report's figures: what is replaced, what is alike, what is said about it; suites of arms and seeds."""

import json
from pathlib import Path

import pytest
import torch

from latentpt.config import ConfigError, build
from latentpt.finetuning import Fill, latent_forward
from latentpt.finetuning.accuracy import Answered
from latentpt.finetuning.diagnostics import (
    LatentReport,
    averaged,
    changed,
    diagnose_latents,
    latent_steps,
    noise,
    standard_error,
    swapped,
)  # fmt: skip
from latentpt.finetuning.rows import Pieces
from latentpt.finetuning.suite import SuiteConfig, run_suite
from tests.conftest import tiny_model
from tests.finetuning.small_reasoning import sums, tiny
from tests.finetuning.test_reasoner_export import made

ROOT = Path(__file__).resolve().parents[2]


def test_replacements_keep_what_they_say():
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(swapped(z)[1], z[0]) and torch.equal(swapped(z)[0], z[3])
    torch.testing.assert_close(averaged(z), z.mean(0).expand(4, -1))
    torch.testing.assert_close(noise(z).norm(dim=-1), z.norm(dim=-1))
    assert torch.equal(noise(z), noise(z)) and not torch.allclose(noise(z), z)


def test_swapped_latents_give_each_row_the_other_rows_outcome():
    """Of two rows that end alike, each predicts with swapped latents what the other one's latent makes of it."""
    model, fill = tiny_model(), Fill("hidden", 36)
    ids = torch.tensor([[1, 2, 36, 5], [3, 4, 36, 5]])
    plain = latent_forward(model, ids, fill).logits
    same = latent_forward(model, ids, changed(fill, lambda z: z)).logits
    other = latent_forward(model, ids, changed(fill, swapped)).logits
    assert torch.equal(same, plain)
    assert torch.equal(other[:, :2], plain[:, :2])
    assert not torch.allclose(other[:, 2:], plain[:, 2:])


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        (60, "is used: with noise accuracy falls (+30.0 points"),
        (88, "no measurable difference"),
        (95, "no measurable difference"),
    ],
)
def test_the_verdict_follows_from_the_standard_error(replaced, words):
    plain, other = Answered(90, 100, 500, 200), Answered(replaced, 100, 500, 200)
    assert words in LatentReport(plain, {}, None, {"noise": other}, []).verdict
    assert standard_error(plain, other) == pytest.approx((0.0009 + replaced * (100 - replaced) / 1e6) ** 0.5)


def test_without_latents_the_verdict_says_so():
    assert "No latent was thought" in LatentReport(Answered(5, 10, 50, 0), {}, None, {}, []).verdict
    assert "same learned vector" in LatentReport(Answered(5, 10, 50, 9), {}, None, {}, []).verdict


def questions(count):
    return [Pieces([10 + i % 5, 11 + i % 7, 12], [], [], "1") for i in range(count)]


def test_latents_of_one_question_asked_many_times_are_all_alike(tmp_path):
    reasoner, recipe, tokenizer = made(tmp_path, "llama", kind="hidden")
    alike = latent_steps(reasoner, recipe, tokenizer, questions(1) * 6, 8)
    different = latent_steps(reasoner, recipe, tokenizer, questions(12), 8)
    assert len(alike) == len(different) == recipe.latents
    assert alike[0].collapse.cosine == pytest.approx(1) and different[0].collapse.cosine < 0.999
    assert sum(share for _, share in alike[0].tokens) == 1 and alike[0].entropy > 0


def test_everything_is_asked_of_a_model_with_latents(tmp_path):
    reasoner, recipe, tokenizer = made(tmp_path, "llama", kind="hidden")
    found = diagnose_latents(reasoner, recipe, tokenizer, questions(5), 3, 4)
    assert sorted(found.fewer) == [0, 1, 2, 4, 5]
    assert len(found.replaced) == 3 and found.plain.latents == 3 * 5
    decides = recipe.model_copy(update={"mode": "lt_tuning", "switch": "threshold", "switch_tau": 1.0})
    found = diagnose_latents(reasoner, decides, tokenizer, questions(5), 3, 4)
    assert found.never is not None and found.never.latents == 0 and found.plain.latents > 0


@pytest.mark.slow
def test_a_suite_runs_its_arms_once_and_tells_mean_and_spread(tmp_path):
    data = sums(tmp_path)
    common = tiny(tmp_path / "x", data, "cot", data={"test": {"sums": str(data / "test.jsonl")}}).model_dump(
        mode="json"
    )
    for name in ("output", "seed", "mode"):
        del common[name]
    arms = {
        "cot": {"config": {"mode": "cot"}},
        "coconut": {"after": "cot", "config": {"mode": "coconut", "start": {"fresh": None}}},
    }
    config = build(
        SuiteConfig, {"output": str(tmp_path / "suite"), "common": common, "arms": arms, "workers": 1}
    )
    text = run_suite(config, ROOT / "launch" / "finetune.py")
    lines = text.splitlines()
    assert len(lines) == 4 and lines[3].startswith("| coconut | ") and "±" in lines[3]
    before = (tmp_path / "suite" / "cot-0" / "summary.json").stat().st_mtime_ns
    assert run_suite(config, ROOT / "launch" / "finetune.py") == text
    assert (tmp_path / "suite" / "cot-0" / "summary.json").stat().st_mtime_ns == before
    assert "Are the latents used?" in (tmp_path / "suite" / "report.html").read_text()
    assert json.loads((tmp_path / "suite" / "coconut-1" / "report.json").read_text())["verdict"]


def test_an_arm_after_one_that_is_not_before_it_is_refused():
    with pytest.raises(ConfigError, match="no arm before it"):
        build(SuiteConfig, {"output": "x", "common": {}, "arms": {"a": {"after": "b"}, "b": {}}})
