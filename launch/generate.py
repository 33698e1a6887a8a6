"""Continue text, decoding exactly: every token is thought about slot by slot.

    python launch/generate.py --run runs/X --prompt 'Once upon a time' --temperature 0.8
    python launch/generate.py --model hf/ --file prompts.jsonl --output texts.jsonl --max-new-tokens 200
    python launch/generate.py --run runs/X                       a conversation, when started on a terminal
    python launch/generate.py --run runs/FINETUNED --prompt 'a question'     its latents are thought, greedily

    echo 'Once upon a time' | python launch/generate.py --run runs/X
    python launch/generate.py --model stories260K.bin --tokenizer tok512.model --bos --prompt 'Once'

--file takes one JSON object a line with a "prompt" (or "ids") and perhaps a "seed"; the same lines come out in their order
with a "text", and with --show-thoughts also with "thoughts". Lines are printed as they are found; with --output they lie in
JSONL.partial until the last one is there, and the same command goes on behind them.
"""

import argparse
import sys
import warnings

from latentpt.config import ConfigError
from latentpt.run.exits import exit_code


def arguments() -> argparse.Namespace:
    """The command line."""
    from latentpt.hub.source import add_device_argument, add_source_arguments, add_threshold_argument

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_arguments(parser)
    add_device_argument(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue; several are one batch"
    )
    what.add_argument("--ids", action="append", metavar="IDS",
                      help="the same as ids between commas, such as 1,403,407; nothing is put before them")  # fmt: skip
    what.add_argument("--file", metavar="JSONL", help="prompts, one JSON object a line")
    parser.add_argument("--bos", nargs="?", const="", metavar="TOKEN",
                        help="begin every text with a token, by its text or id (default: the one that the tokenizer "
                        "names, else the one that ends documents)")  # fmt: skip
    parser.add_argument(
        "--output", metavar="JSONL", help="where --file's results go (default: standard output)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="prompts of --file at once (default 16)"
    )
    parser.add_argument("--show-thoughts", type=int, nargs="?", const=5, default=0, metavar="N",
                        help="show every slot's norm and N likeliest tokens, through the head (N: default 5)")  # fmt: skip

    how = parser.add_argument_group("how tokens are chosen")
    how.add_argument(
        "--max-new-tokens", type=int, default=100, metavar="N", help="tokens to add (default 100)"
    )
    how.add_argument("--temperature", type=float, default=0.0, metavar="T",
                     help="divides the logits; 0 takes the likeliest token (default 0)")  # fmt: skip
    how.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens (default: all)")
    how.add_argument("--top-p", type=float, default=1.0, metavar="P",
                     help="only the fewest tokens whose probability reaches P, in (0, 1] (default 1)")  # fmt: skip
    how.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R",
                     help="divides the positive logits of tokens already there; 1 changes nothing (default 1)")  # fmt: skip
    how.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a string that ends the text"
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (default 0)")

    speed = parser.add_argument_group("how it is computed")
    speed.add_argument("--prefill", default="exact", metavar="SOLVER",
                       help="how prompts are read: exact, sequential, gauss_seidel or jacobi (default exact)")  # fmt: skip
    speed.add_argument("--prefill-tolerance", type=float, default=1e-3, metavar="X",
                       help="gauss_seidel and jacobi end when no latent moves by more than this share (default 1e-3)")  # fmt: skip
    speed.add_argument("--prefill-sweeps", type=int, default=32, metavar="N",
                       help="they also end after N sweeps, at least 2 (default 32)")  # fmt: skip
    speed.add_argument(
        "--prefill-chunk", type=int, metavar="N", help="prompt tokens read at once (default: all)"
    )
    add_threshold_argument(speed)
    speed.add_argument("--weights", choices=("float32", "bf16"), default="float32",
                       help="how matrices are stored; bf16 is read in half the time and is exact for weights that "
                       "were trained in it; a CPU needs a C++ compiler for the speed (default float32)")  # fmt: skip
    speed.add_argument("--draft", type=int, default=0, metavar="N",
                       help="tokens to guess and verify at once; the outcome stays the same (default 0)")  # fmt: skip
    return parser.parse_args()


def generate(args: argparse.Namespace) -> None:
    """Continue what was asked for."""
    try:
        from latentpt.finetuning import commands
        from latentpt.generation.command import run
        from latentpt.generation.text import Writer, beginning_token
        from latentpt.hub.source import open_source

        if commands.is_finetuned(args):
            commands.generate(args)
            return
        source = open_source(args)
        tokenizer = source.tokenizer()
        begin = None if args.bos is None else beginning_token(tokenizer, args.bos)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            run(Writer(source.model, tokenizer, begin), args)
    except ValueError as error:  # options that do not fit the model
        raise ConfigError(str(error)) from None


def main() -> int:
    args = arguments()
    return exit_code(lambda: generate(args))


if __name__ == "__main__":
    sys.exit(main())
