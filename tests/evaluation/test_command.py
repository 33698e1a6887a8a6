"""launch/eval.py: losses by source, both forwards, diagnostics, into a folder that goes on where it was."""

import json
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.data.indexed import ShardWriter
from latentpt.data.manifest import Counts, Manifest, TokenizerRecord
from latentpt.evaluation import held_out
from latentpt.hub.folders import export_folder
from latentpt.thoughts.measure import validation_loss
from tests.conftest import tiny_model
from tests.folders import BYTES_VOCAB, launch, write_run, write_tokenizer


def write_shards(folder, seed, tokens=200, text_bytes=190):
    """A shard folder of random bytes with a tokenizer."""
    write_tokenizer(folder)
    shard = ShardWriter(folder / "t-00000-of-00001", np.uint16)
    shard.add_document(np.random.default_rng(seed).integers(0, 256, tokens))
    info = shard.close()
    Manifest(
        tokenizer=TokenizerRecord(file="tokenizer.json", sha256="", vocab_size=BYTES_VOCAB, eod_id=256),
        dtype="uint16", counts=Counts(documents=1, tokens=tokens, text_bytes=text_bytes), shards=[info], records_in=1,
    ).write(folder)  # fmt: skip
    return folder


@pytest.fixture
def run(tmp_path):
    size = {"vocab_size": BYTES_VOCAB}
    model = tiny_model("llama", torch.float32, size=size, method="latent", num_thoughts=1, refinements=1)
    return write_run(tmp_path / "run", model, write_shards(tmp_path / "data", 0)), model


def test_losses_of_both_forwards_by_source(run, tmp_path, monkeypatch, capsys):
    folder, model = run
    other = write_shards(tmp_path / "other", 1, text_bytes=400)
    sources = (
        "--data",
        f"one={tmp_path / 'data'}",
        "--data",
        f"two={other}",
        "--batch-size",
        5,
        "--device",
        "cpu",
    )
    assert launch("eval", monkeypatch, "--run", folder, *sources, "--diagnostics", "--samples", 8) == 0
    printed = capsys.readouterr().out
    results = json.loads((folder / "evaluation" / "results.json").read_text())["results"]
    batches = list(validation_batches(TokenDataset(other, 16), 5, 8))
    for forward in ("training", "exact"):
        metrics = results[f"two ({forward})"]
        expected = validation_loss(model, batches, exact=forward == "exact")
        assert metrics["loss"] == pytest.approx(expected, abs=1e-6)
        assert metrics["perplexity"] == pytest.approx(math.exp(expected))
        assert metrics["bits_per_byte"] == pytest.approx(expected / math.log(2) / 2)
        assert metrics["tokens"] == 8 * 16
    assert results["one (training)"] != results["two (training)"]
    assert "two (exact)" in printed and (folder / "evaluation" / "table.txt").read_text() == printed
    assert "<svg" in (folder / "evaluation" / "diagnostics.html").read_text()
    board = EventAccumulator(str(folder / "evaluation" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("two (exact)/loss")] == [7]


def test_what_was_measured_is_not_measured_again(run, monkeypatch, capsys):
    folder, _ = run
    common = ("--run", folder, "--forward", "training", "--device", "cpu")
    assert launch("eval", monkeypatch, *common) == 0
    first = capsys.readouterr().out

    def never(*_, **__):
        raise AssertionError("measured twice")

    monkeypatch.setattr(held_out, "summed_loss", never)
    assert launch("eval", monkeypatch, *common) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="measured twice"):
        launch("eval", monkeypatch, *common, "--length", 8)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (("--tasks", "pika"), "the nearest is piqa"),
        (("--data", "nowhere"), "--data is of the form NAME=FOLDER"),
        (("--data", "x=nowhere"), "nowhere"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--samples", 0), "--samples must be at least 1, got 0"),
        (("--tasks", "piqa", "--limit", -1), "--limit must be at least 1, got -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(run, monkeypatch, capsys, wrong, said):
    folder, _ = run
    assert launch("eval", monkeypatch, "--run", folder, "--device", "cpu", *wrong) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_samples_may_exceed_max_positions_only_where_positions_are_rotated(tmp_path, monkeypatch, capsys):
    data = write_shards(tmp_path / "data", 0)
    for family, code in (("llama", 0), ("gpt2", 2)):
        model = tiny_model(family, torch.float32, size={"vocab_size": BYTES_VOCAB})
        run = write_run(tmp_path / family, model, data)
        arguments = ("--run", run, "--length", 70, "--forward", "training", "--device", "cpu")
        assert launch("eval", monkeypatch, *arguments) == code
    assert "--length 70 exceeds the model's table of 64 positions" in capsys.readouterr().err


def test_diagnostics_without_data_are_refused(tmp_path, monkeypatch, capsys):
    export_folder(tiny_model("llama", torch.float32), tmp_path / "hf")
    arguments = ("--model", tmp_path / "hf", "--output", tmp_path / "out", "--device", "cpu", "--diagnostics")
    assert launch("eval", monkeypatch, *arguments) == 2
    assert "--diagnostics needs held-out data" in capsys.readouterr().err
