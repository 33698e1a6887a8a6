"""Self-speculation of stage-causal models: slot 0 drafts, all slots verify in one batched pass.

Under stage-causal visibility slot 0 sees nothing but slots 0, so alone it is a plain language model of the same
weights: a draft of k tokens costs k trunk steps instead of k (N + 1), and reading the draft with all slots is one
parallel sweep. What is kept follows the model's own distribution exactly (Leviathan et al. 2023, arXiv 2211.17192):
with q the draft's probabilities and p the model's, a drafted id x stays with probability min(1, p(x) / q(x)), and the
first that does not is drawn anew from max(p - q, 0), normalised.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.generation.ahead import can_think_ahead, generate_ahead
from latentpt.generation.decode import Continuations, OnToken, Session
from latentpt.generation.prefill import Prefill
from latentpt.generation.sampling import Sampling, distribution, draw
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.plan import Visibility


class Speculated(NamedTuple):
    """What was generated, and how well the drafts did."""

    found: list[list[int]]
    """New ids of every row, a stop id included."""
    drafted: int
    """Ids drafted in place of rows that had not ended."""
    kept: int
    """Of these, the ids that stayed."""


def can_speculate(model: LanguageModel) -> bool:
    """Whether slot 0 of the model is a language model of its own."""
    method = model.method
    ordinary = not method.carry and method.span == (0, method.layers)
    return method.slots > 1 and method.feedback and method.visibility is not Visibility.CAUSAL and ordinary


@torch.no_grad()
def generate_speculatively(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    on_token: OnToken | None = None,
    draft: int = 4,
    prefill: Prefill | None = None,
    streams: Sequence[torch.Generator] | None = None,
) -> Speculated:
    """`generate` with drafts of `draft` tokens: the same tokens when greedy, the same distribution when sampling.

    All rows keep as many drafted ids as the row that keeps fewest, so samples (not their distribution) depend on the
    batch. Where slot 0 sees other slots, guesses are of one token, see `ahead`. Raises ValueError for a model without
    thoughts that are fed back, and with a repetition penalty.
    """
    sampling = sampling or Sampling()
    if not can_speculate(model) and not can_think_ahead(model):
        raise ValueError("self-speculation needs latent slots that are filled from the slot before them")
    if sampling.repetition_penalty != 1:
        raise ValueError("self-speculation does not combine with a repetition penalty")
    if draft < 1:
        raise ValueError(f"a draft needs at least 1 token, got {draft}")
    if next(model.parameters()).is_cuda:
        warnings.warn(
            "guessing is not recorded as a CUDA graph, so decoding without it may well be faster",
            stacklevel=2,
        )
    if can_think_ahead(model):
        return Speculated(
            *generate_ahead(model, prompts, max_new_tokens, sampling, stop_ids, on_token, prefill, streams)
        )
    rows = Continuations(prompts, max_new_tokens, stop_ids, on_token)
    streams = streams or sampling.streams(len(prompts))
    device = next(model.parameters()).device
    read = torch.tensor([prompt[: rows.common] for prompt in prompts], device=device)
    session = Session(model, len(prompts), rows.capacity + draft)
    hidden = session.extend(read, prefill)[:, -1]
    first = draw(distribution(model.decoder.head(hidden), sampling), streams)
    ids = rows.next(session.position, dict(enumerate(first)))
    drafted = kept = 0
    while not rows.done:
        position = session.position  # of `ids`, which nobody has thought about yet
        proposal, q = _draft(session, rows, ids, draft, sampling, streams)
        hidden = session.extend(proposal)
        p = distribution(model.decoder.head(hidden), sampling)
        stays = _accepted(rows, proposal[:, 1:], p, q, position + 1, streams)
        keep = min(stays)
        active = [row for row in range(len(prompts)) if stays[row] < draft + 1]
        drafted += draft * len(active)
        kept += keep * len(active)
        for offset in range(keep):
            rows.next(position + 1 + offset, dict(enumerate(proposal[:, 1 + offset].tolist())))
        session.cache.rewind(position + keep + 1)
        found = _following(proposal, p, q, stays, keep, streams)
        ids = rows.next(position + 1 + keep, dict(enumerate(found)))
    return Speculated(rows.found, drafted, kept)


def _draft(
    session: Session,
    rows: Continuations,
    ids: list[int],
    draft: int,
    sampling: Sampling,
    streams: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """`ids` and the next `draft` ids by slot 0 alone, [B, draft + 1], and the probabilities they were drawn from."""
    head, start = session.model.decoder.head, session.position
    proposal, q = [torch.tensor(ids, device=head.weight.device)], []
    for offset in range(draft):
        (hidden,) = session.run(proposal[-1][:, None], ((0,),))
        session.cache.positions += 1  # its other slots are thought when the draft is verified
        q.append(distribution(head(hidden), sampling))
        drawn = draw(q[-1], streams)
        given = [rows.given(row, start + offset + 1) for row in range(len(drawn))]
        chosen = [d if g is None else g for d, g in zip(drawn, given, strict=True)]
        proposal.append(torch.tensor(chosen, device=head.weight.device))
    session.cache.rewind(start)
    return torch.stack(proposal, dim=1), torch.stack(q, dim=1)


def _accepted(
    rows: Continuations,
    proposal: Tensor,
    p: Tensor,
    q: Tensor,
    position: int,
    streams: Sequence[torch.Generator],
) -> list[int]:
    """How many drafted ids [B, k], at `position` and after, stay in each row; k + 1 for a row that has ended."""
    chosen = proposal[..., None]
    ratios = (p[:, :-1].gather(-1, chosen) / q.gather(-1, chosen))[..., 0].tolist()
    stays = []
    for row, ratio in enumerate(ratios):
        count = 0
        for offset, bound in enumerate(ratio):
            given = rows.given(row, position + offset) is not None
            if not given and torch.rand((), generator=streams[row]).item() >= bound:
                break
            count += 1
        stays.append(len(ratio) + 1 if rows.ended[row] else count)
    return stays


def _following(
    proposal: Tensor, p: Tensor, q: Tensor, stays: list[int], keep: int, streams: Sequence[torch.Generator]
) -> list[int]:
    """The id after the `keep` that all rows keep: drafted where the row kept more, else drawn from what q left of p."""
    left = p[:, keep]
    if keep < q.shape[1]:
        rest = (p[:, keep] - q[:, keep]).clamp(min=0)
        # Where nothing is left p equals q, up to rounding, and such a row is hardly ever here.
        left = torch.where(rest.sum(-1, keepdim=True) > 0, rest, left)
    drawn = draw(left, streams)
    if keep == q.shape[1]:
        return drawn
    further = proposal[:, keep + 1].tolist()
    return [further[row] if stays[row] > keep else drawn[row] for row in range(len(drawn))]
