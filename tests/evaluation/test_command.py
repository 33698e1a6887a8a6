"""launch/eval.py: losses by source, both forwards, diagnostics, into a folder that goes on where it was."""

import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentpt.data.batches import TokenDataset, validation_batches
from latentpt.data.indexed import ShardWriter
from latentpt.data.manifest import Counts, Manifest, TokenizerRecord
from latentpt.evaluation import held_out
from latentpt.evaluation.results import Figures, Measurement, keep_results, read_results
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
    results = {one.name: one for one in read_results(folder / "evaluation")}
    batches = list(validation_batches(TokenDataset(other, 16), 5, 8))
    for forward in ("training", "exact"):
        metrics = results[f"two ({forward})"].figures.metrics
        expected = validation_loss(model, batches, exact=forward == "exact")
        assert metrics["loss"] == pytest.approx(expected, abs=1e-6)
        assert metrics["perplexity"] == pytest.approx(math.exp(expected))
        assert metrics["bits_per_byte"] == pytest.approx(expected / math.log(2) / 2)
        assert metrics["tokens"] == 8 * 16
        each = [validation_loss(model, [row[None]], exact=forward == "exact") for b in batches for row in b]
        figures = results[f"two ({forward})"].figures
        assert figures.items == 8
        assert figures.errors["loss"] == pytest.approx(np.std(each, ddof=1) / math.sqrt(8), rel=1e-4)
        assert figures.errors["perplexity"] == pytest.approx(math.exp(expected) * figures.errors["loss"])
        assert figures.errors["bits_per_byte"] == pytest.approx(figures.errors["loss"] / math.log(2) / 2)
    assert results["one (training)"].figures != results["two (training)"].figures
    assert "two (exact)" in printed and printed.endswith((folder / "evaluation" / "table.txt").read_text())
    page = folder / "evaluation" / "diagnostics-step-7-one-8x16.html"
    assert (
        printed.startswith(("Replacing", "Thinking"))
        and f"\n{page}\n" in printed
        and "<svg" in page.read_text()
    )
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

    monkeypatch.setattr(held_out, "sample_sums", never)
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


def test_results_stay_beside_what_is_asked_later(run, monkeypatch, capsys):
    folder, _ = run
    common = ("--run", folder, "--forward", "training", "--device", "cpu")
    ways = ((), ("--length", 8), ("--samples", 3), (), ("--forward", "exact"))
    for way in ways:
        assert launch("eval", monkeypatch, *common, *way) == 0
    kept = read_results(folder / "evaluation")
    asked = [(one.name, one.settings["length"], one.settings["samples"]) for one in kept]
    assert asked == [
        ("validation (training)", 16, None),
        ("validation (training)", 8, None),
        ("validation (training)", 16, 3),
        ("validation (exact)", 16, None),
    ]
    assert {one.step for one in kept} == {7} and kept[0].figures.items == 12
    table = (folder / "evaluation" / "table.txt").read_text()
    assert table.count(" loss ") == 4 and "length 16, samples 3" in table
    assert capsys.readouterr().out.count("validation (exact)") == 5  # only what was asked now is printed


def test_of_one_question_the_later_answer_stands_and_other_weights_have_their_own(tmp_path):
    def measured(loss, model="a", **settings):
        return Measurement("x", settings, model, None, Figures({"loss": loss}, {}, 5))

    keep_results(tmp_path, [measured(1.0), measured(2.0, limit=3)])
    kept = keep_results(tmp_path, [measured(3.0), measured(4.0, "b")])
    assert [one.figures.metrics["loss"] for one in kept] == [3.0, 2.0, 4.0] and kept == read_results(tmp_path)


def test_results_of_another_form_are_refused_before_anything_is_measured(run, monkeypatch, capsys):
    folder, _ = run
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text('{"results": {}}')
    assert launch("eval", monkeypatch, "--run", folder, "--device", "cpu") == 2
    assert "results.json: holds no measurements as they are kept today" in capsys.readouterr().err
    assert (folder / "evaluation" / "results.json").read_text() == '{"results": {}}'


def test_an_export_is_measured_on_samples_of_the_length_of_its_run(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    assert launch("export", monkeypatch, "--run", folder, "--output", tmp_path / "hf") == 0
    out, data = tmp_path / "out", ("--data", f"validation={tmp_path / 'data'}", "--device", "cpu")
    assert launch("eval", monkeypatch, "--run", folder, *data) == 0
    assert launch("eval", monkeypatch, "--model", tmp_path / "hf", "--output", out, *data) == 0
    for mine, theirs in zip(read_results(folder / "evaluation"), read_results(out), strict=True):
        assert mine.settings == theirs.settings
        assert mine.figures.metrics == pytest.approx(theirs.figures.metrics, rel=1e-5)


def test_figures_of_a_diverged_model_are_kept_and_shown(tmp_path):
    figures = Figures({"loss": math.nan, "perplexity": math.inf, "tokens": 1234.0}, {}, 2)
    keep_results(tmp_path, [Measurement("held out", {}, "w", 1, figures)])
    (kept,) = read_results(tmp_path)
    assert math.isnan(kept.figures.metrics["loss"]) and kept.figures.metrics["perplexity"] == math.inf
    shown = (tmp_path / "table.txt").read_text()
    assert "nan" in shown and "inf" in shown and "1,234" in shown
