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
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Visibility


def can_think_ahead(model: LanguageModel) -> bool:
    """Whether the last latent of a position and the next token's slot can be thought in one pass."""
    method = model.method
    if method.halting is not None:  # no single slot predicts
        return False
    return method.slots > 1 and method.feedback and method.visibility is Visibility.CAUSAL and method.whole


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
    head, device, thoughts = model.decoder.head, next(model.parameters()).device, model.method.slots - 1
    session = Session(model, len(prompts), rows.capacity + 1)
    read = torch.tensor([prompt[: rows.common] for prompt in prompts], device=device)
    hidden = session.extend(read, prefill)[:, -1]
    ids = rows.next(session.position, dict(enumerate(draw(distribution(head(hidden), sampling), streams))))
    ahead = False  # whether slot 0 of the position at hand is thought already
    guessed = kept = 0
    while not rows.done:
        here = torch.tensor(ids, device=device)
        if not ahead or thoughts > 1:
            singly = tuple((slot,) for slot in range(ahead, thoughts))
            (hidden,) = session.run(here[:, None], singly, known=(0,) if ahead else ())
        q = distribution(head(hidden), sampling)
        given = [rows.given(row, session.position + 1) for row in range(len(prompts))]
        guess = [g if token is None else token for g, token in zip(draw(q, streams), given, strict=True)]
        both = torch.stack([here, torch.tensor(guess, device=device)], dim=1)
        predicts, hidden = session.run(both, ((thoughts, thoughts + 1),), known=(thoughts - 1,))
        p = distribution(head(predicts), sampling)
        stays = [
            token is not None or rows.ended[row] or _stays(p[row], q[row], guess[row], streams[row])
            for row, token in enumerate(given)
        ]
        ahead = all(stays)
        guessed, kept = guessed + 1, kept + ahead
        if not ahead:
            anew = draw(_left(p, q, stays), streams)
            guess = [token if stay else new for token, stay, new in zip(guess, stays, anew, strict=True)]
        ids = rows.next(session.position, dict(enumerate(guess)))
    return rows.found, guessed, kept


def _stays(p: Tensor, q: Tensor, token: int, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator).item() < (p[token] / q[token]).item()


def _left(p: Tensor, q: Tensor, stays: list[bool]) -> Tensor:
    """max(p - q, 0) for the rows whose guess did not stay; the others draw in vain."""
    rest = (p - q).clamp(min=0)
    kept = torch.tensor(stays, device=p.device)[:, None] | (rest.sum(-1, keepdim=True) == 0)
    return torch.where(kept, p, rest)
