"""Fine-tune a model to reason in continuous space: Coconut, Latent Thoughts Tuning and their controls.

    deepspeed launch/finetune.py --config configs/finetune/coconut-prosqa.yaml
    python launch/finetune.py --config ... training.micro_batch=4        one process, no launcher
    python launch/finetune.py --report runs/X                            whether its latents do anything, as a page
    python launch/finetune.py --ask runs/X --question '..'               or --data questions.json
    python launch/finetune.py --export runs/X --output hf/
    python launch/finetune.py --suite configs/finetune/demo.yaml         arms x seeds, one table, one page
    python launch/finetune.py --build task=symbolic_prosqa output=data/symbolic rows=[10000,300,500]

A run whose folder holds a checkpoint goes on from it. SIGTERM, SIGUSR1 or a file STOP in the folder have the state
saved after the current step, with exit code 0. The best checkpoint lies in FOLDER/best.
"""

import argparse
import sys
from pathlib import Path

from latentpt.config import ConfigError, describe, load_config, require_at_least, to_yaml
from latentpt.run.command import add_training_arguments, asked_start
from latentpt.run.exits import exit_code


def arguments() -> argparse.Namespace:
    """The command line."""
    from latentpt.finetuning.building import BuildConfig
    from latentpt.finetuning.config import FinetuneConfig
    from latentpt.finetuning.suite import SuiteConfig

    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"options of a run:\n{describe(FinetuneConfig)}\n\noptions of --build:\n{describe(BuildConfig)}\n\n"
        f"keys of --suite:\n{describe(SuiteConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="a fine-tuning in YAML")
    what.add_argument(
        "--build", action="store_true", help="make a data set instead; its options follow as key=value"
    )
    what.add_argument("--suite", metavar="FILE", help="several fine-tunings beside one another, in YAML")
    what.add_argument("--report", metavar="FOLDER", help="diagnose the best checkpoint of a run")
    what.add_argument("--ask", metavar="FOLDER", help="answer --question, or measure accuracy on --data")
    what.add_argument("--export", metavar="FOLDER", help="write the model for transformers to --output")
    parser.add_argument("--question", action="append", metavar="TEXT", help="of --ask; several are one batch")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="of --ask (default 64)")
    parser.add_argument("--output", metavar="FOLDER", help="of --export; it must not exist")
    parser.add_argument(
        "--data", metavar="FILE", help="questions of --ask, or of --report (default: the run's validation)"
    )
    parser.add_argument(
        "--rows", type=int, default=200, metavar="N", help="questions of --report (default 200)"
    )
    add_training_arguments(parser)
    return parser.parse_intermixed_args()


def use(asked: argparse.Namespace) -> str:
    """--ask and --export."""
    from latentpt.finetuning.use import ask, measure, open_reasoner, publish, sentence

    require_at_least(asked, max_new_tokens=1)
    if asked.export is not None:
        if asked.output is None:
            raise ConfigError("--export needs --output, a folder that does not exist yet")
        return publish(open_reasoner(asked.export), asked.output)
    if not asked.question and asked.data is None:
        raise ConfigError("--ask needs --question or --data")
    opened = open_reasoner(asked.ask)
    if asked.question:
        return "\n\n".join(ask(opened, asked.question, asked.max_new_tokens))
    return sentence(asked.data, measure(opened, asked.data, None, asked.max_new_tokens))


def main() -> int:
    asked = arguments()
    return exit_code(lambda: run(asked))


def run(asked: argparse.Namespace) -> None:
    """Do what was asked for."""
    if asked.build:
        from latentpt.finetuning import building

        task = load_config(building.BuildConfig, None, asked.overrides)
        print(*building.build(task), sep="\n")
        share = building.shortcut(task)
        if share is not None:
            print(f'"the option farther from its nearest entity" is right in {share:.1%} of the test rows')
    elif asked.ask is not None or asked.export is not None:
        print(use(asked))
    elif asked.suite is not None:
        from latentpt.finetuning.suite import SuiteConfig, run_suite

        print(run_suite(load_config(SuiteConfig, asked.suite, asked.overrides), Path(__file__).resolve()))
    elif asked.report is not None:
        from latentpt.finetuning.report import report

        require_at_least(asked, rows=2)
        found, page = report(asked.report, asked.data, asked.rows)
        print(f"{found.verdict}\n{page}")
    else:
        train(asked)


def train(asked: argparse.Namespace) -> None:
    """--config."""
    from latentpt.finetuning.config import load_finetune_config

    config = load_finetune_config(asked.config, asked.overrides)
    if asked.print_config:
        print(to_yaml(config), end="")
        return
    from latentpt.finetuning.trainer import finetune  # torch takes seconds to import: not for --help

    finetune(config, asked_start(asked))


if __name__ == "__main__":
    sys.exit(main())
