"""Reasons to end a training early, in one process; test_interruptions has several."""

import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentpt.config import ConfigError
from latentpt.training.guard import LossWatch, SkippedSteps, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_reason_to_stop_and_handlers_are_restored(number, tmp_path, monkeypatch):
    if number == signal.SIGHUP:  # as if these tests were not run under nohup
        monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    before = signal.getsignal(number)
    with StopSignals(tmp_path / "STOP") as signals:
        assert signals.reason() is None
        os.kill(os.getpid(), number)
        assert signals.reason() == number.name
    monkeypatch.undo()
    assert signal.getsignal(number) in (before, signal.SIG_IGN)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with StopSignals(tmp_path / "STOP"), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_file_named_stop_is_a_reason_to_stop(tmp_path):
    with StopSignals(tmp_path / "STOP") as signals:
        assert signals.reason() is None
        (tmp_path / "STOP").touch()
        assert signals.reason() == "file STOP"


def test_skipped_steps_are_counted_over_a_resume_and_too_many_in_a_row_end_the_training():
    skips = SkippedSteps(limit=3)
    for step, applied in enumerate([False, True, False, False], start=1):
        skips.count(step, applied)
    resumed = SkippedSteps(3, skips.total, skips.in_a_row)
    with pytest.raises(ConfigError, match="last 3 steps were not finite; the last finite step was 2"):
        resumed.count(5, applied=False)
    assert resumed.total == 4


@given(st.integers(0, 1000), st.floats(0.5, 10), st.floats(0, 0.01))
def test_a_falling_noisy_loss_is_no_spike_and_twice_the_loss_is_one(seed, start, noise):
    random = np.random.default_rng(seed)
    watch = LossWatch()
    for step in range(200):
        assert not watch.observe(start * (1 + 5 / (5 + step)) * (1 + noise * random.standard_normal()))
    for _ in range(3):
        begins, mean = watch.observe(3 * start), watch.mean
    assert watch.high and not begins and mean < 1.5 * start
    assert not watch.observe(start) and not watch.high
    assert watch.observe(float("nan")) and watch.high
