"""Whole fine-tunings: every mode, exact resume, what is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from latentpt.config import ConfigError, to_yaml
from latentpt.data.errors import DataError
from latentpt.files import exclusive
from latentpt.finetuning import trainer
from latentpt.finetuning.config import Mode
from latentpt.finetuning.reasoner import load_reasoner
from latentpt.finetuning.trainer import finetune
from latentpt.run import read_metrics
from tests.finetuning.small_reasoning import sums, tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return sums(tmp_path_factory.mktemp("sums"))


def lines(config, kind):
    """Step -> the line of metrics."""
    return {line["step"]: line for line in read_metrics(config.folder.metrics) if line["kind"] == kind}


def tensors(config):
    """Parameters of the best checkpoint by name."""
    return dict(load_reasoner(config.folder.path / "best")[0].named_parameters())


@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_mode_trains_and_keeps_a_model_that_answers(mode, data, tmp_path):
    config = tiny(tmp_path / "run", data, mode, data={"test": {"sums": str(data / "test.jsonl")}})
    finetune(config)
    summary = json.loads(config.folder.summary.read_text())
    assert summary["test"]["sums"]["rows"] == 10
    trained = list(lines(config, "train").values())
    trained = [line for line in trained if line["stage"] == trained[-1]["stage"]]
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert json.loads((config.folder.path / "report.json").read_text())["verdict"]
    assert "Accuracy by stage" in (config.folder.path / "report.html").read_text()
    measured = lines(config, "validation")
    latents = max(line["latents"] for line in measured.values())
    assert latents == (
        2 if mode in ("coconut", "pause", "pause_multipass") else latents if mode == "lt_tuning" else 0
    )
    _, recipe, _ = load_reasoner(config.folder.path / "best")
    assert recipe.mode == mode


def test_pause_in_many_passes_trains_like_pause_in_one(data, tmp_path):
    runs = [tiny(tmp_path / mode, data, mode) for mode in ("pause", "pause_multipass")]
    for config in runs:
        finetune(config)
    one, many = (lines(config, "train") for config in runs)
    assert [line["loss"] for line in many.values()] == pytest.approx(
        [line["loss"] for line in one.values()], rel=1e-3
    )


def test_jacobi_with_as_many_passes_as_latents_trains_like_segments(data, tmp_path):
    runs = [tiny(tmp_path / engine, data, "coconut", training={"engine": engine, "refills": 2}) for engine in ("segments", "jacobi")]  # fmt: skip
    for config in runs:
        finetune(config)
    exact, solved = (lines(config, "train") for config in runs)
    assert [line["loss"] for line in solved.values()] == pytest.approx(
        [line["loss"] for line in exact.values()], rel=1e-3
    )


@pytest.mark.parametrize("mode", ["coconut", "lt_tuning"])
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(mode, stop, data, tmp_path):
    whole = tiny(tmp_path / "whole", data, mode, coconut={"uniform_prob": 0.3})
    finetune(whole)
    parts = tiny(tmp_path / "parts", data, mode, coconut={"uniform_prob": 0.3}, training={"stop_at": stop})
    finetune(parts)
    resumed = tiny(tmp_path / "parts", data, mode, coconut={"uniform_prob": 0.3})
    finetune(resumed)
    for kind in ("train", "validation"):
        a, b = lines(whole, kind), lines(resumed, kind)
        assert a.keys() == b.keys()
        assert [line["loss"] for line in a.values()] == [line["loss"] for line in b.values()]
    for name, parameter in tensors(whole).items():
        assert torch.equal(parameter, tensors(resumed)[name]), name


def test_the_batch_proposed_for_ranks_that_do_not_divide_it_can_be_divided():
    with pytest.raises(ConfigError, match=r"on 2 ranks; .* is training.batch = 16$"):
        trainer._micro_batches(17, 8, 2)
    assert trainer._micro_batches(16, 8, 2) == 1


def test_a_best_checkpoint_that_could_not_be_written_is_written_by_the_next_start(
    data, tmp_path, monkeypatch
):
    config = tiny(tmp_path / "run", data, "cot", training={"epochs": 1}, checkpoint={"every": 1})

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_reasoner", fail)
        with pytest.raises(OSError, match="the disk is full"):
            finetune(config)
    finetune(config)
    assert tensors(config)
    (measured,) = lines(config, "validation").values()
    assert json.loads(config.folder.summary.read_text())["best_validation_accuracy"] == measured["accuracy"]


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(data, tmp_path):
    whole = tiny(tmp_path / "whole", data, "lt_tuning", checkpoint={"every": 2})
    finetune(whole)
    killed = tiny(tmp_path / "killed", data, "lt_tuning", checkpoint={"every": 2})
    (tmp_path / "killed.yaml").write_text(to_yaml(killed))
    command = [sys.executable, ROOT / "launch" / "finetune.py", "--config", tmp_path / "killed.yaml"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 120
    while len(lines(killed, "train")) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=200)
    assert [line["loss"] for line in lines(killed, "train").values()] == [
        line["loss"] for line in lines(whole, "train").values()
    ]
    for name, parameter in tensors(whole).items():
        assert torch.equal(parameter, tensors(killed)[name]), name


@pytest.mark.parametrize("zero", [0, 3])
def test_lora_trains_updates_and_added_rows_alone(zero, data, tmp_path):
    pytest.importorskip("peft")
    first = tiny(tmp_path / "cot", data, "cot")
    finetune(first)
    start = {"fresh": None, "run": str(tmp_path / "cot")}
    lora = {"lora": {"rank": 2, "alpha": 4.0}}
    config = tiny(tmp_path / "lora", data, "coconut", start=start, training=lora, zero={"stage": zero})
    finetune(config)
    before, after = tensors(first), tensors(config)
    old = before["language.decoder.embedding.weight"].shape[0]
    table = after["language.decoder.embedding.weight"]
    assert torch.equal(table[:old], before["language.decoder.embedding.weight"])
    assert not torch.equal(table[old:], before["language.decoder.embedding.weight"].mean(0).expand(3, -1))
    name = "language.decoder.blocks.0.attention.qkv.weight"
    assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) == 2
    norm = "language.decoder.blocks.0.attention_norm.weight"
    assert torch.equal(after[norm], before[norm])


def test_a_run_starts_from_the_best_checkpoint_of_another(data, tmp_path):
    first = tiny(tmp_path / "cot", data, "cot")
    finetune(first)
    second = tiny(tmp_path / "coconut", data, "coconut", start={"fresh": None, "run": str(tmp_path / "cot")}, optimizer={"lr": 1e-12})  # fmt: skip
    finetune(second)
    for name, parameter in tensors(first).items():
        found = tensors(second)[name][: len(parameter)]
        torch.testing.assert_close(found, parameter, atol=1e-6, rtol=0)


def test_the_adapter_is_trained_and_kept(data, tmp_path):
    config = tiny(tmp_path / "run", data, "lt_tuning", fill={"adapter": 6})
    finetune(config)
    reasoner, recipe, _ = load_reasoner(config.folder.path / "best")
    assert recipe.adapter == 6 and reasoner.adapter is not None
    assert reasoner.adapter.down.bias.abs().sum() >= 0


def test_questions_that_cannot_be_used_are_told(data, tmp_path):
    broken = tmp_path / "train.jsonl"
    text = (data / "train.jsonl").read_text() + json.dumps(
        {"question": "1 <|latent|> 2", "steps": ["1"], "answer": "1"}
    )
    broken.write_text(text + "\n" + json.dumps({"question": "1 + 1", "steps": [], "answer": "2"}) + "\n")
    config = tiny(tmp_path / "run", data, "coconut", data={"train": str(broken)}, training={"stop_at": 1})
    finetune(config)
    told = (config.folder.path / "left_out.txt").read_text()
    assert (
        "1 of 26 rows left out: the marker <|latent|> is part of the text; the first: '1 <|latent|> 2'"
        in told
    )
    assert "1 of 26 rows left out: no steps; the first: '1 + 1'" in told


def test_a_run_of_another_curriculum_is_not_continued(data, tmp_path):
    finetune(tiny(tmp_path / "run", data, "coconut", training={"stop_at": 1}))
    with pytest.raises(ConfigError, match=r"coconut.c_thought is 1 there and 2 here"):
        finetune(tiny(tmp_path / "run", data, "coconut", coconut={"c_thought": 2}))


def test_a_folder_that_another_process_trains_in_is_refused(data, tmp_path):
    config = tiny(tmp_path / "run", data, "cot")
    with (
        exclusive(config.folder.path),
        pytest.raises(ConfigError, match="is being trained by another process"),
    ):
        finetune(config)
    assert not config.folder.config.exists()


def test_a_run_is_not_continued_on_other_questions(data, tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text((data / "train.jsonl").read_text())
    config = tiny(tmp_path / "run", data, "cot", data={"train": str(train)}, training={"stop_at": 1})
    finetune(config)
    train.write_text((data / "validation.jsonl").read_text())
    with pytest.raises(DataError, match=r"the source 'train.jsonl' is not the one the run was begun with"):
        finetune(config)


def test_stages_have_learning_rates_of_their_own(data, tmp_path):
    stages = [{"epochs": 1}, {"epochs": 1, "fill": "hidden", "lr": 3e-3}, {"epochs": 1, "fill": "pause"}]
    config = tiny(tmp_path / "run", data, "lt_tuning", lt={"stages": stages})
    finetune(config)
    rates = {line["stage"]: line["lr"] for line in lines(config, "train").values()}
    assert rates == {1: 1e-2, 2: 3e-3, 3: 1e-2}


def test_coconut_stages_have_learning_rates_of_their_own(data, tmp_path):
    config = tiny(tmp_path / "run", data, "coconut", coconut={"lr": [1e-2, 3e-3]})
    finetune(config)
    rates = {line["stage"]: line["lr"] for line in lines(config, "train").values()}
    assert rates == {0: 1e-2, 1: 3e-3, 2: 3e-3, 3: 3e-3}


def test_a_model_that_carries_states_learns_latents(data, tmp_path):
    config = tiny(
        tmp_path / "run", data, "coconut", start={"thoughts": {"method": "hybrid", "num_thoughts": 1}}
    )
    finetune(config)
    trained = [line["loss"] for line in lines(config, "train").values() if line["stage"] == 3]
    assert trained[-1] < trained[0]


def test_a_batch_that_ranks_cannot_share_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="the nearest value that works is training"):
        finetune(tiny(tmp_path / "run", data, "cot", training={"micro_batch": 3}))
    assert not (tmp_path / "run").exists()
