"""Measure the training step or decoding, or estimate a run before it is trained.

    python launch/bench.py --config configs/pythia-70m-latent1.yaml --estimate --devices 8 --device H100 --mfu 0.4
    python launch/bench.py --sizes
    python launch/bench.py --config configs/pythia-31m.yaml thoughts.method=latent thoughts.num_thoughts=1
    python launch/bench.py --config configs/llama-410m-latent1.yaml --decode 256 --prompt-tokens 32
    python launch/bench.py --run runs/X --thresholds 0,0.1,0.3,0.5 --rows 8
    PYTHONPATH=folder-with-transformers-4.46.1 python launch/bench.py --config ... --reference checkout-of-PonderLM-2

The measurement times forward and backward by every solver, side by side in one process; with --reference also the
published implementation, with the same weights and batch, after checking that loss and gradients are equal. With
--decode it times greedy decoding and the reading of prompts instead, after checking that all ways write the same tokens.
With --thresholds it shows what a trained model loses and saves when tokens stop thinking early, on its held-out text.
"""

import argparse
import sys
from pathlib import Path

from latentpt.config import ConfigError, require_at_least
from latentpt.run.command import add_device_arguments
from latentpt.run.exits import exit_code
from latentpt.training.start import load_run_config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="a run in YAML")
    what.add_argument("--run", metavar="FOLDER", help="a trained run, for --thresholds")
    what.add_argument(
        "--sizes",
        action="store_true",
        help="print what Pythia's sizes take, plain and thinking; minutes, nothing is run",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="override an option of the run"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="print time, memory and the largest micro-batch; run nothing"
    )
    parser.add_argument(
        "--decode", type=int, metavar="N", help="time the decoding of N tokens, not the training step"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=512,
        metavar="N",
        help="tokens of --decode's prompt (default: 512)",
    )
    parser.add_argument(
        "--thresholds",
        metavar="SHARES",
        help="shares of a token, comma-separated: loss, thoughts and decoding time of --run below each",
    )
    parser.add_argument(
        "--samples", type=int, default=64, help="held-out samples of --thresholds' loss (default: 64)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="samples in the timed batch (default: training.micro_batch; 1 with --decode and --thresholds)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="checkout of the published code to measure beside ours"
    )
    add_device_arguments(parser)
    arguments = parser.parse_intermixed_args()
    return exit_code(lambda: bench(arguments))


def bench(arguments: argparse.Namespace) -> None:
    """Measure or estimate."""
    require_at_least(
        arguments,
        devices=1,
        memory=0.001,
        mfu=0.0001,
        price=0,
        rows=1,
        samples=1,
        repeats=1,
        threads=1,
        decode=1,
        prompt_tokens=1,
    )
    if arguments.sizes:
        from latentpt.benchmark.sizes import table

        for line in table():
            print(line, flush=True)
        return
    if (arguments.run is None) != (arguments.thresholds is None):
        raise ConfigError("--run and --thresholds belong together; everything else measures a --config")
    if arguments.run is not None:
        thresholds(arguments)
        return
    config = load_run_config(arguments.config, arguments.overrides)
    if arguments.estimate:
        from latentpt.benchmark.dry_run import Where, estimated

        where = Where(arguments.devices, arguments.device, arguments.memory, arguments.mfu, arguments.price)
        print(estimated(config, where))
    else:
        (measure if arguments.decode is None else decode)(config, arguments)


def measure(config, arguments) -> None:
    """Time the step on the GPU if there is one, else on the CPU."""
    import torch

    from latentpt.benchmark.step import run
    from latentpt.training.monitor import peak_flops

    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    low = config.training.precision == "bf16"
    peak = peak_flops(torch.device(device), config.training.precision, config.monitor.peak_tflops)
    rows, length = arguments.rows or config.training.micro_batch, config.data.sequence_length
    print(
        f"{rows} samples of {length} tokens, {config.training.precision}, {device}, torch {torch.__version__}"
    )
    if arguments.reference is None:
        print("the published code is not measured: name a checkout with --reference")
    print(
        run(
            config.model, config.thoughts, rows, length, arguments.repeats, device,
            torch.bfloat16 if low else torch.float32, arguments.reference, peak and peak / 1e12,
        )
    )  # fmt: skip


def decode(config, arguments) -> None:
    """Time decoding and prefill on the GPU if there is one, else on the CPU."""
    import torch

    from latentpt.benchmark.decoding import run

    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"float32, {device}, torch {torch.__version__}")
    if arguments.reference is None:
        print("the published code is not measured: name a checkout with --reference")
    print(
        run(
            config.model, config.thoughts, arguments.rows or 1, arguments.prompt_tokens, arguments.decode, device,
            arguments.reference,
        )
    )  # fmt: skip


def thresholds(arguments) -> None:
    """Loss, thoughts and decoding time of a run at each threshold, on the GPU if there is one, else on the CPU."""
    import torch

    from latentpt.benchmark.stopping import measure_thresholds, stopping_table
    from latentpt.data.batches import validation_batches
    from latentpt.data.opening import open_validation
    from latentpt.run import load_model

    try:
        shares = [float(share) for share in arguments.thresholds.split(",")]
    except ValueError:
        raise ConfigError(
            f"--thresholds {arguments.thresholds} must be numbers with commas between, such as 0,0.1,0.5"
        ) from None
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, config = load_model(arguments.run)
    held_out = next(iter(open_validation(config.data).values()))
    rows = min(arguments.rows or 1, held_out.num_samples)
    batches = list(validation_batches(held_out, max(rows, 16), max(rows, arguments.samples)))
    print(
        f"float32, {device}, torch {torch.__version__}; loss on {sum(map(len, batches))} samples of "
        f"{config.data.sequence_length} tokens, decoding of {rows} at a time"
    )
    print(stopping_table(measure_thresholds(model.to(device), batches, shares, rows)))


if __name__ == "__main__":
    sys.exit(main())
