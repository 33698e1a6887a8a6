"""Write a model as a Hugging Face folder.

    python launch/export.py --run runs/X --output hf/
    python launch/export.py --run runs/FINETUNED --output hf/       its best checkpoint, latents and all
    python launch/export.py --model stories260K.bin --output hf/

A model without latent slots loads as its family's stock class; any other brings its own modeling file and loads with
AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).
"""

import argparse
import sys

from latentpt.run.exits import exit_code


def arguments() -> argparse.Namespace:
    """The command line."""
    from latentpt.hub.source import add_source_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to make; it must not exist")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights (default float32)",
    )
    parser.add_argument("--name", metavar="TEXT", help="title of the model card (default: the output's name)")
    return parser.parse_args()


def main() -> int:
    args = arguments()

    def export() -> None:
        from latentpt.finetuning import commands
        from latentpt.hub.publish import publish

        print(commands.publish(args) if commands.is_finetuned(args) else publish(args))

    return exit_code(export)


if __name__ == "__main__":
    sys.exit(main())
