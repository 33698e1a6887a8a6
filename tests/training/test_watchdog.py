"""Ranks that nobody waits for any more, or that nobody can wait for."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch.distributed as dist

from latentpt.run import checkpoints
from latentpt.training import watchdog
from latentpt.training.trainer import train
from latentpt.training.watchdog import SignsOfLife, Watchdog
from tests.training.small import environment, free_port, losses, tiny_run
from tests.training.test_interruptions import PRETRAIN, wait_for_lines, write_config

LONG = {"training": {"steps": 2000, "batch_samples": 4}, "validation": {"every": 2000}}


def test_a_rank_without_signs_of_life_is_named_and_one_that_lives_is_not():
    signs = SignsOfLife(2, silence=10, patience=100)
    for now in range(30):
        problem = signs.judge({0: f"{now} {now} step {now}", 1: f"{min(now, 5)} 3 step 3"}, float(now))
        assert bool(problem) == (now > 15)
    assert (
        problem
        == "rank 1 has been silent for 24 seconds, last at step 3: it is suspended or its machine is gone"
    )


def test_nobody_is_to_blame_when_the_whole_job_was_suspended():
    signs = SignsOfLife(2, silence=10, patience=100)
    for now in (0.0, 1.0, 500.0, 501.0):
        assert not signs.judge({0: f"{now} 1 step 1", 1: "0 1 step 1"}, now)


def test_ranks_that_live_but_do_not_get_on_are_told_by_the_one_furthest_behind():
    signs = SignsOfLife(2, silence=10, patience=100)
    for now in range(102):
        problem = signs.judge({0: f"{now} 7 step 3", 1: f"{now} 6 step 2"}, float(now))
        assert bool(problem) == (now > 100)
    assert problem == "no rank has got on for 100 seconds; furthest behind is rank 1, at step 2"


def test_no_thread_of_a_watchdog_outlives_it(monkeypatch):
    """One that came back from the store while the interpreter ended aborted a rank that had done its work."""
    asked, before = threading.Event(), set(threading.enumerate())

    def slow(_):
        asked.set()
        time.sleep(0.5)

    monkeypatch.setattr(Watchdog, "_exchange", slow)
    monkeypatch.setattr(watchdog, "BEAT", 0.01)
    monkeypatch.setattr(watchdog.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(watchdog.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(watchdog.dist.distributed_c10d, "_get_default_store", dist.HashStore)
    with Watchdog(10, 100, lambda: None):
        assert asked.wait(10)
    assert set(threading.enumerate()) <= before


def start_pair(config, path, **environment_variables):
    """Two ranks without a launcher: what one of them does the other sees through the network alone."""
    port = str(free_port())
    command = [sys.executable, PRETRAIN, "--config", write_config(config, path)]
    return [
        subprocess.Popen(
            command,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("suspended", [0, 1])
def test_a_suspended_rank_is_named_and_the_other_ends_in_time(suspended, text, tmp_path):
    config = tiny_run(tmp_path / "run", text, **{**LONG, "training": LONG["training"] | {"silence": 4.0}})
    ranks = start_pair(config, tmp_path / "run.yaml")
    try:
        wait_for_lines(config, 5, ranks[0])
        ranks[suspended].send_signal(signal.SIGSTOP)
        output, _ = ranks[1 - suspended].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[1 - suspended].returncode == 1
    assert f"error: rank {suspended} " in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_when_the_launcher_ends_the_ranks_save_and_leave_no_process(number, text, tmp_path):
    config = tiny_run(tmp_path / "run", text, **LONG)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    command += ["--master_port", str(free_port()), PRETRAIN]
    command += ["--config", write_config(config, tmp_path / "run.yaml")]
    log = (tmp_path / "log").open("w")
    runner = subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    wait_for_lines(config, 5, runner)
    assert runner.poll() is None, (tmp_path / "log").read_text()
    below = psutil.Process(runner.pid).children(recursive=True)
    os.kill(runner.pid, number)
    runner.wait(60)
    _, alive = psutil.wait_procs(below, timeout=60)
    for process in alive:
        process.kill()
    assert not alive, (tmp_path / "log").read_text()
    step = checkpoints.step_of(checkpoints.find(config.folder.checkpoints))
    assert step >= 5, (tmp_path / "log").read_text()
    short = {"training": {"steps": 2000, "batch_samples": 4, "stop_at": step + 2}}
    train(tiny_run(tmp_path / "run", text, **LONG | short))
    assert len(losses(config)) == step + 2


# A rank whose steps take four seconds: longer than it takes to see that the store of torchrun has ended with it.
SLOW_STEPS = """
import sys, time
from pathlib import Path
from tests.training.small import tiny_run
from latentpt.training import trainer
loss = trainer.training_loss
trainer.training_loss = lambda *given: time.sleep(4) or loss(*given)
sections = {"training": {"steps": 50, "batch_samples": 4}, "validation": {"every": 50}}
trainer.train(tiny_run(Path(sys.argv[2]), Path(sys.argv[1]), **sections))
"""


@pytest.mark.slow
def test_when_torchrun_is_killed_the_ranks_save_although_their_store_ended_with_it(text, tmp_path):
    config = tiny_run(tmp_path / "run", text)
    script = tmp_path / "rank.py"
    script.write_text(SLOW_STEPS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), script, text, config.folder.path]
    log = (tmp_path / "log").open("w")
    runner = subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    wait_for_lines(config, 1, runner)
    ranks = psutil.Process(runner.pid).children(recursive=True)
    runner.kill()
    runner.wait(60)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    for process in alive:
        process.kill()
    assert not alive, (tmp_path / "log").read_text()
    assert "(end of the launcher); run again to go on" in (tmp_path / "log").read_text()
    assert checkpoints.committed(config.folder.checkpoints)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["python", "-u", "-m", "deepspeed.launcher.launch", "--node_rank=0"], True),
        (["/env/bin/python", "/env/bin/torchrun", "train.py"], True),
        (["/envs/deepspeed/bin/python", "launch/compare.py"], False),
        (["sh", "-c", "cd deepspeed && python launch/pretrain.py"], False),
    ],
)
def test_a_launcher_is_known_by_its_command_not_by_a_word_in_a_path(command, found, monkeypatch):
    parent = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.setattr(watchdog.psutil, "Process", lambda: SimpleNamespace(parents=lambda: [parent]))
    assert bool(watchdog.launchers()) == found
