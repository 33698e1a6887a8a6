"""A fine-tuned run is generated from, evaluated and exported by the commands that serve every other model."""

import json

import pytest

from latentpt.finetuning.trainer import finetune
from latentpt.finetuning.use import ask, open_reasoner
from tests.finetuning.small_reasoning import sums, tiny
from tests.folders import launch


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained Coconut run and the folder of its questions."""
    folder = tmp_path_factory.mktemp("use")
    data = sums(folder)
    config = tiny(folder / "run", data, "coconut", data={"test": {"sums": str(data / "test.jsonl")}})
    finetune(config)
    return config.folder.path, data


@pytest.fixture
def told(monkeypatch, capsys):
    """Runs a launch script; returns its exit code, what it printed and what it complained of."""

    def call(name, *arguments):
        code = launch(name, monkeypatch, *arguments)
        return code, *capsys.readouterr()

    return call


def test_generate_answers_questions_with_latents(run, told, tmp_path):
    folder, _ = run
    (said,) = ask(open_reasoner(folder), ["1 + 2 - 3"], 12)
    question = ("generate", "--run", folder, "--prompt", "1 + 2 - 3", "--max-new-tokens", 12)
    assert told(*question) == (0, f"1 + 2 - 3\n{said}\n", "")
    (tmp_path / "in.jsonl").write_text('{"prompt": "1 + 2 - 3", "id": 7}\n')
    told("generate", "--run", folder, "--file", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--max-new-tokens", 12)  # fmt: skip
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "1 + 2 - 3", "id": 7, "text": said}


def test_options_that_mean_nothing_to_it_are_refused_in_a_sentence(run, told):
    message = (
        "error: --temperature says nothing about a fine-tuned model (it answers greedily); leave it out\n"
    )
    assert told("generate", "--run", run[0], "--prompt", "1 + 2", "--temperature", "0.8") == (2, "", message)


def test_evaluation_measures_the_runs_own_questions_or_those_named(run, told, tmp_path):
    folder, data = run
    summary = json.loads((folder / "summary.json").read_text())
    code, own, _ = told("eval", "--run", folder, "--max-new-tokens", 12)
    assert code == 0
    assert own.startswith(f"sums: accuracy {100 * summary['test']['sums']['accuracy']:.1f} % (")
    kept = json.loads((folder / "evaluation" / "questions.json").read_text())
    assert kept["sums"]["asked"] == 10
    _, few, _ = told("eval", "--run", folder, "--data", f"few={data / 'train.jsonl'}", "--samples", 5, "--output", tmp_path)  # fmt: skip
    assert few.startswith("few: accuracy") and "of 5)" in few


def test_an_export_is_generated_from_and_evaluated_like_its_run(run, told, tmp_path, monkeypatch):
    folder, data = run
    hf = tmp_path / "hf"
    monkeypatch.chdir(tmp_path)  # where the evaluation of a model goes
    code, *_ = told("export", "--run", folder, "--output", hf, "--name", "Sums")
    assert code == 0 and "# Sums" in (hf / "README.md").read_text()
    ask_it = ("--prompt", "4 + 4 - 1", "--max-new-tokens", 12)
    assert told("generate", "--run", folder, *ask_it) == told("generate", "--model", hf, *ask_it)
    code, _, why = told("eval", "--model", hf)
    assert code == 2 and "names no questions; name a file of them with --data NAME=FILE" in why
    code, found, _ = told("eval", "--model", hf, "--data", f"sums={data / 'test.jsonl'}")
    assert code == 0 and found.startswith("sums: accuracy")
    assert (tmp_path / "evaluation" / "hf" / "questions.json").is_file()
