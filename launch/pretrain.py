"""Pretrain a model.

    deepspeed launch/pretrain.py --config configs/pythia-410m-latent1.yaml data.train=data/pile optimizer.lr=3e-4
    python launch/pretrain.py --config ...                 one process, no launcher
    python launch/pretrain.py --config configs/continue.yaml training.start_from=hf/pythia-70m data.train=data/pile
    python launch/pretrain.py --config configs/demo.yaml --dry-run                 look at everything, train nothing
    python launch/pretrain.py --config configs/demo.yaml --find-micro-batch        the fastest micro-batch that fits

A training whose folder holds a checkpoint goes on from it. SIGTERM, SIGUSR1 or a file STOP in the folder have the
state saved after the current step, with exit code 0; so do SIGINT and, without nohup, SIGHUP. Exit code 1: diverged, or ended by
a silent rank; 2: input that cannot work.
"""

import argparse
import os
import sys

from latentpt.config import ConfigError, describe, require_at_least, to_yaml
from latentpt.run import RunConfig
from latentpt.run.command import add_device_arguments, add_training_arguments, asked_start
from latentpt.run.exits import exit_code
from latentpt.training.start import load_run_config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="options of a run:\n" + describe(RunConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a run in YAML")
    add_training_arguments(parser)
    before = parser.add_mutually_exclusive_group()
    before.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that a training needs, print what it will read and take, and exit; nothing is written",
    )
    before.add_argument(
        "--find-micro-batch",
        action="store_true",
        help="try growing micro-batches in real steps, print speed and memory of each, and exit; nothing is written",
    )
    add_device_arguments(parser)
    arguments = parser.parse_intermixed_args()
    return exit_code(lambda: pretrain(arguments))


def pretrain(arguments: argparse.Namespace) -> None:
    """Do what was asked for."""
    config = load_run_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    require_at_least(arguments, devices=1, memory=0.001, mfu=0.0001, price=0)
    # torch takes seconds to import: not for --help
    if arguments.dry_run:
        from latentpt.benchmark.dry_run import Where, dry_run

        where = Where(arguments.devices, arguments.device, arguments.memory, arguments.mfu, arguments.price)
        print_once(dry_run(config, asked_start(arguments), where))
    elif arguments.find_micro_batch:
        from latentpt.benchmark.trial import find_micro_batch

        find_micro_batch(config, asked_start(arguments), arguments.memory, print_once)
    else:
        refuse_unused(arguments)
        from latentpt.training.trainer import train

        train(config, asked_start(arguments))


def print_once(text: str) -> None:
    """Print, in one of the ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def refuse_unused(arguments: argparse.Namespace) -> None:
    """Refuse options that only speak of a training before it is begun."""
    for name in ("devices", "device", "memory", "mfu", "price"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} belongs to --dry-run; a training takes what is here")


if __name__ == "__main__":
    sys.exit(main())
