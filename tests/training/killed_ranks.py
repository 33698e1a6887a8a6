"""Two ranks of one training, one of which is killed again and again: python killed_ranks.py DATA FOLDER KILLS SEED

Everything is imported once and the ranks are forked from there, so that a start takes a second. First FOLDER/whole is trained
undisturbed, then FOLDER/killed. Prints a line of JSON for each kill.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import latentpt  # noqa: F401 before torch

# isort: split
import deepspeed  # noqa: F401 takes seconds

from latentpt.run.checkpoints import committed, step_of
from latentpt.training.trainer import train
from tests.training.small import free_port, tiny_run

STEPS = 60


def run_of(folder, data):
    """Saved after every step, so that many kills come in the middle of a save."""
    training = {"steps": STEPS, "batch_samples": 4}
    return tiny_run(folder, data, training=training, checkpoint={"every": 1}, validation={"every": STEPS})


def start(config):
    """Fork both ranks; returns their process ids."""
    port, ranks = str(free_port()), []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
            code = 1
            try:
                train(config)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ranks.append(child)
    return ranks


def saved(config):
    """Step of the newest checkpoint."""
    found = committed(config.folder.checkpoints)
    return step_of(found[-1]) if found else 0


def wait(ranks, seconds=60.0):
    """Exit codes of both; -9 for one that had to be killed after so long."""
    codes, end = {}, time.monotonic() + seconds
    while len(codes) < len(ranks):
        for rank in set(ranks) - codes.keys():
            found, status = os.waitpid(rank, os.WNOHANG)
            if found:
                codes[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(rank, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[rank] for rank in ranks]


def main(data, folder, kills, seed):
    chance = random.Random(seed)
    assert wait(start(run_of(folder / "whole", data)), 300) == [0, 0]
    config = run_of(folder / "killed", data)
    for _ in range(kills):
        ranks, before = start(config), saved(config)
        target = min(before + chance.randint(1, 3), STEPS - 2)
        while saved(config) < target:
            time.sleep(0.01)
            assert os.waitpid(ranks[0], os.WNOHANG)[0] == 0, "rank 0 ended by itself"
        time.sleep(chance.uniform(0, 0.3))
        victim, newest, began = chance.randrange(2), saved(config), time.monotonic()
        os.kill(ranks[victim], signal.SIGKILL)
        codes = wait(ranks)
        event = {
            "rank": victim,
            "saved": newest,
            "after": saved(config),
            "seconds": time.monotonic() - began,
            "other": codes[1 - victim],
        }
        print(json.dumps(event), flush=True)
    assert wait(start(config), 300) == [0, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
