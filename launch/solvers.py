"""Print how far each solver is from exact decoding on a run's checkpoint, pass by pass.

python launch/solvers.py --run runs/X --samples 8
"""

import argparse
import sys

from latentpt.config import ConfigError, require_at_least
from latentpt.run.exits import exit_code


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="folder of a run with causal latent thoughts"
    )
    parser.add_argument("--step", type=int, help="optimizer step of the checkpoint (default: the latest)")
    parser.add_argument("--samples", type=int, default=8, help="held-out samples to measure on (default: 8)")
    parser.add_argument("--sweeps", type=int, default=4, help="largest number of refinements (default: 4)")
    arguments = parser.parse_args()
    return exit_code(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Load, measure, print."""
    require_at_least(arguments, samples=1, sweeps=0)
    from latentpt.data.batches import validation_batches
    from latentpt.data.opening import open_validation
    from latentpt.evaluation.solver_error import solver_errors, table
    from latentpt.run import load_model

    model, config = load_model(arguments.run, arguments.step)
    held_out = next(iter(open_validation(config.data).values()))
    tokens = next(iter(validation_batches(held_out, arguments.samples, arguments.samples)))
    thoughts = config.thoughts
    tokens = tokens.to(next(model.parameters()).device)
    trained_with = f"{thoughts.solver}, K = {thoughts.refinements}, {thoughts.num_thoughts} thoughts"
    try:
        errors = solver_errors(model, tokens, arguments.sweeps)
    except ValueError as error:  # nothing to solve
        raise ConfigError(str(error)) from None
    print(table(errors, trained_with))


if __name__ == "__main__":
    sys.exit(main())
