"""What a thought method is: how many slots, what is fed into them, what they see, which schedule solves them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.seeding import stream
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.plan import Feed, Traits, Visibility
from latentpt.thoughts.schedule import Schedule, by_slot, gauss_seidel, jacobi, one_pass, sequential, strided
from latentpt.thoughts.state import Before


class Tokens(NamedTuple):
    """The given part of a stretch of cells."""

    ids: Tensor
    """Token ids int64 [B, L]."""
    embeds: Tensor
    """What the slots are made from, [B, L, 1, d]: scaled embeddings, learned positions included; in a span of layers the
    stream that enters it."""
    rows: Tensor | None
    """Scaled rows of the learned position table [(B,) L, 1, d], which latent slots reuse; None with rotary positions."""
    positions: Tensor
    """Positions int64 [L] or [B, L]."""
    documents: Tensor | None = None
    """Number of each token's document, int64 [B, L], where documents are kept apart."""
    alive: Tensor | None = None
    """Slots that each token thinks, int64 [B, L]: nobody sees its later ones, and the last of these predicts. 0 is padding."""

    def placed(self, latents: Tensor) -> Tensor:
        """Inputs of latent slots [B, L, n, d] on the row of their position, where positions are learned."""
        return latents if self.rows is None else latents + self.rows

    def at(self, index: slice) -> Tokens:
        """The tokens at some places of the stretch."""
        if index == slice(0, None, 1):
            return self
        rows = None if self.rows is None else self.rows[..., index, :, :]
        documents, alive = (None if t is None else t[:, index] for t in (self.documents, self.alive))
        return Tokens(
            self.ids[:, index], self.embeds[:, index], rows, self.positions[..., index], documents, alive
        )


class ThoughtMethod(nn.Module):
    """Base of all methods; a subclass says in `inject` what goes into a slot.

    A method is stateless unless it owns parameters. Everything it needs of the model is handed to it.
    """

    feedback = True
    """Whether a latent slot is fed the state before it; without feedback one pass is exact."""
    carry = False
    """Whether slot 0 is fed the state of the last slot of the position before (zero at the beginning of a document)."""
    tap: int | None = None
    """The layer before which states are taken off the stream; None: where the span of layers ends."""
    injections: nn.ModuleList | None
    """Layer by layer what goes into the layers themselves, see `latentpt.modeling.attention.Injection`."""
    default_scale: float | None = 2.5
    """Token embeddings are multiplied by sqrt(default_scale * d); None leaves them as they are."""
    fixed_visibility: Visibility | None = None
    """What a slot sees where the method leaves no choice."""

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.injections = None  # as a class attribute it would hide the modules of a subclass
        self.width, self.layers = model.hidden_size, model.num_layers

    @property
    def slots(self) -> int:
        """Slots per position S = N + 1."""
        return self.config.num_slots

    @property
    def visibility(self) -> Visibility:
        """What a slot sees."""
        return self.fixed_visibility or Visibility[self.config.visibility.upper()]

    @property
    def span(self) -> tuple[int, int]:
        """The layers that are run for every slot; those before run on the token alone, those after on the last slot."""
        return 0, self.layers

    def feeds(self, slots: int) -> tuple[Feed | None, ...]:
        """Slot by slot the cell whose state it is fed."""
        first = Feed(1, slots - 1) if self.carry else None
        return first, *(Feed(0, slot - 1) if self.feedback else None for slot in range(1, slots))

    def traits(self, slots: int | None = None) -> Traits:
        """What a plan is made for, with `slots` slots in use (None: all)."""
        return Traits(self.visibility, self.feeds(slots or self.slots), self.layers, self.span, self.tap)

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
        """What of the stream x [.., d] at the tap is fed back: by default the last hidden state, after the norm."""
        return decoder.norm(x)

    def inject(self, decoder: Decoder, tokens: Tokens, slots: range, before: Before | None) -> Tensor:
        """Inputs [B, L, n, d] of the n slots named, from the cells that they are fed by; None in slots that none feeds.

        A slot 0 that nothing is carried into reads its token, and this is not called.
        """
        raise NotImplementedError

    def schedule(self, refinements: int | None = None, slots: int | None = None) -> Schedule:
        """How training and evaluation solve the recurrence.

        K = `refinements` is the largest configured one by default; fewer `slots` than S leave the last thoughts out.
        """
        config, slots = self.config, slots or self.slots
        refinements = config.refinement_range[1] if refinements is None else refinements
        exact = self.exact_schedule(slots)
        if slots == 1 and exact.chunk is None:
            return exact
        if config.solver == "sequential":
            return sequential(slots)
        if exact.chunk is None:
            solved = exact
        elif config.solver == "jacobi":
            solved = jacobi(slots, refinements)
        elif config.solver == "gauss_seidel":
            solved = gauss_seidel(slots, refinements + 1)
        else:
            solved = strided(slots, config.stride, refinements)
        return Schedule(solved.truncated(config.bptt_passes).sweeps, config.chunk)

    def exact_schedule(self, slots: int | None = None) -> Schedule:
        """The cheapest schedule that is exact: one sweep, unless a slot sees or is fed what is thought after it."""
        slots = slots or self.slots
        feeds = self.feeds(slots)
        ordered = slots == 1 or self.visibility is not Visibility.CAUSAL
        if not any(feeds) and (slots == 1 or not ordered):
            return one_pass(slots)
        in_order = all(feed is None or feed.slot < slot for slot, feed in enumerate(feeds))
        return by_slot(slots) if ordered and in_order else sequential(slots)

    def injection_flops(self, model: ModelConfig, slot: int) -> int:
        """Forward FLOPs of making the input of one cell of a slot, beyond the layers."""
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
