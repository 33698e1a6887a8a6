"""Continue text with the model of a run, decoding exactly: every token is thought about slot by slot.

python launch/generate.py --run runs/X --prompt 'Once upon a time' --max-new-tokens 100 --temperature 0.8
"""

import argparse
import sys

from latentpt.config import ConfigError
from latentpt.data.errors import DataError


def arguments() -> argparse.Namespace:
    """The command line."""
    from latentpt.hub.source import add_device_argument, add_source_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_arguments(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue; several are decoded as one batch"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=100, metavar="N", help="tokens to add (default 100)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="divides the logits; 0 is greedy (default 0)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="sample among the K likeliest tokens (default: all)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P",
        help="sample among the fewest tokens whose probability reaches P in (0, 1] (default 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (default 0)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        from latentpt.generation.sampling import Sampling
        from latentpt.generation.text import Writer
        from latentpt.hub.source import open_source

        source = open_source(args)
        writer = Writer(source.model, source.tokenizer())
        sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
        prompts = args.prompt or [""]
        if len(prompts) == 1:
            print(prompts[0], end="", flush=True)
            writer.write(
                prompts, args.max_new_tokens, sampling, lambda _, text: print(text, end="", flush=True)
            )
            print()
            return 0
        texts = writer.write(prompts, args.max_new_tokens, sampling)
        print("\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)))
    except (ConfigError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
