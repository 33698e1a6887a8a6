"""Generation with latents: the prompt as in training, then token by token, every row on keys and values of its own past.

Where a row's next id is the latent token, the next position reads the fill of the states just found instead of the
token's embedding. Who decides that is `Switch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentpt.finetuning.fills import Fill
from latentpt.finetuning.layout import Segment, lay_out
from latentpt.finetuning.rollout import Rollout, check_length
from latentpt.finetuning.stretch import Thinking, room
from latentpt.thoughts.model import LanguageModel


@dataclass(frozen=True)
class Switch:
    """When a model that generates thinks a latent instead of saying a token."""

    rule: Literal["argmax", "threshold", "never"] = "argmax"
    """argmax: when the latent token is the likeliest (LT-Tuning's code); threshold: when the likeliest other token has
    a probability below tau (its paper); never: the latent token is out of the question (Coconut after its latents)."""
    tau: float = 0.5
    """threshold: the probability below which a latent is thought."""
    most: int | None = None
    """Latents that may follow one another; then a token is said. None sets no limit, with threshold it is 1."""

    def choose(self, logits: Tensor, latent_token: int, run: Tensor) -> Tensor:
        """The next ids [B] after logits [B, V], when `run` [B] latents have just followed one another."""
        words = logits.clone()
        words[:, latent_token] = float("-inf")
        said = words.argmax(dim=-1)
        if self.rule == "never":
            return said
        most = 1 if self.most is None and self.rule == "threshold" else self.most
        if self.rule == "argmax":
            wants = logits.argmax(dim=-1) == latent_token
        else:
            wants = words.float().softmax(dim=-1).amax(dim=-1) < self.tau
        if most is not None:
            wants = wants & (run < most)
        return torch.where(wants, latent_token, said)


@torch.no_grad()
def latent_generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    fill: Fill,
    max_new_tokens: int,
    eos: int | None,
    switch: Switch | None = None,
) -> list[list[int]]:
    """Continue every prompt greedily by up to max_new_tokens ids; returns the new ids of each, `eos` included.

    Latent tokens in a prompt are filled, and those that a row comes to are executed and returned. A row's result does
    not depend on its neighbours. The model's own thoughts are decoded exactly. Raises ValueError for an empty prompt,
    for one that begins with a latent and for more tokens than a learned table of positions holds.
    """
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    switch = switch or Switch()
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    layout = lay_out(ids, fill.latent_token, mask, cut=fill.feedback)
    check_length(model, width + max_new_tokens - 1)
    tokens = model.method.tokens(model.decoder, ids, layout.positions)
    holes = layout.padded or len(prompts) > 1  # rows will end at different times
    capacity = sum(segment.columns.shape[1] for segment in layout.segments) + max_new_tokens
    cache = room(model, len(prompts), capacity)
    thinking = Thinking(model, model.method.exact_schedule(), fill.block(model.config), cache)
    rollout = Rollout(model, fill, thinking, holes)
    rollout.run(tokens, layout)
    found: list[list[int]] = [[] for _ in prompts]
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    run = trailing_latents(prompts, fill.latent_token).to(device)
    position = mask.sum(dim=1)
    while True:
        assert rollout.hidden is not None
        chosen = switch.choose(model.decoder.head(rollout.hidden), fill.latent_token, run)
        latent = chosen == fill.latent_token
        run = torch.where(latent, run + 1, 0)
        for row, (token, speaks) in enumerate(zip(chosen.tolist(), alive.tolist(), strict=True)):
            if speaks:
                found[row].append(token)
        alive = alive & (chosen != eos) if eos is not None else alive
        if len(max(found, key=len)) >= max_new_tokens or not bool(alive.any()):
            return found
        step = model.method.tokens(model.decoder, chosen[:, None], position[:, None])
        nothing = torch.zeros_like(position)
        cell = Segment(nothing[:, None], alive[:, None], latent[:, None], nothing.where(alive, -1))
        rollout.segment(step, cell)
        position = position + 1


def trailing_latents(prompts: Sequence[Sequence[int]], latent_token: int) -> Tensor:
    """How many latents each prompt ends with, int64 [B]."""
    runs = []
    for prompt in prompts:
        run = 0
        while run < len(prompt) and prompt[-1 - run] == latent_token:
            run += 1
        runs.append(run)
    return torch.tensor(runs)
