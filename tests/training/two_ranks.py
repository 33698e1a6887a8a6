"""One of the ranks of test_ranks: python two_ranks.py DATA FOLDER."""

import sys
from pathlib import Path

from runs import tiny_run

from latentpt.training.trainer import train

data, folder = map(Path, sys.argv[1:])
for stage in range(4):  # every run changes its stage half-way
    train(tiny_run(folder / f"stage{stage}", data, zero={"stage": stage}, training={"stop_at": 4}))
    train(tiny_run(folder / f"stage{stage}", data, zero={"stage": (stage + 2) % 4}))
train(tiny_run(folder / "handed-over", data, zero={"stage": 3}))
