"""Cached decoding: the exact recurrence, one token at a time, for a batch of prompts of any lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latentpt.generation.cache import SlotCache
from latentpt.generation.sampling import Sampling, sample
from latentpt.seeding import stream
from latentpt.thoughts.model import LanguageModel


class Session:
    """Exact decoding of a batch: S = N + 1 dependent steps of the trunk per token."""

    def __init__(self, model: LanguageModel, rows: int, capacity: int) -> None:
        self.model = model
        self.cache = SlotCache(model, rows, capacity)

    @property
    def position(self) -> int:
        """Positions decoded so far."""
        return self.cache.filled // self.cache.slots

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Think about one more token per row, ids int64 [B]; returns h(t, N) after the final norm, [B, d]."""
        decoder, method = self.model.decoder, self.model.method
        tokens = method.tokens(decoder, ids[:, None], torch.full((1,), self.position, device=ids.device))
        angles = decoder.angles(tokens.positions)
        u = tokens.embeds
        for slot in range(method.slots):
            x, _ = decoder.run(u, angles, caches=self.cache.layers)
            self.cache.filled += 1
            if slot + 1 < method.slots:
                states = method.states(decoder, x) if method.feedback else None
                u = method.latents(decoder, tokens, range(slot + 1, slot + 2), u, states)
        return decoder.norm(x)[:, 0, 0]

    @torch.no_grad()
    def extend(self, ids: Tensor) -> Tensor:
        """Think about several tokens, ids int64 [B, n], exactly; returns [B, n, d].

        In parallel where the method has an exact schedule for that, else token by token.
        """
        method = self.model.method
        schedule = method.exact_schedule()
        if schedule.chunk == 1:
            return torch.stack([self.step(column) for column in ids.unbind(1)], dim=1)
        prefix = self.cache.keys_values() if self.cache.filled else None
        hidden, kv = self.model.think(ids, schedule, prefix, keep=True)
        self.cache.write(kv)
        return hidden


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt by up to max_new_tokens ids; returns the new ids of each, a stop id included.

    Prompts may differ in length: all rows decode at the same position, a row whose prompt goes on reads it, the
    others what they sampled; so there is no padding to see and a row's result does not depend on its neighbours.
    `on_token(row, id)` is called as ids are found. Raises ValueError for an empty prompt.
    """
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token; begin with the end-of-document token")
    device = next(model.parameters()).device
    sampling = sampling or Sampling()
    lengths = [len(prompt) for prompt in prompts]
    streams = [stream(sampling.seed, "row", row) for row in range(len(prompts))]
    common = min(lengths)
    session = Session(model, len(prompts), max(lengths) + max_new_tokens)
    hidden = session.extend(torch.tensor([prompt[:common] for prompt in prompts], device=device))[:, -1]
    results: list[list[int]] = [[] for _ in prompts]
    while True:
        position = session.position
        found = sample(model.decoder.head(hidden), sampling, streams)
        ids = []
        for row, prompt in enumerate(prompts):
            if position < lengths[row]:
                ids.append(prompt[position])
                continue
            ids.append(found[row])
            if not _finished(results[row], max_new_tokens, stop_ids):
                results[row].append(found[row])
                if on_token is not None:
                    on_token(row, found[row])
        if all(_finished(result, max_new_tokens, stop_ids) for result in results):
            return results
        hidden = session.step(torch.tensor(ids, device=device))


def _finished(result: list[int], max_new_tokens: int, stop_ids: Sequence[int]) -> bool:
    return len(result) >= max_new_tokens or bool(result and result[-1] in stop_ids)
