"""Cached decoding: the exact recurrence, one token at a time, for a batch of prompts of any lengths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from latentpt_kernels import dispatch
from latentpt_kernels.graph import Captured
from torch import Tensor

from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Penalty, Sampling, choose, uniform
from latentpt.generation.static import StaticCache, why_not_static
from latentpt.thoughts.compile import compile_cells
from latentpt.thoughts.execute import execute
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Plan
from latentpt.thoughts.state import Cache
from latentpt.thoughts.watch import Watch

OnToken = Callable[[int, int], bool | None]
"""Hears of (row, id) as ids are found; answering True ends the row."""


class Session:
    """Exact decoding of a batch: a state in one place, which grows token by token."""

    def __init__(self, model: LanguageModel, rows: int, capacity: int, static: bool = False) -> None:
        """Room for `rows` sequences of `capacity` positions; raises ValueError if a learned table has fewer rows.

        A `static` session counts its positions on the device, so that a step can be recorded.
        """
        self.model = model
        self.cache = model.cache(rows, capacity, StaticCache if static else Cache)

    @property
    def position(self) -> int:
        """Positions decoded so far."""
        return self.cache.positions

    @torch.no_grad()
    def step(self, ids: Tensor, watch: Watch | None = None) -> Tensor:
        """Think about one more token per row, ids int64 [B]; returns h(t, N) after the final norm, [B, d]."""
        if not isinstance(self.cache, StaticCache):
            return self.extend(ids[:, None], watch=watch)[:, 0]
        model = self.model
        tokens = model.method.tokens(model.decoder, ids[:, None], self.cache.at.long())
        return model.read(tokens, model.method.exact_schedule(), self.cache, watch)[-1].hidden[:, 0]

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
        """Run single cells of the tokens int64 [B, n] at the position reached, see `compile.compile_cells`.

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


class Choice:
    """How ids are chosen after states, with everything it needs on the device."""

    def __init__(self, model: LanguageModel, read: Tensor, sampling: Sampling) -> None:
        """`read` int64 [B, n] are the ids that every row holds already."""
        rows = len(read)
        self.head, self.sampling = model.decoder.head, sampling
        self.numbers = torch.zeros(rows, dtype=torch.float64, device=read.device)
        """One in [0, 1) for each row."""
        self.penalty: Penalty | None = None
        if sampling.repetition_penalty != 1:
            self.penalty = Penalty(sampling.repetition_penalty, rows, model.config.vocab_size, read.device)
        self.note(read)

    def note(self, ids: Tensor) -> None:
        """Every row now holds more ids, int64 [B, n]."""
        if self.penalty is not None:
            self.penalty.note(ids)

    def draw(self, streams: Sequence[torch.Generator], speaking: Sequence[int]) -> None:
        """New numbers for the rows that speak; for others it would make their streams depend on these."""
        if self.sampling.temperature != 0 and speaking:
            numbers = torch.zeros(len(self.numbers), dtype=torch.float64)
            numbers[list(speaking)] = uniform([streams[row] for row in speaking])
            self.numbers.copy_(numbers)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Ids int64 [B] after states [B, d]."""
        logits = self.head(hidden)
        return choose(logits if self.penalty is None else self.penalty(logits), self.sampling, self.numbers)


class NextTokens:
    """Chooses every row's next id after what it has read; on CUDA a token's slots, head and choice are one launch."""

    def __init__(
        self, session: Session, read: Tensor, sampling: Sampling, streams: Sequence[torch.Generator]
    ) -> None:
        """`read` int64 [B, n] are the ids that the session has thought about."""
        choice, ids = Choice(session.model, read, sampling), read[:, -1].clone()
        self.session, self.choice, self.ids, self.streams = session, choice, ids, streams

        def run() -> Tensor:  # knows nothing of self, so that all memory is free as soon as nobody needs it
            choice.note(ids[:, None])
            return choice(session.step(ids))

        self.run: Callable[[], Tensor] = (
            Captured(run, ids.device) if isinstance(session.cache, StaticCache) else run
        )

    def after(self, hidden: Tensor, speaking: Sequence[int]) -> dict[int, int]:
        """The next ids of the rows that speak, after states [B, d]."""
        self.choice.draw(self.streams, speaking)
        return _of(speaking, self.choice(hidden))

    def __call__(self, ids: Sequence[int], speaking: Sequence[int]) -> dict[int, int]:
        """Every row reads an id and thinks about it; the next ids of the rows that speak."""
        reached = self.session.position + 1
        self.ids.copy_(torch.tensor(ids))
        self.choice.draw(self.streams, speaking)
        chosen = self.run()
        if isinstance(self.session.cache, StaticCache):
            self.session.cache.counted(reached)
        return _of(speaking, chosen)


def _of(rows: Sequence[int], chosen: Tensor) -> dict[int, int]:
    ids = chosen.tolist()
    return {row: ids[row] for row in rows}


def is_static(model: LanguageModel) -> bool:
    """Whether decoding counts on the device: on CUDA, and where LATENTPT_KERNELS says so, if the method allows it.

    Warns where it does not.
    """
    if not dispatch.wanted(next(model.parameters())):
        return False
    reason = why_not_static(model)
    if reason is not None:
        warnings.warn(f"decoding is not recorded as a CUDA graph, which is slow: {reason}", stacklevel=3)
    return reason is None


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
    static = is_static(model)
    # What is read token by token anyway is read in the steps that decode.
    common = 1 if static and (prefill or Prefill()).schedule(model.method)[0].chunk == 1 else rows.common
    read = torch.tensor([prompt[:common] for prompt in prompts], device=device)
    session = Session(model, len(prompts), rows.capacity, static)
    hidden = session.extend(read, prefill)[:, -1]
    following = NextTokens(session, read, sampling, streams or sampling.streams(len(prompts)))
    found = following.after(hidden, rows.speaking(session.position))
    while True:
        ids = rows.next(session.position, found)
        if rows.done:
            return rows.found
        found = following(ids, rows.speaking(session.position + 1))


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Prompts from padded ids [B, L], wherever the padding is; mask [B, L] is 0 or False there."""
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
