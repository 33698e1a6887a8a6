"""Look at what is thought: for every slot of every position its size and the tokens it leans to, through the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentpt.data.tokenizer import Tokenizer
from latentpt.generation.decode import Session
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Step, Stretch
from latentpt.thoughts.watch import Watch


class Thought(NamedTuple):
    """One slot of one position."""

    position: int
    slot: int
    """0 is the token's own slot; the last one predicts the next token."""
    norm: float
    """Length of h(t, s) after the final norm."""
    likeliest: list[tuple[int, float]]
    """Ids and probabilities, the likeliest first."""
    weight: float | None = None
    """Share of the token that comes as far as this slot, where tokens may stop."""


class Look(Watch):
    """Reads |h(t, s)| and softmax(W_o h(t, s)) off every slot of one sequence."""

    every_slot = True

    def __init__(self, model: LanguageModel, top: int) -> None:
        self.decoder, self.top = model.decoder, min(top, model.config.vocab_size)
        self.thoughts: list[Thought] = []
        self.first = 0
        self.weights: Tensor | None = None  # of the step at hand, [L, n]

    def begin(self, stretch: Stretch, first: int) -> None:
        """Positions count from here."""
        self.first = first

    def weighed(self, step: Step, log_weights: Tensor) -> None:
        """What does not go on is not thought."""
        self.weights = log_weights[0].exp()

    def ran(self, step: Step, u: Tensor, x: Tensor) -> None:
        """Note the thoughts of a step that reaches the final norm."""
        if step.layers[1] < len(self.decoder.blocks):
            return
        for index, ((first, every, slot), streams) in enumerate(zip(step.columns, x.unbind(2), strict=True)):
            hidden = self.decoder.norm(streams[0])
            best = self.decoder.head(hidden).float().softmax(-1).topk(self.top)
            for row, h in enumerate(hidden):
                likeliest = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
                position = self.first + first + row * every
                weight = None if self.weights is None else self.weights[row, index].item()
                if weight != 0:
                    norm = h.float().norm().item()
                    self.thoughts.append(Thought(position, slot, norm, list(likeliest), weight))


@torch.no_grad()
def look(model: LanguageModel, ids: Sequence[int], top: int = 5) -> list[Thought]:
    """Decode ids exactly and read |h(t, s)| and softmax(W_o h(t, s)) off every slot, position by position."""
    watch = Look(model, top)
    device = next(model.parameters()).device
    Session(model, 1, len(ids)).extend(torch.tensor([list(ids)], device=device), watch=watch)
    return sorted(watch.thoughts, key=lambda thought: (thought.position, thought.slot))


def table(thoughts: Sequence[Thought], ids: Sequence[int], tokenizer: Tokenizer, first: int = 0) -> str:
    """The thoughts as text: a line for every position, counted from `first`, and under it one for every slot with its norm."""
    lines = []
    for thought in thoughts:
        if thought.slot == 0:
            lines.append(f"{first + thought.position:5}  {_shown(tokenizer, ids[thought.position])}")
        leaning = "  ".join(f"{_shown(tokenizer, token)} {p:.2f}" for token, p in thought.likeliest)
        weight = "" if thought.weight is None else f"  W {thought.weight:.2f}"
        lines.append(f"       slot {thought.slot}: |h| {thought.norm:.3g}{weight}  {leaning}")
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
            **({} if thought.weight is None else {"weight": round(thought.weight, 4)}),
        }
        for thought in thoughts
    ]


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with its spaces and line ends visible."""
    return repr(_text(tokenizer, token)) if token < tokenizer.vocab_size else _text(tokenizer, token)


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; its number for a row of the vocabulary that the tokenizer does not use."""
    return tokenizer.decode([token]) if token < tokenizer.vocab_size else f"<{token}>"
