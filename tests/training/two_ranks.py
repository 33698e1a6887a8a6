"""One of the ranks of the tests with several: python two_ranks.py DATA FOLDER stages|ignoring|carried|feedback|matrix|STAGE,STOP."""

import sys
from pathlib import Path

from latentpt.training import trainer
from tests.training.small import CARRIED, FEEDBACK, MATRIX, matrix_run, sparse_targets, tiny_run

data, folder, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if what == "matrix":  # trainings that change their stage at every step
    for name in MATRIX:
        for stage in range(4):
            trainer.train(matrix_run(folder, data, name, stage, stop_at=stage + 1))
    sys.exit()
if "," in what:
    stage, stop_at = map(int, what.split(","))
    trainer.train(tiny_run(folder, data, zero={"stage": stage}, training={"stop_at": stop_at}))
    sys.exit()
runs = {"all-stages": CARRIED if what == "carried" else {}}
if what == "feedback":
    runs = {
        name: {"model": {"num_layers": 3}, "thoughts": thoughts, "training": {"steps": 8}}
        for name, thoughts in FEEDBACK.items()
    }
if what in ("ignoring", "feedback"):
    trainer.targets_of = sparse_targets
for name, sections in runs.items():
    for stage in range(4):  # one training that changes its stage every other step
        training = {**sections.get("training", {}), "stop_at": 2 * stage + 2}
        run = {**sections, "zero": {"stage": stage}, "training": training}
        trainer.train(tiny_run(folder / name, data, **run))
if what == "stages":
    trainer.train(tiny_run(folder / "handed-over", data, zero={"stage": 3}))
