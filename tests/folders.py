"""Folders as training leaves them: a run with a checkpoint, and a byte-level tokenizer."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import tokenizers
from safetensors.torch import save_file

from latentpt.config import build, to_yaml
from latentpt.run import RunConfig
from latentpt.run.checkpoints import MARK, Meta, Progress, file_record
from latentpt.training.checkpoint import commit

BYTES_VOCAB = 257
LAUNCH = Path(__file__).parents[1] / "launch"


def shared(*names):
    """A path in the folder of shared data (LATENTPT_SHARED, or shared/ beside the checkout); skips without it."""
    folder = Path(os.environ.get("LATENTPT_SHARED", Path(__file__).parents[2] / "shared"))
    path = folder.joinpath("data", *names)
    if not path.exists():
        pytest.skip(f"{'/'.join(names)} of the shared data is not at hand")
    return path


def write_tokenizer(folder):
    """A tokenizer.json whose ids are bytes, and one more that ends a document."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_run(folder, model, data):
    """A run folder that holds `model` as its checkpoint of step 7; its data is the folder `data`."""
    values = {
        "output": str(folder),
        "model": model.config.model_dump(mode="json"),
        "thoughts": model.thoughts.model_dump(mode="json"),
        "data": {"train": str(data), "validation": str(data), "sequence_length": 16},
        "training": {"tokens": 1024, "batch_tokens": 64, "micro_batch": 2, "precision": "fp32"},
    }
    write_checkpoint(folder / "checkpoints", 7, {name: p.detach() for name, p in model.named_parameters()})
    (folder / "config.yaml").write_text(to_yaml(build(RunConfig, values)))
    return folder


def write_checkpoint(folder, step, weights, committed=True):
    """A checkpoint of these tensors under `folder`, without moments; without its mark unless committed."""
    path = folder / f"step-{step:08d}"
    side = path.with_suffix(".tmp")
    side.mkdir(parents=True)
    file = side / "weights-00000-of-00001.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    meta = Meta(progress=Progress(step=step), updates=step, shapes=shapes, layout={}, config={})
    commit(side, path, meta, {file.name: file_record(file)})
    if not committed:
        (path / MARK).unlink()
    return path


def launch(name, monkeypatch, *arguments):
    """Run a launch script's main in this process; returns its exit code."""
    spec = importlib.util.spec_from_file_location(f"launch_{name}", LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return module.main()
