"""What a thought method is: how many slots, what fills them, what they see, which schedule solves them."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.seeding import stream
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.schedule import Schedule, by_slot, gauss_seidel, jacobi, one_pass, sequential, strided


class Visibility(Enum):
    """Which slots s' a slot s sees (of positions t' <= t; of its own position only what was thought before)."""

    CAUSAL = "every earlier slot"
    STAGE_CAUSAL = "s' <= s"
    SAME_SLOT = "s' = s"

    def sees(self, slot: int, other: int) -> bool:
        """Whether slot `slot` sees slot `other` of earlier positions."""
        if self is Visibility.SAME_SLOT:
            return other == slot
        return self is Visibility.CAUSAL or other <= slot

    def columns(self, slot: int, slots: int) -> list[slice]:
        """Where, in a flat sequence of cells with `slots` per position, the cells lie that slot `slot` sees."""
        if self is Visibility.CAUSAL:
            return [slice(None)]
        return [slice(j, None, slots) for j in range(slots) if self.sees(slot, j)]


class Tokens(NamedTuple):
    """The given part of a stretch of cells."""

    ids: Tensor
    """Token ids int64 [B, L]."""
    embeds: Tensor
    """Inputs of the token slots [B, L, 1, d]: scaled embeddings, learned positions included."""
    rows: Tensor | None
    """Scaled rows of the learned position table [(B,) L, 1, d], which latent slots reuse; None with rotary positions."""
    positions: Tensor
    """Positions int64 [L] or [B, L]."""
    documents: Tensor | None = None
    """Number of each token's document, int64 [B, L], where documents are kept apart."""

    def placed(self, latents: Tensor) -> Tensor:
        """Inputs of latent slots [B, L, n, d] on the row of their position, where positions are learned."""
        return latents if self.rows is None else latents + self.rows

    def at(self, index: slice | Tensor) -> Tokens:
        """The tokens at some places of the stretch."""
        rows = None if self.rows is None else self.rows[..., index, :, :]
        documents = None if self.documents is None else self.documents[:, index]
        return Tokens(self.ids[:, index], self.embeds[:, index], rows, self.positions[..., index], documents)


class ThoughtMethod(nn.Module):
    """Base of all methods; a subclass says in `latents` what fills slot s from slot s - 1.

    A method is stateless unless it owns parameters. Everything it needs of the model is handed to it.
    """

    feedback = True
    """Whether a latent slot depends on the state before it; without feedback one pass is exact."""
    default_scale: float | None = 2.5
    """Token embeddings are multiplied by sqrt(default_scale * d); None leaves them as they are."""
    fixed_visibility: Visibility | None = None
    """What a slot sees where the method leaves no choice."""

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.width = model.hidden_size

    @property
    def slots(self) -> int:
        """Slots per position S = N + 1."""
        return self.config.num_slots

    @property
    def visibility(self) -> Visibility:
        """What a slot sees."""
        return self.fixed_visibility or Visibility[self.config.visibility.upper()]

    @property
    def embed_scale(self) -> float:
        """Factor on token embeddings.

        Rows start with std sqrt(2 / (5 d)), so sqrt(2.5 d) gives them unit RMS, like a state that is fed back.
        """
        if self.config.embed_scale is not None:
            return self.config.embed_scale
        return 1.0 if self.default_scale is None else math.sqrt(self.default_scale * self.width)

    def tokens(self, decoder: Decoder, ids: Tensor, positions: Tensor) -> Tokens:
        """Embed ids [B, L] at int positions [L] or [B, L]."""
        scale = self.embed_scale
        embeds, rows = decoder.embedding(ids).unsqueeze(2) * scale, None
        if decoder.position_embedding is not None:
            rows = decoder.position_embedding(positions).unsqueeze(-2) * scale
            embeds = embeds + rows
        return Tokens(ids, embeds, rows, positions)

    def states(self, decoder: Decoder, x: Tensor) -> Tensor:
        """What of the residual stream x [.., d] after the last block is fed back: the last hidden state, after the norm."""
        return decoder.norm(x)

    def latents(
        self, decoder: Decoder, tokens: Tokens, slots: range, inputs: Tensor | None, states: Tensor | None
    ) -> Tensor:
        """Inputs [B, L, n, d] of the n latent slots named, from the n slots before them.

        inputs and states [B, L, n, d] are what those earlier slots read and what came out of them; None in a method
        without feedback.
        """
        raise NotImplementedError

    def schedule(self, refinements: int | None = None, slots: int | None = None) -> Schedule:
        """How training and evaluation solve the recurrence.

        K = `refinements` is the largest configured one by default; fewer `slots` than S leave the last thoughts out.
        """
        config, slots = self.config, slots or self.slots
        refinements = config.refinement_range[1] if refinements is None else refinements
        if slots == 1:
            return one_pass(1)
        if config.solver == "sequential":
            return sequential(slots)
        if self.visibility is not Visibility.CAUSAL:
            return Schedule(by_slot(slots).sweeps, config.chunk)
        if not self.feedback:
            return Schedule(one_pass(slots).sweeps, config.chunk)
        if config.solver == "jacobi":
            solved = jacobi(slots, refinements)
        elif config.solver == "gauss_seidel":
            solved = gauss_seidel(slots, refinements + 1)
        else:
            solved = strided(slots, config.stride, refinements)
        return Schedule(solved.truncated(config.bptt_passes).sweeps, config.chunk)

    def exact_schedule(self) -> Schedule:
        """The cheapest schedule that is exact: one sweep, unless later slots are seen and states fed back."""
        if self.slots == 1 or (not self.feedback and self.visibility is Visibility.CAUSAL):
            return one_pass(self.slots)
        return sequential(self.slots) if self.visibility is Visibility.CAUSAL else by_slot(self.slots)

    def latent_flops(self, model: ModelConfig) -> int:
        """Forward FLOPs of making one latent slot's input, beyond the trunk."""
        return 0

    def choices(self, step: int) -> list[tuple[float, Schedule]]:
        """The schedules a training step may draw, with their probabilities."""
        slots, (low, high) = self.config.phase(step)
        schedules = [self.schedule(k, slots) for k in range(low, high + 1)]
        weights = [1 / s.passes if self.config.draw == "inverse_cost" else 1.0 for s in schedules]
        return [
            (weight / sum(weights), schedule) for weight, schedule in zip(weights, schedules, strict=True)
        ]

    def training_schedule(self, seed: int, step: int) -> Schedule:
        """The schedule of one training step, drawn from (seed, step) alone, hence the same on every rank."""
        choices = self.choices(step)
        weights = torch.tensor([weight for weight, _ in choices])
        drawn = torch.multinomial(weights, 1, generator=stream(seed, "refinements", step))
        return choices[int(drawn)][1]
