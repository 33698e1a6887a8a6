"""Pretrain a model.

    deepspeed launch/pretrain.py --config configs/pythia-410m-latent1.yaml data.train=data/pile optimizer.lr=3e-4
    python launch/pretrain.py --config ...                 one process, no launcher

A training whose folder holds a checkpoint goes on from it. SIGTERM, SIGUSR1 or a file STOP in the folder have the
state saved after the current step, with exit code 0; so do SIGINT and, without nohup, SIGHUP.
"""

import argparse
import os
import sys

from latentpt.config import ConfigError, describe, to_yaml
from latentpt.data.errors import DataError
from latentpt.run import RunConfig, load_run_config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="options of a run:\n" + describe(RunConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a run in YAML")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="override an option of the run"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and exit"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="go on from a checkpoint; an error if there is none"
    )
    start.add_argument(
        "--fresh", action="store_true", help="begin anew; the folder's old content is set aside"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="go on from the checkpoint of step N; later ones are set aside"
    )
    parser.add_argument(
        "--other-data", action="store_true", help="go on although the data are not those it was begun with"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher's
    arguments = parser.parse_intermixed_args()
    try:
        config = load_run_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(to_yaml(config), end="")
            return 0
        from latentpt.training.trainer import train  # torch takes seconds to import: not for --help

        start = "resume" if arguments.resume else "fresh" if arguments.fresh else "auto"
        train(config, start, arguments.step, arguments.other_data)
    except (ConfigError, DataError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
