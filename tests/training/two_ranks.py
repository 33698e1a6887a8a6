"""One of the ranks of the tests with two: python two_ranks.py DATA FOLDER stages|ignoring|carried."""

import sys
from pathlib import Path

from latentpt.training import trainer
from tests.training.small import CARRIED, sparse_targets, tiny_run

data, folder = map(Path, sys.argv[1:3])
sections = CARRIED if sys.argv[3] == "carried" else {}
if sys.argv[3] == "ignoring":
    trainer.targets_of = sparse_targets
for stage in range(4):  # one training that changes its stage every other step
    stop = {"stop_at": 2 * stage + 2}
    run = tiny_run(folder / "all-stages", data, zero={"stage": stage}, training=stop, **sections)
    trainer.train(run)
if sys.argv[3] == "stages":
    trainer.train(tiny_run(folder / "handed-over", data, zero={"stage": 3}))
