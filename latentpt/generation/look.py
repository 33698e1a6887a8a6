"""Look at what is thought: for every slot of every position the tokens it leans to, through the norm and the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.data.tokenizer import Tokenizer
from latentpt.generation.decode import Session
from latentpt.thoughts.model import LanguageModel


class Thought(NamedTuple):
    """One slot of one position."""

    position: int
    slot: int
    """0 is the token's own slot; the last one predicts the next token."""
    likeliest: list[tuple[int, float]]
    """Ids and probabilities, the likeliest first."""


@torch.no_grad()
def look(model: LanguageModel, ids: Sequence[int], top: int = 5) -> list[Thought]:
    """Decode ids exactly and read softmax(W_o h(t, s)) off every slot."""
    session = Session(model, 1, len(ids))
    device = next(model.parameters()).device
    thoughts: list[Thought] = []

    def watch(slot: int, hidden: Tensor) -> None:
        best = model.decoder.head(hidden[0]).float().softmax(-1).topk(min(top, model.config.vocab_size))
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        thoughts.append(
            Thought(session.position if slot + 1 < model.method.slots else session.position - 1, slot, pairs)
        )

    for token in ids:
        session.step(torch.tensor([token], device=device), watch)
    return thoughts


def table(thoughts: Sequence[Thought], ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The thoughts as text: a line for every position, and under it one for every slot."""
    lines = []
    for thought in thoughts:
        if thought.slot == 0:
            lines.append(f"{thought.position:5}  {_shown(tokenizer, ids[thought.position])}")
        leaning = "  ".join(f"{_shown(tokenizer, token)} {p:.2f}" for token, p in thought.likeliest)
        lines.append(f"       slot {thought.slot}: {leaning}")
    return "\n".join(lines)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with its spaces and line ends visible."""
    return repr(tokenizer.decode([token])) if token < tokenizer.vocab_size else f"<{token}>"
