"""One of the ranks of test_ranks: python two_ranks.py DATA FOLDER."""

import sys
from pathlib import Path

from small import tiny_run

from latentpt.training.trainer import train

data, folder = map(Path, sys.argv[1:])
for stage in range(4):  # one training that changes its stage every other step
    train(tiny_run(folder / "all-stages", data, zero={"stage": stage}, training={"stop_at": 2 * stage + 2}))
train(tiny_run(folder / "handed-over", data, zero={"stage": 3}))
