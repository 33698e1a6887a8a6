"""One step ahead: think the last latent of a position and the first slot of the next one in the same pass.

Under causal visibility the cell (t + 1, 0) sees (t, N), so a draft of several tokens cannot be verified in parallel. But
the two cells follow one another, and both their inputs are known once a token is guessed from h(t, N - 1):

    pass      (t, 0)  ..  (t, N - 1)   |   (t, N) + (t + 1, 0)   |   ..  (t + 1, N) + (t + 2, 0)   ..

A right guess saves a pass of the trunk, N instead of N + 1 a token; after a wrong one (t + 1, 0) is thought again. What
is kept follows the model's own distribution, by the rule of `speculate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentpt.generation.decode import Continuations, OnToken, Session
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling, distribution, draw
from latentpt.thoughts.method import Tokens, Visibility
from latentpt.thoughts.model import LanguageModel


def can_think_ahead(model: LanguageModel) -> bool:
    """Whether the last latent of a position and the next token's slot can be thought in one pass."""
    return model.method.slots > 1 and model.method.feedback and model.method.visibility is Visibility.CAUSAL


@torch.no_grad()
def generate_ahead(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    on_token: OnToken | None = None,
    prefill: Prefill | None = None,
    streams: Sequence[torch.Generator] | None = None,
) -> tuple[list[list[int]], int, int]:
    """New ids of every row, as `generate` finds them; and how many ids were guessed and how many of these kept.

    When sampling, the distribution is the model's own, but samples depend on the batch: a guess is kept when all rows
    keep theirs.
    """
    sampling = sampling or Sampling()
    rows = Continuations(prompts, max_new_tokens, stop_ids, on_token)
    streams = streams or sampling.streams(len(prompts))
    decoder, device = model.decoder, next(model.parameters()).device
    session = Session(model, len(prompts), rows.capacity + 1)
    read = torch.tensor([prompt[: rows.common] for prompt in prompts], device=device)
    hidden = session.extend(read, prefill)[:, -1]
    position = session.position
    first = draw(distribution(decoder.head(hidden), sampling), streams)
    ids = rows.next(position, dict(enumerate(first)))
    tokens, x = _tokens(model, ids, position), None
    guessed = kept = 0
    while not rows.done:
        u, x = _all_but_last(session, tokens, x)
        q = distribution(decoder.head(decoder.norm(x)[:, 0, 0]), sampling)
        guess = draw(q, streams)
        given = [rows.given(row, position + 1) for row in range(len(prompts))]
        ids = [g if token is None else token for g, token in zip(guess, given, strict=True)]
        ahead = _tokens(model, ids, position + 1)
        both, _ = decoder.run(
            torch.cat([u, ahead.embeds], dim=1),
            decoder.angles(torch.cat([tokens.positions, ahead.positions])),
            caches=session.cache.layers,
        )
        session.cache.filled += 2
        p = distribution(decoder.head(decoder.norm(both)[:, 0, 0]), sampling)
        position, x = position + 1, both[:, 1:]
        stays = [
            token is not None or rows.ended[row] or _stays(p[row], q[row], ids[row], streams[row])
            for row, token in enumerate(given)
        ]
        guessed, kept = guessed + 1, kept + all(stays)
        if not all(stays):
            session.cache.filled -= 1
            anew = draw(_left(p, q, stays), streams)
            ids = [token if stay else new for token, stay, new in zip(ids, stays, anew, strict=True)]
            ahead, x = _tokens(model, ids, position), None
        tokens = ahead
        ids = rows.next(position, dict(enumerate(ids)))
    return rows.found, guessed, kept


def _tokens(model: LanguageModel, ids: list[int], position: int) -> Tokens:
    device = next(model.parameters()).device
    column = torch.tensor(ids, device=device)[:, None]
    return model.method.tokens(model.decoder, column, torch.full((1,), position, device=device))


def _all_but_last(session: Session, tokens: Tokens, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """Think slots 0 .. N - 1 (x is slot 0's stream if it was thought ahead); slot N's input and slot N - 1's stream."""
    decoder, method = session.model.decoder, session.model.method
    angles, u = decoder.angles(tokens.positions), tokens.embeds
    for slot in range(method.slots - 1):
        if x is None or slot > 0:
            x, _ = decoder.run(u, angles, caches=session.cache.layers)
            session.cache.filled += 1
        u = method.latents(decoder, tokens, range(slot + 1, slot + 2), u, method.states(decoder, x))
    assert x is not None
    return u, x


def _stays(p: Tensor, q: Tensor, token: int, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator).item() < (p[token] / q[token]).item()


def _left(p: Tensor, q: Tensor, stays: list[bool]) -> Tensor:
    """max(p - q, 0) for the rows whose guess did not stay; the others draw in vain."""
    rest = (p - q).clamp(min=0)
    kept = torch.tensor(stays, device=p.device)[:, None] | (rest.sum(-1, keepdim=True) == 0)
    return torch.where(kept, p, rest)
