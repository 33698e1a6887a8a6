"""Pretrain a model.

    deepspeed launch/pretrain.py --config configs/pythia-410m-latent1.yaml data.train=data/pile optimizer.lr=3e-4
    python launch/pretrain.py --config ...                 one process, no launcher
    python launch/pretrain.py --config configs/continue.yaml training.start_from=hf/pythia-70m data.train=data/pile

A training whose folder holds a checkpoint goes on from it. SIGTERM, SIGUSR1 or a file STOP in the folder have the
state saved after the current step, with exit code 0; so do SIGINT and, without nohup, SIGHUP. Exit code 1: diverged, or ended by
a silent rank; 2: input that cannot work.
"""

import argparse
import sys

from latentpt.config import describe, to_yaml
from latentpt.run import RunConfig
from latentpt.run.command import add_training_arguments, asked_start
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
    arguments = parser.parse_intermixed_args()
    return exit_code(lambda: pretrain(arguments))


def pretrain(arguments: argparse.Namespace) -> None:
    """Do what was asked for."""
    config = load_run_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from latentpt.training.trainer import train  # torch takes seconds to import: not for --help

    train(config, asked_start(arguments))


if __name__ == "__main__":
    sys.exit(main())
