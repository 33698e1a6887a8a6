"""The adapter beside lm-eval's own Hugging Face model, on vanilla exports, both in float32.

LATENTPT_AGREEMENT=200 pytest -s tests/evaluation/test_agreement.py        items of each set; needs accelerate and the
shared data. An article counts as three items: 200 are all of wikitext2.
"""

import os

import pytest
import torch

from latentpt.data.tokenizer import load_tokenizer
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.harness import load_local_task, local_tasks, make_adapter
from latentpt.generation.text import Writer
from latentpt.hub.folders import export_folder, load_folder
from tests.conftest import tiny_model
from tests.folders import shared

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
ITEMS = int(os.environ.get("LATENTPT_AGREEMENT", "2"))


def plain_model(name):
    """A model and its tokenizer that can be asked about a task.

    Trained weights, except where articles spell out <unk>: the Hugging Face tokenizer of those reads it as a special
    token and ours as text, so wikitext2 is asked of a random model with Pythia's tokenizer, in windows of 256.
    """
    if name != "wikitext2":
        folder = shared("models", "stories260K", "hf")
        return load_folder(folder), load_tokenizer(folder)
    tokenizer = load_tokenizer(shared("tokenizers", "gpt-neox-20b"))
    size = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "max_positions": 256}
    return tiny_model("pythia", torch.float32, size=size).eval(), tokenizer


def likelihoods(responses):
    """Log-likelihoods of all requests, in order."""
    for of_document in responses:
        for of_request in of_document:
            for value in of_request:
                yield value if isinstance(value, float) else value[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", local_tasks())
def test_accuracies_and_likelihoods_are_those_of_the_harness_own_model(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = plain_model(name)
    export_folder(model, tmp_path / "hf", tokenizer)
    ours = make_adapter(Writer(model, tokenizer), 4, "training", Answers(None, ""))
    # logits_cache: two windows of a text that repeats itself share its key, and one is then scored wrongly.
    # softmax_dtype: the harness sums in the softmax's precision; float32 rounds a window of thousands of nats by 5e-4.
    theirs = HFLM(
        pretrained=str(tmp_path / "hf"), batch_size=4, device="cpu", dtype="float32", add_bos_token=False,
        logits_cache=False, softmax_dtype="float64",
    )  # fmt: skip
    found = []
    for adapter in (ours, theirs):
        task = ConfigurableTask(config=load_local_task(name, shared("eval"), 0))
        found.append(
            simple_evaluate(
                adapter, tasks=[task], limit=ITEMS if name != "wikitext2" else -(-ITEMS // 3), bootstrap_iters=0, log_samples=True,
                task_manager=TaskManager(include_defaults=False),
            )
        )  # fmt: skip
    mine, others = (list(likelihoods(sample["resps"] for sample in one["samples"][name])) for one in found)
    assert len(mine) == len(others) > 0
    difference = max(abs(a - b) for a, b in zip(mine, others, strict=True))
    print(
        f"\n{name}: {len(mine)} log-likelihoods down to {min(others):.1f}, largest difference {difference:.1e}"
    )
    assert difference < 1e-3
    for metric, value in found[1]["results"][name].items():
        if isinstance(value, float):
            print(f"  {metric} {found[0]['results'][name][metric]} {value}")
            assert found[0]["results"][name][metric] == pytest.approx(value, rel=1e-4)
