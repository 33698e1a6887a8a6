"""What a training writes down."""

import json
import time

import pytest
import torch

from latentpt.training.monitor import Clock, Monitor, peak_flops
from latentpt.training.sinks import TensorBoard

TRAIN = {"kind": "train", "step": 5, "tokens": 50, "training_flops": 1e9, "seconds": 2.0, "loss": 3.25,
         "grad_norm": 0.5, "lr": 1e-3, "tokens_per_second": 25.0, "mfu": 0.41, "refinements": 2, "skipped": 0}  # fmt: skip


def test_a_record_is_a_json_line_a_tensorboard_event_and_a_plain_line(tmp_path, capsys):
    sinks = [TensorBoard(tmp_path / "events", 0, {"optimizer": {"lr": 0.5, "betas": [0.9, 0.95]}})]
    with Monitor(tmp_path / "metrics.jsonl", sinks, done=0, total=10) as monitor:
        monitor.record(TRAIN)
        monitor.record({"kind": "validation", "step": 5, "loss": 3.5})
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == TRAIN and second["loss"] == 3.5
    out = capsys.readouterr().out
    assert "step       5/10 ( 50 %)  loss 3.2500" in out and "MFU 41.0 %" in out and " left" in out
    assert "validation loss 3.5000" in out

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert events.Scalars("train/loss")[0].value == 3.25
    assert events.Scalars("validation/loss")[0].step == 5


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    with Monitor(tmp_path / "metrics.jsonl", [], 0, 10) as monitor:
        monitor.record(TRAIN | {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 1})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None and line["grad_norm"] is None and line["skipped"] == 1


def test_a_terminal_gets_a_progress_bar_with_the_latest_values(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with Monitor(tmp_path / "metrics.jsonl", [], done=4, total=10) as monitor:
        monitor.advance()
        monitor.record(TRAIN)
    captured = capsys.readouterr()
    assert "5/10" in captured.err and "loss 3.2500" in captured.err
    assert "loss" not in captured.out


def test_the_clock_stands_still_while_something_else_is_done():
    clock = Clock(100.0)
    time.sleep(0.02)
    with clock:
        before = clock.seconds
        time.sleep(0.05)
        assert clock.seconds == before
    assert 100.02 <= clock.seconds < before + 0.05


def test_peak_flops_are_known_where_configured_and_unknown_on_a_cpu():
    assert peak_flops(torch.device("cpu"), "bf16", 2.5) == 2.5e12
    assert peak_flops(torch.device("cpu"), "bf16", None) is None


def test_a_full_disk_under_the_metrics_is_told_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with Monitor(tmp_path / "metrics.jsonl", [], 0, 10) as monitor:
        for step in (1, 2):
            monitor.record({"kind": "validation", "step": step, "loss": 1.0})
    told = capsys.readouterr()
    assert told.err.count("metrics.jsonl cannot be written") == 1 and "the training goes on" in told.err
    assert told.out.count("validation loss 1.0000") == 2
