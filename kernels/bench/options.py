"""What the commands of this folder ask for alike."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def read_options(
    parser: argparse.ArgumentParser, folder: Path | None, about_folder: str
) -> argparse.Namespace:
    """The command line's options, with --folder and --dry; ends with status 2 where neither --dry nor a CUDA device is there."""
    parser.add_argument("--folder", type=Path, default=folder, metavar="DIR", help=about_folder)
    parser.add_argument(
        "--dry", action="store_true", help="tiny sizes on the CPU: whether the code runs, no figures"
    )
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device; --dry runs the code at tiny sizes on the CPU\n")
    return options
