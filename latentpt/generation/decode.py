"""Cached decoding: the exact recurrence, one token at a time, for a batch of prompts of any lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Penalty, Sampling, sample
from latentpt.thoughts.execute import Watch, execute
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Plan, compile_cells

OnToken = Callable[[int, int], bool | None]
"""Hears of (row, id) as ids are found; answering True ends the row."""


class Session:
    """Exact decoding of a batch: a state in one place, which grows token by token."""

    def __init__(self, model: LanguageModel, rows: int, capacity: int) -> None:
        """Room for `rows` sequences of `capacity` positions; raises ValueError if a learned table has fewer rows."""
        self.model = model
        self.cache = model.cache(rows, capacity)

    @property
    def position(self) -> int:
        """Positions decoded so far."""
        return self.cache.positions

    def step(self, ids: Tensor, watch: Watch | None = None) -> Tensor:
        """Think about one more token per row, ids int64 [B]; returns h(t, N) after the final norm, [B, d]."""
        return self.extend(ids[:, None], watch=watch)[:, 0]

    @torch.no_grad()
    def extend(self, ids: Tensor, prefill: Prefill | None = None, watch: Watch | None = None) -> Tensor:
        """Think about several tokens, ids int64 [B, n]; returns [B, n, d].

        Exactly, unless `prefill` chooses otherwise: in parallel where the method has an exact schedule for that, else
        token by token.
        """
        schedule, settled = (prefill or Prefill()).schedule(self.model.method)
        return self.model.think(ids, schedule, self.cache, watch or settled)

    @torch.no_grad()
    def run(
        self, ids: Tensor, cells: tuple[tuple[int, ...], ...], known: tuple[int, ...] = ()
    ) -> list[Tensor]:
        """Run single cells of the tokens int64 [B, n] at the position reached, see `plan.compile_cells`.

        Returns the states after the final norm, [B, d], of the cells of the last run.
        """
        method, decoder = self.model.method, self.model.decoder
        tokens = self.model.tokens(ids, self.position)
        stretch = compile_cells(method.traits(), cells, known)
        plan = Plan(stretch.traits, ((0, stretch),))
        return [read.hidden[:, 0] for read in execute(decoder, method, tokens, plan, self.cache)]


class Continuations:
    """What the rows of a batch read and say: a row whose prompt goes on reads it, the others say what was found."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        on_token: OnToken | None = None,
    ) -> None:
        """Raises ValueError for an empty prompt or no room for an answer."""
        if not prompts or not all(prompts):
            raise ValueError("every prompt needs at least one token; begin with the end-of-document token")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self.stop_ids, self.on_token = frozenset(stop_ids), on_token
        self.found: list[list[int]] = [[] for _ in prompts]
        self.ended = [False] * len(prompts)

    @property
    def common(self) -> int:
        """Tokens that every prompt has."""
        return min(map(len, self.prompts))

    @property
    def capacity(self) -> int:
        """Positions that the longest row may come to think about; the last token is never read."""
        return max(map(len, self.prompts)) + self.max_new_tokens - 1

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(self.ended)

    def given(self, row: int, position: int) -> int | None:
        """The id that the prompt has at a position, None beyond its end."""
        prompt = self.prompts[row]
        return prompt[position] if position < len(prompt) else None

    def take(self, row: int, token: int) -> None:
        """A row has found its next id; one that has ended already says nothing more."""
        if self.ended[row]:
            return
        self.found[row].append(token)
        told = self.on_token is not None and self.on_token(row, token)
        full = len(self.found[row]) >= self.max_new_tokens
        self.ended[row] = bool(told) or full or token in self.stop_ids

    def speaking(self, position: int) -> list[int]:
        """The rows whose prompt is over at a position."""
        return [row for row, prompt in enumerate(self.prompts) if position >= len(prompt)]

    def next(self, position: int, sampled: Mapping[int, int]) -> list[int]:
        """The ids at a position: the prompts', or those sampled for the rows that speak, which are taken."""
        for row in self.speaking(position):
            self.take(row, sampled[row])
        given = (self.given(row, position) for row in range(len(self.prompts)))
        return [sampled[row] if token is None else token for row, token in enumerate(given)]


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    on_token: OnToken | None = None,
    prefill: Prefill | None = None,
    streams: Sequence[torch.Generator] | None = None,
) -> list[list[int]]:
    """Continue every prompt by up to max_new_tokens ids; returns the new ids of each, a stop id included.

    Prompts may differ in length: all rows decode at the same position, a row whose prompt goes on reads it, the
    others what they sampled; so there is no padding to see and a row's result does not depend on its neighbours.
    `on_token(row, id)` hears of ids as they are found and ends the row by answering True; `streams` replace the rows'
    random streams, which otherwise follow from the seed and the row. Raises ValueError for an empty prompt.
    """
    rows = Continuations(prompts, max_new_tokens, stop_ids, on_token)
    device = next(model.parameters()).device
    sampling = sampling or Sampling()
    streams = streams or sampling.streams(len(prompts))
    read = torch.tensor([prompt[: rows.common] for prompt in prompts], device=device)
    session = Session(model, len(prompts), rows.capacity)
    hidden = session.extend(read, prefill)[:, -1]
    penalty = None
    if sampling.repetition_penalty != 1:
        penalty = Penalty(sampling.repetition_penalty, len(prompts), model.config.vocab_size, device)
        for column in read.T.tolist():
            penalty.note(column)
    while True:
        logits = model.decoder.head(hidden)
        # A row draws for its own ids alone, or its stream would depend on its neighbours' prompts.
        speaking = rows.speaking(session.position)
        chosen = (logits if penalty is None else penalty(logits))[speaking]
        sampled = sample(chosen, sampling, [streams[row] for row in speaking])
        ids = rows.next(session.position, dict(zip(speaking, sampled, strict=True)))
        if rows.done:
            return rows.found
        if penalty is not None:
            penalty.note(ids)
        hidden = session.step(torch.tensor(ids, device=device))


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Prompts from padded ids [B, L], wherever the padding is; mask [B, L] is 0 or False there."""
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
