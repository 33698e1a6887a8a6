"""What a thought method is: how many slots, what is fed into them, what they see, which schedule solves them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentpt.config import ConfigError
from latentpt.modeling.config import ModelConfig
from latentpt.modeling.decoder import Decoder
from latentpt.seeding import stream
from latentpt.thoughts.chance import Chance
from latentpt.thoughts.config import Span, ThoughtsConfig, layers_of
from latentpt.thoughts.halting import Confidence, Halting
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
    chance: Chance | None = None
    """The random numbers of a sweep, in training forwards that draw any."""

    def placed(self, latents: Tensor) -> Tensor:
        """Inputs of latent slots [B, L, n, d] on the row of their position, where positions are learned."""
        return latents if self.rows is None else latents + self.rows

    def inside(self, stream: Tensor) -> Tokens:
        """The tokens in a span of layers, made from the stream [B, L, 1, d] that enters it, which knows its position."""
        return self._replace(embeds=stream, rows=None)

    def at(self, index: slice) -> Tokens:
        """The tokens at some places of the stretch."""
        if index == slice(0, None, 1):
            return self
        rows = None if self.rows is None else self.rows[..., index, :, :]
        documents, alive = (None if t is None else t[:, index] for t in (self.documents, self.alive))
        chance = None if self.chance is None else self.chance.at(index)
        return Tokens(
            self.ids[:, index],
            self.embeds[:, index],
            rows,
            self.positions[..., index],
            documents,
            alive,
            chance,
        )


class ThoughtMethod(nn.Module):
    """Base of all methods; a subclass says in `inject` what goes into a slot.

    A method is stateless unless it owns parameters. Everything it needs of the model is handed to it.
    """

    feedback = True
    """Whether a latent slot is fed the state before it; without feedback one pass is exact."""
    carry = False
    """Whether slot 0 is fed the state of the last slot of the position before (zero at the beginning of a document)."""
    one_slot = False
    """Whether the token's slot is the only one there can be."""
    tap: int | None = None
    """The layer before which states are taken off the stream; None: where the span of layers ends."""
    injections: nn.ModuleList | None
    """Layer by layer what goes into the layers themselves, see `latentpt.modeling.attention.Injection`."""
    halting: Halting | None
    """How many slots each token thinks, where that differs."""
    draws = False
    """Whether the forward of a training step draws random numbers, see `thoughts.chance`."""
    default_scale: float | None = 2.5
    """Token embeddings are multiplied by sqrt(default_scale * d); None leaves them as they are."""
    fixed_visibility: Visibility | None = None
    """What a slot sees where the method leaves no choice."""
    default_span: Span = "all"
    """The layers that are run for every slot."""

    def __init__(self, config: ThoughtsConfig, model: ModelConfig) -> None:
        """Raises ConfigError where the configuration asks for what the method or the model does not have."""
        super().__init__()
        self.config = config
        self.injections = self.halting = None  # as class attributes they would hide the modules of a subclass
        self.width, self.layers = model.hidden_size, model.num_layers
        if self.one_slot and config.num_thoughts:
            raise ConfigError(
                f"thoughts.num_thoughts = {config.num_thoughts} with thoughts.method = {config.method}, "
                "which has no latent slots; the nearest number is 0"
            )
        self._span = layers_of(config.span or self.default_span, model.num_layers)

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
        return self._span

    @property
    def looks_back(self) -> bool:
        """Whether a slot is fed by the position before."""
        return any(feed is not None and feed.back for feed in self.feeds(self.slots))

    @property
    def whole(self) -> bool:
        """Whether slots run through all layers and are fed by slots of their own position alone."""
        return self.span == (0, self.layers) and not self.looks_back

    def feeds(self, slots: int) -> tuple[Feed | None, ...]:
        """Slot by slot the cell whose state it is fed."""
        first = Feed(1, slots - 1) if self.carry else None
        return first, *(Feed(0, slot - 1) if self.feedback else None for slot in range(1, slots))

    def traits(self, slots: int | None = None) -> Traits:
        """What a plan is made for, with `slots` slots in use (None: all)."""
        slots = slots or self.slots
        halting = self.halting if slots > 1 else None
        weighed = halting is not None and (halting.weighs or halting.stops)
        return Traits(
            self.visibility,
            self.feeds(slots),
            self.layers,
            self.span,
            self.tap,
            mixes=halting is not None,
            weighed=weighed,
        )

    def stop_below(self, threshold: float) -> None:
        """From now on tokens stop thinking where their weight falls below `threshold`, a share; 0: nowhere.

        A method with a router has its own weights, any other goes by the confidence of slot 0 (`halting.Confidence`), and
        at 0 by nothing, as if it had never been asked. Raises ConfigError for a method that does neither.
        """
        if self.halting is not None and not isinstance(self.halting, Confidence):
            self.halting.threshold = threshold
            return
        normed = self.feedback and type(self).states is ThoughtMethod.states
        if self.slots == 1 or not self.whole or not normed:
            raise ConfigError(
                f"thoughts.method = {self.config.method} has no thoughts that a token could leave out by its first "
                "state; the nearest method that has is latent"
            )
        self.halting = Confidence(threshold) if threshold else None

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
        """What of the stream x [.., d] at the tap is fed back: by default the last hidden state, after the norm.

        A span that ends before the last layer hands on its stream as it is.
        """
        return decoder.norm(x) if self.span[1] == self.layers else x

    def update(self, states: Tensor, memory: Tensor | None) -> Tensor:
        """What becomes of states [B, L, n, d] when they are handed on by cells that were fed `memory` (None: nothing)."""
        return states

    @property
    def remembers(self) -> bool:
        """Whether what a cell is fed is asked for again, inside the layers or when its own state is handed on."""
        return self.injections is not None or type(self).update is not ThoughtMethod.update

    def initialize(self, seed: int) -> None:
        """Give those of its parameters their first values that do not start as the decoder's do."""

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
        waits = [None if feed is None else feed.slot for feed in self.feeds(slots)]
        ordered = slots == 1 or self.visibility is not Visibility.CAUSAL
        if waits == [None] * slots and (slots == 1 or not ordered):
            return one_pass(slots)
        in_order = all(other is None or other < slot for slot, other in enumerate(waits))
        return by_slot(slots) if ordered and in_order else sequential(slots)

    def injection_flops(self, model: ModelConfig, slot: int, carried: bool = True) -> int:
        """Forward FLOPs of making the input of one cell of a slot, and of what goes into its layers, beyond the layers.

        `carried` says whether anything is fed to its step.
        """
        return 0

    def memory_flops(self, model: ModelConfig) -> int:
        """Of these, the products with what is fed, whose gradient is not computed where that carries none."""
        return 0

    def choices(self, step: int) -> list[tuple[float, Schedule]]:
        """The schedules a training step may draw, with their probabilities."""
        slots, (low, high) = self.config.phase(step)
        schedules = [self.schedule(k, slots) for k in range(low, high + 1)]
        draw = self.config.draw
        if isinstance(draw, tuple) and len(draw) == len(schedules):
            weights = list(draw)
        else:
            weights = [1 / s.passes if draw == "inverse_cost" else 1.0 for s in schedules]
        return [
            (weight / sum(weights), schedule) for weight, schedule in zip(weights, schedules, strict=True)
        ]

    def schedule_at(self, step: int) -> Schedule:
        """The schedule by which the model is measured after a training step: its phase's, with the largest K."""
        slots, (_, high) = self.config.phase(step)
        return self.schedule(high, slots)

    def training_schedule(self, seed: int, step: int) -> Schedule:
        """The schedule of one training step, drawn from (seed, step) alone, hence the same on every rank."""
        choices = self.choices(step)
        weights = torch.tensor([weight for weight, _ in choices])
        drawn = torch.multinomial(weights, 1, generator=stream(seed, "refinements", step))
        chosen = choices[int(drawn)][1]
        if not self.draws:
            return chosen
        return replace(chosen, key=int(torch.randint(2**62, (), generator=stream(seed, "forward", step))))
