"""A fine-tuned model in use: ask it, measure it, publish it. Folders are those of runs, of best checkpoints, of exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from latentpt.config import ConfigError
from latentpt.data.tokenizer import Tokenizer
from latentpt.finetuning.accuracy import Answered, answer
from latentpt.finetuning.examples import read_examples
from latentpt.finetuning.generate import latent_generate
from latentpt.finetuning.preparing import BEST
from latentpt.finetuning.publish import export_reasoner
from latentpt.finetuning.reasoner import RECIPE, Reasoner, Recipe, load_reasoner
from latentpt.finetuning.rows import Pieces


class Opened(NamedTuple):
    """A fine-tuned model, how it is used, its tokenizer."""

    reasoner: Reasoner
    recipe: Recipe
    tokenizer: Tokenizer


def find_reasoner(folder: str | Path) -> Path | None:
    """Where in a folder a fine-tuned model lies: the best checkpoint of a run, or the folder itself; None if nowhere."""
    places = (Path(folder) / BEST, Path(folder))
    return next((place for place in places if (place / RECIPE).is_file()), None)


def open_reasoner(folder: str | Path, device: str = "cpu") -> Opened:
    """The model of a folder; raises ConfigError if there is none."""
    place = find_reasoner(folder)
    if place is None:
        raise ConfigError(f"{folder}: holds no fine-tuned model, neither {RECIPE} nor {BEST}/{RECIPE}")
    reasoner, recipe, tokenizer = load_reasoner(place)
    return Opened(reasoner.to(device), recipe, tokenizer)


def ask(opened: Opened, questions: Sequence[str], max_new_tokens: int, batch: int = 64) -> list[str]:
    """What the model writes after each question, latents shown as their marker."""
    reasoner, recipe, tokenizer = opened
    prompts = [recipe.prompt(tokenizer.encode(f"{question}\n")) for question in questions]
    found: list[list[int]] = []
    for first in range(0, len(prompts), batch):
        found += latent_generate(
            reasoner.language, prompts[first : first + batch], reasoner.fill(recipe), max_new_tokens, recipe.end,
            recipe.decision(),
        )  # fmt: skip
    return [tokenizer.decode([token for token in ids if token != recipe.end]) for ids in found]


def measure(
    opened: Opened, data: str | Path, rows: int | None, max_new_tokens: int, batch: int = 64
) -> Answered:
    """How many questions of a file it answers rightly."""
    reasoner, recipe, tokenizer = opened
    questions = [
        Pieces(tokenizer.encode(f"{example.question}\n"), [], [], example.answer)
        for example in read_examples(data, rows)
    ]
    return answer(reasoner, recipe, tokenizer, questions, batch, max_new_tokens)


def publish(
    opened: Opened, output: str | Path, dtype: torch.dtype = torch.float32, title: str | None = None
) -> str:
    """Write the model for transformers; returns a sentence that says how to load it."""
    export_reasoner(*opened, output, dtype, title)
    return f'wrote {output}; load it with AutoModelForCausalLM.from_pretrained("{output}", trust_remote_code=True)'


def sentence(name: str, found: Answered) -> str:
    """What was measured, as a line."""
    return (
        f"{name}: accuracy {100 * found.right / found.asked:.1f} % ({found.right} of {found.asked}), "
        f"{found.tokens / found.asked:.1f} tokens an answer, {found.latents / found.asked:.1f} of them latents"
    )
