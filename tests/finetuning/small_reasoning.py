"""A fine-tuning of a minute's fraction: sums of one digit, a model of some thousand weights."""

from pathlib import Path

from latentpt.config import build
from latentpt.finetuning.building import BuildConfig
from latentpt.finetuning.building import build as build_data
from latentpt.finetuning.config import FinetuneConfig


def sums(folder: Path) -> Path:
    """folder/data with sums modulo 5 of two or three operations, and their tokenizer."""
    config = BuildConfig(
        task="arithmetic", output=str(folder / "data"), rows=(24, 10, 10), hops=(2, 3), symbols=5
    )
    build_data(config)
    return folder / "data"


def tiny(output: Path, data: Path, mode: str, /, **sections) -> FinetuneConfig:
    """A few steps; `sections` override fields section by section."""
    values = {
        "output": str(output), "mode": mode,
        "start": {"tokenizer": str(data), "fresh": {"family": "llama", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 64, "intermediate_size": 24}},
        "data": {"train": str(data / "train.jsonl"), "validation": str(data / "validation.jsonl"), "max_length": 60},
        "training": {"batch": 8, "micro_batch": 4, "epochs": 2},
        "coconut": {"epochs": 4, "epochs_per_stage": 1, "max_latent_stage": 2},
        "lt": {"text": "plain", "stages": [{"epochs": 1}, {"epochs": 1, "fill": "hidden", "most": 2}, {"epochs": 1, "fill": "fusion", "sites": 3, "second": 0.5}]},
        "optimizer": {"lr": 1e-2, "weight_decay": 0.0},
        "answers": {"max_new_tokens": 12, "batch": 5},
        "checkpoint": {"every": 1000},
        "monitor": {"every": 1, "tensorboard": False},
    }  # fmt: skip
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return build(FinetuneConfig, values)
