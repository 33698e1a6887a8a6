"""How far apart the first losses of one training are on 1, 2 and 4 processes, under every ZeRO stage, with every option.

    python -m tests.training.layouts FOLDER [--steps 50]

prints for fp32 and bf16 the largest relative difference from one process at stage 0 that computes all it needs once.
Trainings lie in FOLDER; those that are finished are not made again. test_ranks.py asks the same of four steps.
"""

import argparse
import os
import sys
from pathlib import Path

from tests.training.small import THINKING, finish, losses, start_ranks, thinking_run, write_text_shards

PROCESSES = (2, 1, 4)
"""In the order in which a training is handed over, each making a third of its steps."""
HANDED = {2: 2, 1: 1, 4: 3}
"""The ZeRO stage that each of them has there."""
OPTIONS = {
    "recomputed": (1, {"recompute": "block"}),
    "offloaded": (2, {"zero": {"offload_optimizer": "cpu"}}),
    "recomputed and offloaded": (3, {"recompute": "pass", "zero": {"offload_optimizer": "cpu"}}),
}
"""What two processes do differently at a stage."""
PRECISIONS = ("fp32", "bf16")
NAMES = [name for name in THINKING if name != "muon"]
MICRO_BATCH = {1: 4, 2: 4, 4: 2}
"""Of a global batch of 8: one process accumulates."""
HANDED_OVER = "2, then 1, then 4 processes"


def layouts(processes):
    """Name, stage, options and share of the steps of all that so many processes train."""
    counted = f"{processes} process" + "es" * (processes > 1)
    for stage in range(4):
        yield f"{counted}, ZeRO {stage}", stage, {}, 3
    if processes == 2:
        for name, (stage, options) in OPTIONS.items():
            yield f"{counted}, ZeRO {stage}, {name}", stage, options, 3
    yield HANDED_OVER, HANDED[processes], {}, 1 + PROCESSES.index(processes)


def run_of(folder, steps, precision, layout, stage, options, share, name, micro_batch=2):
    """A training, up to so many thirds of its steps, without validations."""
    training = {"steps": steps, "stop_at": steps * share // 3, "precision": precision}
    options = {
        **options,
        "training": {**training, "micro_batch": micro_batch},
        "validation": {"every": steps},
    }
    return thinking_run(folder / precision / layout, folder / "text", name, stage, **options)


def trained(run):
    """Whether it has been trained as far as it should."""
    return run.folder.metrics.exists() and run.training.stop_at in losses(run)


def train_all(folder, steps, processes):
    """What one of the processes does."""
    from latentpt.training.trainer import train

    for precision in PRECISIONS:
        for layout in layouts(processes):
            for name in NAMES:
                run = run_of(folder, steps, precision, *layout, name, MICRO_BATCH[processes])
                if not trained(run):
                    train(run)


def table(folder, steps, precision):
    """Layouts by kinds of thinking, in Markdown."""
    names = dict.fromkeys(layout[0] for processes in sorted(PROCESSES) for layout in layouts(processes))
    found = {
        (layout, name): losses(run_of(folder, steps, precision, layout, 0, {}, 3, name))
        for layout in names
        for name in NAMES
    }
    first = next(iter(names))
    lines = [f"| {precision} | " + " | ".join(NAMES) + " |", "|" + "---|" * (1 + len(NAMES))]
    for layout in names:
        cells = []
        for name in NAMES:
            alone, here = found[first, name], found[layout, name]
            assert [*here] == [*alone] == [*range(1, steps + 1)], (layout, name)
            cells.append(f"{max(abs(here[step] / alone[step] - 1) for step in alone):.0e}")
        lines.append(f"| {layout} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)  # of one of them
    arguments = parser.parse_args()
    folder, steps = arguments.folder.resolve(), arguments.steps
    if "RANK" in os.environ:
        train_all(folder, steps, arguments.processes)
        return
    if not (folder / "text").exists():
        write_text_shards(folder / "text", 100_000)
    for processes in PROCESSES:
        print(f"trainings of {processes} processes ..", file=sys.stderr)
        command = ("-m", "tests.training.layouts", folder, "--steps", steps, "--processes", processes)
        finish(start_ranks(processes, *command), seconds=7200)
    print("\n\n".join(table(folder, steps, precision) for precision in PRECISIONS))


if __name__ == "__main__":
    main()
