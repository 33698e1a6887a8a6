"""Going back to before a spike of the loss."""

import json

import pytest
import torch

from latentpt.config import ConfigError
from latentpt.data.batches import BatchStream, TokenDataset
from latentpt.run import checkpoints, read_metrics
from latentpt.training import trainer
from latentpt.training.rewind import Rewind, read_rewinds, samples_at, write_rewinds
from latentpt.training.trainer import Trainer, train
from tests.training.small import losses, tiny_run

AT = 28  # the step whose samples make the loss spike


def spiking(config, monkeypatch):
    """Let the loss of the samples of step AT be far too large, whenever they are read."""
    data, finite = TokenDataset(config.data.train, config.data.sequence_length), trainer.training_loss
    with BatchStream(data, config.seed, 8, 8, start_sample=8 * (AT - 1)) as stream:
        poison = next(stream)

    def loss(model, tokens, *more):
        factor = 5.0 if torch.equal(tokens[0], poison[0]) else 1.0
        return finite(model, tokens, *more) * factor

    monkeypatch.setattr(trainer, "training_loss", loss)


def run(folder, text, **training):
    return tiny_run(
        folder, text, training={"steps": 36, **training}, checkpoint={"every": 5, "keep_last": 9},
        validation={"every": 36}, thoughts={"refinements": 1}, optimizer={"lr": 1e-3}, model={"num_layers": 1},
    )  # fmt: skip


def test_a_spike_is_rewound_past_its_data_and_a_killed_training_does_the_same(text, tmp_path, monkeypatch):
    told, whole, killed = (
        run(tmp_path / name, text, rewind=int(name != "told")) for name in ("told", "whole", "killed")
    )
    spiking(told, monkeypatch)
    train(told)
    spike = next(line for line in read_metrics(told.folder.metrics) if line["kind"] == "spike")
    assert (spike["step"], spike["at"]) == (AT, AT) and spike["value"] > 1.5 * spike["mean_before"]

    progress = train(whole)
    assert (progress.step, progress.samples) == (36, 8 * (36 + AT - 25))
    line = next(line for line in read_metrics(whole.folder.metrics) if line["kind"] == "rewind")
    assert (line["step"], line["at"], line["seen"], line["samples"]) == (25, AT, AT, 8 * AT)
    before, after = losses(told), losses(whole)
    assert all(before[step] == after[step] for step in range(1, 26))
    assert before[26] != after[26] and max(after.values()) < spike["value"]

    advance = Trainer.advance

    def kill(self):
        advance(self)
        if self.rewinds and self.progress.step == 27:  # the next checkpoint is that of step 30
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", kill)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert checkpoints.step_of(checkpoints.find(killed.folder.checkpoints)) == 25
    train(killed)
    assert losses(killed) == after


def test_what_has_been_gone_back_over_counts_from_its_checkpoint_on(tmp_path):
    path = tmp_path / "rewinds.json"
    assert read_rewinds(path, 100) == []
    rewinds = [Rewind(to=10, at=15, seen=16, samples=160), Rewind(to=10, at=12, seen=12, samples=180)]
    write_rewinds(path, [*rewinds, Rewind(to=20, at=22, seen=22, samples=400)])
    assert read_rewinds(path, 19) == rewinds
    assert samples_at(rewinds, 10, 100) == 180 and samples_at(rewinds, 15, 230) == 230
    path.write_text(json.dumps([{"to": "x"}]))
    with pytest.raises(ConfigError, match=r"rewinds.json is damaged"):
        read_rewinds(path, 5)
