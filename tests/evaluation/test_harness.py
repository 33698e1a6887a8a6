"""lm-eval-harness with our adapter, and the whole command."""

import json

import numpy as np
import pytest
import torch

from latentpt.config import ConfigError
from latentpt.data.tokenizer import load_tokenizer
from latentpt.evaluation.answers import Answers
from latentpt.evaluation.harness import load_local_task, local_tasks, make_adapter, run_tasks, standard_error
from latentpt.evaluation.scoring import score
from latentpt.generation.sampling import Sampling
from latentpt.generation.text import Options, Writer
from tests.conftest import tiny_model
from tests.folders import BYTES_VOCAB, shared, write_tokenizer

pytest.importorskip("lm_eval")


@pytest.fixture
def writer(tmp_path):
    size = {"vocab_size": BYTES_VOCAB, "max_positions": 48}
    model = tiny_model("pythia", torch.float32, size=size, method="latent", num_thoughts=1)
    return Writer(model, load_tokenizer(write_tokenizer(tmp_path / "tokenizer")))


@pytest.fixture
def data(tmp_path):
    """A few records of each kind, in the files of the shared sets."""
    folder = tmp_path / "eval"
    folder.mkdir()
    choices = [
        {"query": f"Question: {n}?\n", "choices": ["one", "three of them"], "gold": n % 2} for n in range(3)
    ]
    files = {
        "piqa.jsonl": choices,
        "lambada_openai.jsonl": [
            {"context": "a b", "continuation": "c"},
            {"context": "d", "continuation": "ef"},
        ],
        "winogrande.jsonl": [{"context_options": ["he", "she said"], "continuation": "went.", "gold": 1}],
    }
    for name, records in files.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "wikitext2_test.txt").write_text(
        " \n = A = \n \n one two \n = = B = = \n three \n = C = \n four \n" * 3
    )
    return folder


def test_accuracy_and_perplexity_are_those_of_the_scores(writer, data):
    adapter = make_adapter(writer, 2, "training", Answers(None, ""))
    found = run_tasks(
        adapter, ["piqa", "lambada_openai", "winogrande", "wikitext2"], data, 0, None, online=False
    )
    encode = writer.tokenizer.encode

    def logprob(context, continuation):
        return score(writer.model, [(encode(context), encode(continuation))])[0].logprob

    right = [
        logprob(f"Question: {n}?\nAnswer:", " one") > logprob(f"Question: {n}?\nAnswer:", " three of them")
        for n in range(3)
    ]
    assert found["piqa"].metrics["acc"] == pytest.approx(
        np.mean([r == (n % 2 == 0) for n, r in enumerate(right)])
    )
    logprobs = [logprob("a b", " c"), logprob("d", " ef")]
    assert found["lambada_openai"].metrics["perplexity"] == pytest.approx(
        np.exp(-np.mean(logprobs)), rel=1e-4
    )
    says_she = logprob("she said", " went.") > logprob("he", " went.")
    assert found["winogrande"].metrics["acc"] == float(says_she)
    assert found["wikitext2"].metrics["bits_per_byte"] > 0


def test_every_metric_of_a_task_has_a_standard_error_over_its_items(writer, data):
    adapter = make_adapter(writer, 2, "training", Answers(None, ""))
    names = ["piqa", "lambada_openai", "wikitext2"]
    found = run_tasks(adapter, names, data, 0, None, online=False)
    assert {name: found[name].items for name in names} == {"piqa": 3, "lambada_openai": 2, "wikitext2": 6}
    assert all(set(found[name].errors) == set(found[name].metrics) for name in names)
    acc = found["piqa"].metrics["acc"]
    assert found["piqa"].errors["acc"] == pytest.approx(np.sqrt(acc * (1 - acc) / 2))
    assert run_tasks(adapter, ["piqa"], data, 0, 2, online=False)["piqa"].items == 2


def test_an_error_passes_through_what_the_harness_makes_of_documents():
    logprobs, words = [-3.0, -5.0, -1.0], [2, 4, 1]
    mean, rate = np.mean(logprobs), sum(logprobs) / sum(words)
    error = np.std(logprobs, ddof=1) / np.sqrt(3)
    assert standard_error(mean, logprobs) == pytest.approx(error)
    assert standard_error(np.exp(-mean), logprobs) == pytest.approx(np.exp(-mean) * error)
    pairs = list(zip(logprobs, words, strict=True))
    of_rate = standard_error(np.exp(-rate), pairs) / np.exp(-rate)
    assert standard_error(-rate / np.log(2), pairs) == pytest.approx(of_rate / np.log(2))
    assert standard_error(0.123, logprobs) is None and standard_error(-3.0, [-3.0]) is None


def test_few_shot_contexts_hold_other_examples(writer, data):
    asked = []
    adapter = make_adapter(writer, 4, "training", Answers(None, ""))
    adapter.loglikelihood = lambda requests, **_: [asked.append(r.args[0]) or (0.0, False) for r in requests]
    run_tasks(adapter, ["piqa"], data, 2, None, online=False)
    assert all(context.count("Question:") == 3 for context in asked)


def test_long_texts_are_scored_in_windows_that_predict_each_token_once(writer):
    from lm_eval.api.instance import Instance

    adapter = make_adapter(writer, 3, "training", Answers(None, ""))
    text = "abcdefgh" * 13
    (found,) = adapter.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    ids = writer.tokenizer.encode(text)
    # 104 tokens in windows of 48: two whole ones after one token of context, a last one with all it can hold
    pairs = [([256], ids[:48]), (ids[47:48], ids[48:96]), (ids[55:96], ids[96:])]
    assert found == pytest.approx(sum(s.logprob for s in score(writer.model, pairs)), rel=1e-5)


def test_texts_are_generated_up_to_the_stop_string(writer):
    from lm_eval.api.instance import Instance

    adapter = make_adapter(writer, 2, "training", Answers(None, ""))
    free = writer.continue_ids([writer.encode("hello")], Options(12, Sampling()))[0]
    settings = {"until": [free[4:6]], "max_gen_toks": 12}
    requests = [
        Instance("generate_until", {}, ("hello", settings), 0),
        Instance("generate_until", {}, ("a", {"max_gen_toks": 3}), 1),
    ]
    found = adapter.generate_until(requests)
    assert found[0] == free[: free.index(free[4:6])]
    assert found[1] == writer.continue_ids([writer.encode("a")], Options(3))[0]


def test_a_model_of_few_positions_keeps_half_of_them_for_the_prompt(writer):
    from lm_eval.api.instance import Instance

    prompt = "abcdefgh" * 9
    adapter = make_adapter(writer, 2, "training", Answers(None, ""))
    (found,) = adapter.generate_until([Instance("generate_until", {}, (prompt, {}), 0)])
    assert found == writer.continue_ids([writer.encode(prompt)[-24:]], Options(24, Sampling()))[0]


def test_an_interrupted_evaluation_asks_only_what_was_not_answered(writer, data, tmp_path):
    path, asked = tmp_path / "answers.jsonl", []
    answered = make_adapter(writer, 2, "training", Answers(path, "x"), report=asked.append)
    expected = run_tasks(answered, ["piqa"], data, 0, None, online=False)
    assert sum(asked) == 6
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])  # killed in the middle of a line
    asked.clear()
    again = make_adapter(writer, 2, "training", Answers(path, "x"), report=asked.append)
    assert run_tasks(again, ["piqa"], data, 0, None, online=False) == expected and sum(asked) == 3
    asked.clear()
    other = make_adapter(writer, 2, "training", Answers(path, "another model"), report=asked.append)
    run_tasks(other, ["piqa"], data, 0, None, online=False)
    assert sum(asked) == 6


def test_unknown_tasks_and_missing_data_are_named(data):
    with pytest.raises(ConfigError, match="task pika has no task file here; the nearest is piqa"):
        load_local_task("pika", data, 0)
    with pytest.raises(ConfigError, match=r"arc_easy\.jsonl, which is missing"):
        load_local_task("arc_easy", data, 0)


@pytest.mark.parametrize("name", local_tasks())
def test_every_task_file_finds_its_shared_data(name):
    folder = shared("eval")
    assert load_local_task(name, folder, 0)["task"] == name
