"""One of the ranks of the tests with several: python two_ranks.py DATA FOLDER stages|ignoring|carried|feedback|matrix|STAGE,STOP."""

import sys
from pathlib import Path

from latentpt.training import trainer
from tests.training.small import CARRIED, FEEDBACK, OPTIONS, THINKING, sparse_targets, thinking_run, tiny_run

data, folder, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if what == "matrix":  # trainings that change their stage at every step
    for stage in range(4):
        training = {"stop_at": stage + 1}
        for name in THINKING:
            trainer.train(thinking_run(folder, data, name, stage, training=training, **OPTIONS.get(name, {})))
        low = {"precision": "bf16", **training}
        trainer.train(thinking_run(folder / "bf16", data, "jacobi", stage, training=low))
    sys.exit()
if "," in what:
    stage, stop_at = map(int, what.split(","))
    trainer.train(tiny_run(folder, data, zero={"stage": stage}, training={"stop_at": stop_at}))
    sys.exit()
runs = {"all-stages": CARRIED if what == "carried" else {"monitor": {"layers_every": 2}}}
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
