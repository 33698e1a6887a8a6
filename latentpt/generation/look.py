"""Look at what is thought: for every slot of every position its size and the tokens it leans to, through the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    norm: float
    """Length of h(t, s) after the final norm."""
    likeliest: list[tuple[int, float]]
    """Ids and probabilities, the likeliest first."""


@torch.no_grad()
def look(model: LanguageModel, ids: Sequence[int], top: int = 5) -> list[Thought]:
    """Decode ids exactly and read |h(t, s)| and softmax(W_o h(t, s)) off every slot."""
    session = Session(model, 1, len(ids))
    device = next(model.parameters()).device
    thoughts: list[Thought] = []

    def watch(slot: int, hidden: Tensor) -> None:
        best = model.decoder.head(hidden[0]).float().softmax(-1).topk(min(top, model.config.vocab_size))
        pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        position = session.position - (slot + 1 == model.method.slots)
        thoughts.append(Thought(position, slot, hidden[0].float().norm().item(), pairs))

    for token in ids:
        session.step(torch.tensor([token], device=device), watch)
    return thoughts


def table(thoughts: Sequence[Thought], ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The thoughts as text: a line for every position, and under it one for every slot with its norm."""
    lines = []
    for thought in thoughts:
        if thought.slot == 0:
            lines.append(f"{thought.position:5}  {_shown(tokenizer, ids[thought.position])}")
        leaning = "  ".join(f"{_shown(tokenizer, token)} {p:.2f}" for token, p in thought.likeliest)
        lines.append(f"       slot {thought.slot}: |h| {thought.norm:.3g}  {leaning}")
    return "\n".join(lines)


def records(thoughts: Sequence[Thought], ids: Sequence[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The thoughts as JSON takes them: position, token, slot, norm, and likeliest as pairs of text and probability."""
    return [
        {
            "position": thought.position,
            "token": tokenizer.decode([ids[thought.position]]),
            "slot": thought.slot,
            "norm": round(thought.norm, 4),
            "likeliest": [[_text(tokenizer, token), round(p, 4)] for token, p in thought.likeliest],
        }
        for thought in thoughts
    ]


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with its spaces and line ends visible."""
    return repr(_text(tokenizer, token)) if token < tokenizer.vocab_size else _text(tokenizer, token)


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; its number for a row of the vocabulary that the tokenizer does not use."""
    return tokenizer.decode([token]) if token < tokenizer.vocab_size else f"<{token}>"
