"""Questions answered by a model, and how many of the answers are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from latentpt.data.tokenizer import Tokenizer
from latentpt.finetuning.answers import is_right
from latentpt.finetuning.fills import Fill, Kind
from latentpt.finetuning.generate import latent_generate
from latentpt.finetuning.reasoner import Reasoner, Recipe
from latentpt.finetuning.rows import Pieces


class Answered(NamedTuple):
    """What came of some questions."""

    right: int
    asked: int
    tokens: int
    """Generated ids, latents in the prompt included."""
    latents: int
    """Of these, latents."""


def answer(
    reasoner: Reasoner,
    recipe: Recipe,
    tokenizer: Tokenizer,
    questions: Sequence[Pieces],
    batch: int,
    max_new_tokens: int,
    kind: Kind | None = None,
    latents: int | None = None,
    change: Callable[[Fill], Fill] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Answered:
    """Answer questions greedily; `latents` replaces the recipe's number of latents after a question,
    `change` its fill.
    """
    fill = reasoner.fill(recipe, kind)
    fill = fill if change is None else change(fill)
    silent = {recipe.end, *(recipe.markers or ())}
    right = tokens = thought = 0
    for first in range(0, len(questions), batch):
        some = questions[first : first + batch]
        prompts = [recipe.prompt(pieces.question, latents) for pieces in some]
        found = latent_generate(
            reasoner.language, prompts, fill, max_new_tokens, recipe.end, recipe.decision()
        )
        for pieces, prompt, ids in zip(some, prompts, found, strict=True):
            text = tokenizer.decode([token for token in ids if token not in silent])
            right += is_right(text, pieces.gold, recipe.extraction)
            inside = (prompt.count(fill.latent_token), ids.count(fill.latent_token))
            tokens += len(ids) + inside[0]
            thought += sum(inside)
        if on_batch is not None:
            on_batch(len(some))
    return Answered(right, len(questions), tokens, thought)
