"""A soak, on what trainings leave behind and on processes of one line."""

import itertools
import json
import signal
import subprocess
import sys

import pytest
import torch

from latentpt.benchmark import soak
from latentpt.benchmark.soak import Fault, Outcome, Sample, Soak, Training, draw_faults, grown, growth
from latentpt.config import ConfigError
from latentpt.files import write_text
from latentpt.run import RunFolder
from tests.folders import write_checkpoint
from tests.training.small import tiny_run

FAULT = Fault(5, "rank", "KILL", 0.0, 1)


@pytest.fixture
def soaked(tmp_path):
    """A soak of two trainings that are alike."""
    made = Soak(tiny_run(tmp_path, tmp_path), tmp_path, "deepspeed", 2, [], 1, 5.0, print)
    for name in ("calm", "disturbed"):
        write_checkpoint(made.of(name).checkpoints, 2, {"a": torch.arange(6.0)})
        write_metrics(made.of(name), 0.25)
    return made


def write_metrics(folder, loss, more=""):
    lines = [
        {"kind": "train", "step": step, "loss": loss / step, "grad_norm": 1.0, "lr": 0.1} for step in (1, 2)
    ]
    write_text(folder.metrics, "".join(json.dumps(line) + "\n" for line in lines) + more)


def test_faults_follow_from_the_seed_and_every_signal_meets_every_process():
    given = (600, (10, 20), ("KILL", "TERM"), ("rank", "launcher", "runner"), 2)
    faults = draw_faults(3, *given)
    assert faults == draw_faults(3, *given) != draw_faults(4, *given)
    assert len({(fault.process, fault.signal) for fault in faults[:6]}) == 6
    steps = [0, *(fault.step for fault in faults)]
    assert all(10 <= b - a <= 20 for a, b in itertools.pairwise(steps)) and 580 <= steps[-1] < 600


def test_two_trainings_that_are_alike_do_not_differ(soaked):
    assert soaked.differences() == []


def test_a_loss_that_differs_in_its_last_bit_is_found(soaked):
    write_metrics(soaked.of("disturbed"), 0.25 + 2**-54)
    assert soaked.differences() == ["train differs from step 1 on"]


def test_a_step_that_is_missing_at_the_end_is_found(soaked):
    line = soaked.of("calm").metrics.read_text().splitlines()[0] + "\n"
    write_text(soaked.of("disturbed").metrics, line)
    assert soaked.differences() == ["train differs from step 2 on"]


def test_a_last_checkpoint_with_other_weights_is_found(soaked):
    write_checkpoint(soaked.of("disturbed").checkpoints, 3, {"a": torch.arange(6.0) + 1e-6})
    assert soaked.differences() == ["the last checkpoints differ"]


@pytest.mark.parametrize(
    ("outcome", "found"),
    [
        (Outcome(FAULT, 104, 20, 100, 1.0, 1, 0, []), ""),
        (Outcome(FAULT, 104, 120, 100, 1.0, 1, 0, []), "the checkpoint of step 120 is gone"),
        (Outcome(FAULT, 404, 20, 100, 1.0, 1, 0, []), "304 steps are lost"),
        (Outcome(FAULT, 104, 20, 100, 1.0, 1, 2, []), "2 processes were left after 5 s"),
    ],
)
def test_what_a_fault_may_cost_is_judged(soaked, outcome, found):
    assert [found] * bool(found) == [text.partition(": ")[2] for text in soaked.losses([outcome])]


def test_growth_is_that_from_the_first_quarter_to_the_end():
    flat = [
        Sample(step, 90.0 if step < 200 else 100.0 + step % 200 / 100, 20, 8, 4)
        for step in range(0, 2001, 100)
    ]
    assert grown(flat) == [] and abs(growth(flat)["rss_mib"]) <= 1
    leaking = [
        sample._replace(rss_mib=100 + sample.step / 100, handles=sample.step // 100) for sample in flat
    ]
    assert [text.split()[0] for text in grown(leaking)] == ["rss_mib", "handles"]


def test_a_soak_that_was_cut_off_knows_what_it_saw_and_takes_up_no_other(soaked):
    soaked.faults.append(FAULT)
    soaked.outcomes.append(Outcome(FAULT, 104, 20, 100, 1.0, 1, 0, [Sample(10, 90.5, 20, 8, 4)]))
    soaked.samples += [Sample(100, 91.0, 20, 8, 4)]
    soaked.keep()
    again = Soak(soaked.config, soaked.folder, "deepspeed", 2, [FAULT], 1, 5.0, print)
    again.take_up()
    assert (again.samples, again.outcomes) == (soaked.samples, soaked.outcomes)
    with pytest.raises(ConfigError, match="another configuration or seed"):
        Soak(soaked.config, soaked.folder, "deepspeed", 2, [], 1, 5.0, print).take_up()


def test_the_last_step_is_that_of_the_last_whole_line(soaked):
    folder = soaked.of("calm")
    write_metrics(folder, 0.25, '{"kind": "train", "step": 3')
    assert soak.last_step(folder) == 2
    assert soak.last_step(RunFolder(folder.path / "none")) == 0


def test_a_signal_is_sent_and_what_is_left_after_the_grace_is_ended_and_counted(soaked, monkeypatch):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    process.stdout.readline()
    training = Training(soaked.of("calm"), process)
    outcome = soak.disturb(training, FAULT._replace(process="runner", signal="TERM"), grace=1.0)
    assert outcome.exit_code == -signal.SIGTERM and outcome.left == 1
    assert (outcome.step, outcome.saved_before, outcome.lost) == (2, 2, 0)
