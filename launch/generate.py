"""Continue text with the model of a run, decoding exactly: every token is thought about slot by slot.

python launch/generate.py --run runs/X --prompt 'Once upon a time' --max-new-tokens 100 --temperature 0.8
"""

import argparse
import sys

from latentpt.config import ConfigError
from latentpt.data.errors import DataError


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of a run")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of that step (default: the latest)")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, .model or shard folder (default: that of the run's data)",
    )
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
    parser.add_argument(
        "--device", default=None, metavar="NAME", help="cpu or cuda (default: cuda if there is one)"
    )
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        import torch

        from latentpt.generation.sampling import Sampling
        from latentpt.generation.text import Writer, find_tokenizer
        from latentpt.run import load_model

        model, config = load_model(args.run, args.step)
        trained_on = config.data.train if isinstance(config.data.train, list) else [config.data.train]
        places = [args.tokenizer] if args.tokenizer else [args.run, *trained_on, config.data.validation]
        tokenizer = find_tokenizer(places, model)
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        writer = Writer(model.to(device), tokenizer)
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
