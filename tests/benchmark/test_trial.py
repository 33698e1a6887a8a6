"""Micro-batches that are tried, on a CPU with a limit of our own."""

import torch

from latentpt.benchmark.trial import Trial, growing, sizes
from latentpt.config import to_yaml
from tests.folders import launch
from tests.training.small import tiny_run, write_text_shards


def made_up(size):
    """One that takes 100 bytes and 10 more a sample, and is no faster from 8 samples on."""
    return Trial(size, seconds=max(size, 8) / 8, step_seconds=0.0, flops=0.0, peak=100 + 10 * size)


def tried(limit, attempt=made_up, candidates=(1, 2, 4, 8, 16, 32, 64)):
    speed = lambda trial: min(trial.micro_batch, 8)  # noqa: E731
    return [trial.micro_batch for trial in growing(attempt, list(candidates), limit, speed)]


def test_sizes_grow_while_the_next_is_predicted_to_fit():
    asked = []
    tried(145, lambda size: asked.append(size) or made_up(size))
    assert asked == [1, 2, 4], "8 samples would take 180"
    assert tried(105) == []


def test_two_sizes_that_are_no_faster_are_enough():
    assert tried(10**9) == [1, 2, 4, 8, 16, 32]


def test_a_size_that_is_out_of_memory_ends_the_search(monkeypatch):
    def attempt(size):
        if size == 4:
            raise torch.OutOfMemoryError("no")
        return made_up(size)

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    assert tried(10**9, attempt) == [1, 2]


def test_the_global_batch_can_be_cut_into_every_size_that_is_tried(tmp_path):
    config = tiny_run(tmp_path, tmp_path, training={"batch_samples": 24})
    assert sizes(config, 1) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert sizes(config, 4) == [1, 2, 3, 6]


def test_the_command_tells_speed_and_memory_of_each_size_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    write_text_shards(tmp_path / "text", 20_000)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(tiny_run(tmp_path / "run", tmp_path / "text", training={"batch_samples": 4})))
    assert launch("pretrain", monkeypatch, "--config", file, "--find-micro-batch", "--memory", 8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "tokens/s" in line] == [
        f"training.micro_batch={n}" for n in (1, 2, 4)
    ]
    fastest = max(
        (line for line in lines if "tokens/s" in line),
        key=lambda line: float(line.split()[1].replace(",", "")),
    )
    assert lines[-1] == f"the fastest: {fastest.split()[0]}"
    assert not (tmp_path / "run").exists()
    assert launch("pretrain", monkeypatch, "--config", file, "--find-micro-batch", "--memory", 0.01) == 2
    assert "a micro-batch of one sample does not fit 0.01 GiB" in capsys.readouterr().err
