"""One of the ranks of the tests with several: python two_ranks.py DATA FOLDER stages|ignoring|carried|matrix|STAGE,STOP."""

import sys
from pathlib import Path

from latentpt.training import trainer
from tests.training.small import CARRIED, MATRIX, matrix_run, sparse_targets, tiny_run

data, folder = map(Path, sys.argv[1:3])
if sys.argv[3] == "matrix":  # trainings that change their stage at every step
    for name in MATRIX:
        for stage in range(4):
            trainer.train(matrix_run(folder, data, name, stage, stop_at=stage + 1))
    sys.exit()
if "," in sys.argv[3]:
    stage, stop_at = map(int, sys.argv[3].split(","))
    trainer.train(tiny_run(folder, data, zero={"stage": stage}, training={"stop_at": stop_at}))
    sys.exit()
sections = CARRIED if sys.argv[3] == "carried" else {}
if sys.argv[3] == "ignoring":
    trainer.targets_of = sparse_targets
for stage in range(4):  # one training that changes its stage every other step
    stop = {"stop_at": 2 * stage + 2}
    run = tiny_run(folder / "all-stages", data, zero={"stage": stage}, training=stop, **sections)
    trainer.train(run)
if sys.argv[3] == "stages":
    trainer.train(tiny_run(folder / "handed-over", data, zero={"stage": 3}))
