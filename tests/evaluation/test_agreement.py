"""The adapter beside lm-eval's own Hugging Face model, on a vanilla export of trained weights.

LATENTPT_AGREEMENT=200 pytest tests/evaluation/test_agreement.py        needs accelerate, peft and the shared data
"""

import os

import pytest

from latentpt.data.tokenizer import load_tokenizer
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.harness import load_local_task, local_tasks, make_adapter
from latentpt.generation.text import Writer
from latentpt.hub.folders import export_folder, load_folder
from tests.folders import shared

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
ITEMS = int(os.environ.get("LATENTPT_AGREEMENT", "3"))


def numbers(responses):
    """Log-likelihoods of all requests, in order."""
    for of_document in responses:
        for of_request in of_document:
            for value in of_request:
                yield value if isinstance(value, float) else value[0]


@pytest.mark.slow
# wikitext2 spells out <unk>, which this model's Hugging Face tokenizer reads as a special token and ours as text.
@pytest.mark.parametrize("name", [name for name in local_tasks() if name != "wikitext2"])
def test_accuracies_and_likelihoods_are_those_of_the_harness_own_model(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    folder, data = shared("models", "stories260K", "hf"), shared("eval")
    model, tokenizer = load_folder(folder), load_tokenizer(folder)
    export_folder(model, tmp_path / "hf", tokenizer)
    ours = make_adapter(Writer(model, tokenizer), 16, "training", Answers(None, ""))
    theirs = HFLM(
        pretrained=str(tmp_path / "hf"), batch_size=16, device="cpu", dtype="float32", add_bos_token=False, logits_cache=False
    )  # fmt: skip
    found = []
    for adapter in (ours, theirs):
        task = ConfigurableTask(config=load_local_task(name, data, 0))
        found.append(simple_evaluate(adapter, tasks=[task], limit=ITEMS, bootstrap_iters=0, log_samples=True))
    mine, others = (list(numbers(sample["resps"] for sample in one["samples"][name])) for one in found)
    assert len(mine) == len(others) and max(abs(a - b) for a, b in zip(mine, others, strict=True)) < 1e-3
    for metric, value in found[1]["results"][name].items():
        if isinstance(value, float):
            assert found[0]["results"][name][metric] == pytest.approx(value, rel=1e-4)
