"""The page about a run: everything its folder knows, in one file, whenever it is asked for."""

import json
import math
import re

import pytest
import torch
from matplotlib import image

from latentpt.evaluation.results import Figures, Measurement, keep_results
from latentpt.report import command, report, texts
from latentpt.report.curves import draw_times, loss_range, points, smoothed
from latentpt.report.page import changed
from latentpt.run import RunFolder, read_metrics
from latentpt.training.start import load_run_config
from latentpt.training.trainer import train
from tests.conftest import tiny_model
from tests.evaluation.test_command import write_shards
from tests.folders import BYTES_VOCAB, launch, write_checkpoint, write_run
from tests.training.small import losses, tiny_run, write_text_shards


def metrics(steps=30):
    """Lines as a training leaves them."""
    lines = []
    for step in range(1, steps + 1):
        shared = {"step": step, "tokens": 64 * step, "training_flops": 1e9 * step, "seconds": 1.5 * step}
        loss = None if step == 7 else 6 / math.sqrt(step)
        lines.append({"kind": "train", **shared, "loss": loss, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 900.0,
                      "mfu": None, "refinements": 1, "skipped": int(step >= 7), "residual/1": 0.1 / step, "time/data": 0.1,
                      "time/pass/1": 0.2, "time/pass/2": 0.2, "time/backward": 0.4})  # fmt: skip
        if step % 10 == 0:
            lines.append({"kind": "validation", **shared, "loss": 6 / math.sqrt(step), "loss/books": 3.0})
    return lines


@pytest.fixture
def run(tmp_path):
    size = {"vocab_size": BYTES_VOCAB}
    model = tiny_model("llama", torch.float32, size=size, method="latent", num_thoughts=1, refinements=1)
    folder = write_run(tmp_path / "<run>", model, write_shards(tmp_path / "data", 0))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    return folder


def page_of(run, **asked):
    return report(run, **asked).read_text()


def test_the_page_tells_all_and_needs_no_other_file(run):
    RunFolder(run).describe_run(load_run_config(run / "config.yaml"), "a chip", processes=4)
    keep_results(
        run / "evaluation",
        [Measurement("piqa", {"fewshot": 2}, "w", 7, Figures({"acc": 0.625}, {"acc": 0.05}, 80))],
    )
    (run / "evaluation" / "diagnostics-step-7-books-8x16.html").write_text("x")
    page = page_of(run)
    for said in (
        "not finished: step 30 of 16", "1.92 k tokens", "45 s of training", "1.0954 nats a token", "1 skipped",
        "llama, 2 layers of width 16", "latent, 1 a token, causal", "4 x a chip", "cores, ", "torch ", "Python 3",
        "<td>piqa</td><td>acc</td><td>0.6250</td><td>0.0500</td><td>80</td><td>7</td><td>fewshot 2</td>",
        'href="evaluation/diagnostics-step-7-books-8x16.html"', "thoughts.method", "&lt;run&gt;",
    ):  # fmt: skip
        assert said in page, said
    assert "<run>" not in page and "http" not in page
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]*)', page))
    assert all((run / link).exists() for link in re.findall(r'href="([^"]*)', page))
    assert image.imread(run / "report.png").shape[1] == 12 * 144


def test_the_model_writes_after_held_out_text_and_is_not_asked_twice(run, monkeypatch):
    page = page_of(run)
    kept = json.loads((run / "texts.json").read_text())["texts"]
    assert len(kept) == 3 and all(one["prompt"] and one["text"] for one in kept) and "▸" in page

    def never(*_):
        raise AssertionError("loaded again")

    with monkeypatch.context() as patch:
        patch.setattr(texts, "load_model", never)
        assert page_of(run) == page
        with pytest.raises(AssertionError, match="loaded again"):
            report(run, ["ab"])
    assert "ab ▸" in page_of(run, prompts=["ab"])
    model = tiny_model(
        "llama", torch.float32, seed=1, size={"vocab_size": BYTES_VOCAB}, method="latent", num_thoughts=1
    )
    write_checkpoint(run / "checkpoints", 9, {name: p.detach() for name, p in model.named_parameters()})
    page_of(run)
    assert json.loads((run / "texts.json").read_text())["texts"] != kept


def test_without_texts_the_page_keeps_those_that_are_there(run, monkeypatch, capsys):
    assert launch("report", monkeypatch, "--run", run, "--no-texts") == 0
    assert not (run / "texts.json").exists() and "What it writes" not in (run / "report.html").read_text()
    assert launch("report", monkeypatch, "--run", run, "--prompt", "ab") == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html")] * 2
    assert launch("report", monkeypatch, "--run", run, "--no-texts") == 0
    assert "ab ▸" in (run / "report.html").read_text()


def test_a_run_that_has_measured_nothing_or_has_no_tokenizer_has_a_page(run, tmp_path):
    (run / "metrics.jsonl").write_text("")
    (tmp_path / "data" / "tokenizer.json").unlink()
    page = page_of(run)
    assert "Nothing is measured yet." in page and "What it writes" not in page


def test_a_prompt_longer_than_a_learned_table_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    model = tiny_model("gpt2", torch.float32, size={"vocab_size": BYTES_VOCAB})
    folder = write_run(tmp_path / "run", model, write_shards(tmp_path / "data", 0))
    assert launch("report", monkeypatch, "--run", folder, "--prompt", "a" * 200) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a prompt cannot be continued: ") and error.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_a_folder_that_holds_no_run_is_refused(tmp_path, monkeypatch, capsys):
    assert launch("report", monkeypatch, "--run", tmp_path) == 2
    assert "is not the folder of a run: it has no config.yaml" in capsys.readouterr().err


def test_a_training_writes_its_page_when_it_stops_and_texts_when_it_ends(tmp_path, monkeypatch, capsys):
    write_text_shards(tmp_path / "text", 20_000)
    config = tiny_run(tmp_path / "run", tmp_path / "text", monitor={"report": True}, training={"stop_at": 3})
    asked = []
    whole = command.texts_of
    monkeypatch.setattr(command, "texts_of", lambda *more: asked.append(more) or whole(*more))
    train(config)
    page = config.folder.report.read_text()
    assert "not finished: step 3 of 8" in page and not asked
    train(tiny_run(tmp_path / "run", tmp_path / "text", monitor={"report": True}))
    page = config.folder.report.read_text()
    assert "finished: step 8 of 8" in page and len(asked) == 1
    assert f"page: {config.folder.report}" in capsys.readouterr().out
    assert len([line for line in read_metrics(config.folder.metrics) if line["kind"] != "changed"]) == 10


def test_gaps_stay_gaps_and_the_range_leaves_the_first_fall_out():
    lines = [line for line in metrics(100) if line["kind"] == "train"]
    x, losses = points(lines, "loss")
    assert len(x) == len(losses) == 100 and math.isnan(losses[6])
    assert math.isfinite(smoothed(losses)[6]) and smoothed(losses)[0] == losses[0]
    low, high = loss_range([losses])
    assert low < 0.6 < high < 6 / math.sqrt(9)
    assert loss_range([losses[6:7]]) == (None, None)


def test_what_is_shown_of_the_configuration_is_what_differs_from_the_defaults(run):
    found = changed(load_run_config(run / "config.yaml"))
    assert found["model.hidden_size"] == "16" and found["training.tokens"] == "1024"
    assert "optimizer.lr" not in found and "training.max_skipped" not in found


def test_the_times_of_all_passes_are_one_share_and_stand_on_one_another():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    draw_times(axes, metrics(2))
    tops = [max(path.vertices[:, 1].max() for path in area.get_paths()) for area in axes.collections]
    assert tops == pytest.approx([0.1, 0.5, 0.5, 0.9, 0.9, 0.9])
    plt.close(figure)


def test_a_training_is_asked_for_texts_on_its_way_and_learns_the_same(tmp_path, capsys):
    data = write_shards(tmp_path / "data", 0, tokens=2000)
    sections = {
        "data": {"train": str(data), "validation": str(data)},
        "model": {"vocab_size": BYTES_VOCAB, "max_positions": 16},
        "training": {"steps": 2},
    }
    asked = tiny_run(tmp_path / "asked", data, **sections, monitor={"texts_every": 1}, zero={"stage": 3})
    plain = tiny_run(tmp_path / "plain", data, **sections, zero={"stage": 3})
    train(asked)
    train(plain)
    found = [line for line in read_metrics(asked.folder.metrics) if line["kind"] == "text"]
    assert [(line["step"], line["number"]) for line in found] == [(s, n) for s in (1, 2) for n in (1, 2, 3)]
    assert all(line["prompt"] and isinstance(line["text"], str) for line in found)
    assert "writes " in capsys.readouterr().out
    assert losses(asked) == losses(plain)
