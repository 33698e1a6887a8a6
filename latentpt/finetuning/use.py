"""A fine-tuned model in use: ask it, measure it, publish it. Folders are those of runs, of best checkpoints, of exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentpt.config import ConfigError
from latentpt.data.tokenizer import Tokenizer
from latentpt.finetuning.accuracy import answer
from latentpt.finetuning.generate import latent_generate
from latentpt.finetuning.preparing import BEST
from latentpt.finetuning.publish import export_reasoner
from latentpt.finetuning.reasoner import RECIPE, Reasoner, Recipe, load_reasoner
from latentpt.finetuning.rows import Pieces


def open_reasoner(folder: str | Path) -> tuple[Reasoner, Recipe, Tokenizer]:
    """The model of a run (its best checkpoint) or of a folder with a recipe; raises ConfigError if there is none."""
    for place in (Path(folder) / BEST, Path(folder)):
        if (place / RECIPE).is_file():
            return load_reasoner(place)
    raise ConfigError(f"{folder}: holds no fine-tuned model, neither {RECIPE} nor {BEST}/{RECIPE}")


def ask(folder: str | Path, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """What the model writes after each question, latents shown as their marker."""
    reasoner, recipe, tokenizer = open_reasoner(folder)
    prompts = [recipe.prompt(tokenizer.encode(f"{question}\n")) for question in questions]
    found = latent_generate(
        reasoner.language, prompts, reasoner.fill(recipe), max_new_tokens, recipe.end, recipe.decision()
    )
    return [tokenizer.decode([token for token in ids if token != recipe.end]) for ids in found]


def measure(folder: str | Path, data: str, rows: int | None, batch: int, max_new_tokens: int) -> str:
    """Accuracy on a file of questions, as a line."""
    from latentpt.finetuning.examples import read_examples

    reasoner, recipe, tokenizer = open_reasoner(folder)
    questions = [
        Pieces(tokenizer.encode(f"{example.question}\n"), [], [], example.answer)
        for example in read_examples(data, rows)
    ]
    found = answer(reasoner, recipe, tokenizer, questions, batch, max_new_tokens)
    return (
        f"{data}: accuracy {100 * found.right / found.asked:.1f} % ({found.right} of {found.asked}), "
        f"{found.tokens / found.asked:.1f} tokens an answer, {found.latents / found.asked:.1f} of them latents"
    )


def publish(folder: str | Path, output: str) -> str:
    """Write the model for transformers; returns a sentence that says how to load it."""
    export_reasoner(*open_reasoner(folder), output)
    return f'wrote {output}; load it with AutoModelForCausalLM.from_pretrained("{output}", trust_remote_code=True)'
