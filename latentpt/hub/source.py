"""Where a command takes its model from: the folder of a run, or weights that somebody published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from latentpt.config import ConfigError
from latentpt.data.config import DataConfig
from latentpt.data.tokenizer import Tokenizer
from latentpt.generation.text import find_tokenizer
from latentpt.hub.folders import load_folder
from latentpt.run import RunConfig, load_model
from latentpt.thoughts.model import LanguageModel


class Source(NamedTuple):
    """A model and what is known about it."""

    name: str
    """Last part of the path it came from."""
    model: LanguageModel
    """On the CPU, in evaluation mode."""
    run: RunConfig | None
    """The run it was trained by; None for a published model."""
    places: list[str]
    """Where its tokenizer may lie, best first."""

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises DataError when none is at hand, ConfigError when its ids do not fit the model's vocabulary.
        """
        return find_tokenizer(self.places, self.model)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """--run or --model, --step, --tokenizer and --device."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="FOLDER", help="folder of a run")
    source.add_argument(
        "--model",
        metavar="PATH",
        help="Hugging Face folder (Pythia, LLaMA, Mistral, Qwen, .., an export) or llama2.c .bin",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of that step of the run (default: the latest)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, .model or a folder with one (default: that of the run's data or the model's folder)",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there is one)")


def add_threshold_argument(parser: argparse._ActionsContainer) -> None:
    """--threshold."""
    parser.add_argument("--threshold", type=float, metavar="SHARE",
                        help="tokens stop thinking where less than this share of them would go on, or where slot 0 doubts "
                        "less, in models without a router; 0 stops none (default: as the model was trained)")  # fmt: skip


def open_source(arguments: argparse.Namespace) -> Source:
    """The source that the arguments name, moved to --device and stopping at --threshold if that was asked for.

    Raises ConfigError or DataError for what cannot be read.
    """
    if arguments.run is not None:
        model, config = load_model(arguments.run, arguments.step)
        path, run, places = arguments.run, config, [arguments.run, *data_folders(config.data)]
    else:
        if arguments.step is not None:
            raise ConfigError("--step names a checkpoint of a run; it says nothing about --model")
        model, run = load_folder(arguments.model), None
        path, places = arguments.model, [arguments.model]
    if arguments.tokenizer is not None:
        places = [arguments.tokenizer]
    if getattr(arguments, "threshold", None) is not None:
        model.method.stop_below(arguments.threshold)
    return Source(Path(path).resolve().name, model.to(pick_device(arguments)), run, places)


def data_folders(data: DataConfig) -> list[str]:
    """Every shard folder that a run names, training before validation."""
    train = [data.train] if isinstance(data.train, str) else data.train
    validation = [data.validation] if isinstance(data.validation, str) else data.validation.values()
    return [source if isinstance(source, str) else source.path for source in train] + list(validation)


def pick_device(arguments: argparse.Namespace) -> str:
    """The device that --device names; without it the GPU if there is one. Exports have no --device and stay on the CPU."""
    import torch

    asked = getattr(arguments, "device", "cpu")
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {asked}: there is no such device; the nearest is cpu")
    return str(asked)
