"""The thoughts' configuration: which method, how many thoughts, which solver finds them in training."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from latentpt.config import ConfigError, NotNegative, Section

Span = Literal["all", "first", "middle", "last"] | tuple[int, int]
"""Layers of a decoder: all, a third of them, or (first, one after the last), counted from 0."""

FILLING = (
    "latent",
    "latent_mixture",
    "pause",
    "loop",
    "ponder",
    "ponder_hidden",
    "sequential_hidden_decoding",
    "mid_loop",
    "dual_slot",
    "alcot",
    "ponder3",
)
"""Methods that do nothing but fill latent slots, of which there must be one then."""


class Phase(Section):
    """A stretch of training with fewer thoughts or refinements than at the end."""

    until_step: int | float
    """The phase holds for steps below this one; a number below 1 is a share of the training's steps."""
    num_thoughts: int = 0
    """Latent slots in use."""
    refinements: int | tuple[int, int] | None = None
    """Refinement passes K or [low, high]; null means as configured."""


class ThoughtsConfig(Section):
    """Method, number of thoughts, visibility and solver."""

    method: str = "vanilla"
    """Thought method, a name of `latentpt.thoughts.registry.METHODS`."""
    num_thoughts: int = 0
    """Latent slots N after every token."""
    visibility: Literal["causal", "stage_causal", "same_slot"] = "causal"
    """causal: a slot sees every earlier slot (the paper); stage_causal: slot s sees only slots s' <= s, exact in N + 1
    passes; same_slot: slot s sees slots s alone, exact too."""
    span: Span | None = None
    """Layers that latent slots run through, the others run once a token: all, first, middle or last (a third of them), or
    [first, stop] counted from 0; null means the method's own: middle for mid_loop, smear, p2n, dual_slot and t2mlr, else
    all."""
    injection: Literal["add", "gate", "norm"] | None = None
    """Methods smear, p2n, dual_slot and hybrid: how the position before is added to a token: as it is, times a gate tanh(g)
    that starts at zero, or after an RMS norm; null means gate for hybrid and add for the others."""
    solver: Literal["jacobi", "gauss_seidel", "strided", "sequential"] = "jacobi"
    """How the training forward finds the latents under causal visibility."""
    refinements: int | tuple[int, int] = 3
    """Refinement sweeps K after the first solution (gauss_seidel: K + 1 sweeps): a number, or [low, high] drawn for each
    training step from (seed, step); evaluation uses high."""
    draw: Literal["uniform", "inverse_cost"] | tuple[NotNegative, ...] = "uniform"
    """How K is drawn from a range: all alike, with probability proportional to 1 / cost, or in proportion to these numbers,
    one for every K from low to high."""
    residual_target: float | None = None
    """Adapt K instead of drawing it: the smallest K in the range whose last refinement moved the latents by less than this
    (relative norm), as measured at the step before; null draws."""
    stride: int = 2
    """Solver strided: every stride-th position is solved together."""
    chunk: int | None = None
    """Solve blocks of this many positions one after another, each on the exact states of those before; null means all
    positions together."""
    curriculum: tuple[Phase, ...] = ()
    """Phases of early training, in order; after the last one the fields above hold. The optimizer state carries over."""
    bptt_passes: int | None = None
    """How many of the last passes carry gradient; null means all."""
    embed_scale: float | None = None
    """Factor on token embeddings; null means the method's own: sqrt(2.5 d) for vanilla, latent, loop and
    sequential_hidden_decoding, sqrt(d) for pause, ponder and latent_mixture, 1 for ponder_hidden."""
    pause_token: int | None = None
    """Method pause: the vocabulary row that fills the latent slots, one that no text uses; null means a row of its own."""
    top_k: int | None = None
    """Methods ponder and latent_mixture: mix only the k most likely embeddings; null means all."""
    cumulative: bool = False
    """Method ponder: add to the last input (the original PonderLM) instead of to the first (the published LLaMA file)."""

    # A state carried from token to token: lrt, fbt, t2mlr.
    loss_weights: tuple[NotNegative, ...] | None = None
    """Methods lrt, fbt and t2mlr: factors on the losses of the last sweeps, the last one's at the end; sweeps before them
    count nothing, and where there are fewer sweeps the last factors are scaled to the sum of all. null means the method's
    own: lrt the mean over sets, fbt the first plus the mean of the others, t2mlr the last alone."""
    detach: bool = False
    """Methods lrt, fbt and t2mlr: let no gradient through the states that are carried."""
    zero_init: bool = False
    """Methods lrt and fbt with fusion: add: what goes in begins at zero, so that a vanilla model goes on as it was."""
    shared_projections: bool = False
    """Method lrt: one pair of key and value projections for all layers instead of one a layer."""
    fusion: Literal["gate", "concat", "add"] = "gate"
    """Method fbt: how state and embedding become an input."""
    match_scale: bool = False
    """Method fbt: give a fused input the size of its token's embedding instead of 1, which is what embeddings had at first."""
    noise: NotNegative = 0.02
    """Method fbt: half-width of the uniform noise on states in training."""
    plain_prefix: bool = True
    """Method fbt: in training a random share of each document, from its first token on, reads plain embeddings."""

    # How many thoughts a token needs: alcot, ponder3.
    threshold: float = 0.0
    """Methods alcot and ponder3: a token stops thinking where less than this share of it would go on, in training and after;
    0 stops none. A trained model takes any other (`--threshold`)."""
    thought_price: float = 0.01
    """Methods alcot and ponder3: nats that the loss pays for a thought of a token, times W; more stops tokens earlier."""
    correctness: float | None = None
    """Methods alcot and ponder3: the price is paid in proportion to this power of the probability of the right token, so
    that tokens which are not known may think; null means the method's own: 1 for alcot, 0 (all pay alike) for ponder3."""

    @model_validator(mode="after")
    def _check(self) -> ThoughtsConfig:
        if self.num_thoughts < 0:
            raise ValueError(f"thoughts.num_thoughts must be 0 or more, got {self.num_thoughts}")
        low, high = self.refinement_range
        if low < 0 or high < low:
            raise ValueError(
                f"thoughts.refinements must be a number or [low, high] with 0 <= low <= high, got {self.refinements}"
            )
        if self.bptt_passes is not None and self.bptt_passes < 1:
            raise ValueError(f"thoughts.bptt_passes must be null or at least 1, got {self.bptt_passes}")
        for name in ("stride", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"thoughts.{name} must be at least 1, got {value}")
        ends = [phase.until_step for phase in self.curriculum]
        if any(end <= 0 or (end >= 1) != (ends[0] >= 1) or (end > 1 and end % 1) for end in ends):
            raise ValueError(
                f"thoughts.curriculum needs until_step values that are all whole numbers or all shares below 1, got {ends}"
            )
        if ends != sorted(set(ends)):
            raise ValueError(f"thoughts.curriculum needs growing until_step values, got {ends}")
        for phase in self.curriculum:
            if not 0 <= phase.num_thoughts <= self.num_thoughts:
                raise ValueError(
                    f"thoughts.curriculum has num_thoughts = {phase.num_thoughts}, "
                    f"which must lie between 0 and thoughts.num_thoughts = {self.num_thoughts}"
                )
        if isinstance(self.draw, tuple):
            ranges = [
                self.refinement_range,
                *(_range(p.refinements) for p in self.curriculum if p.refinements is not None),
            ]
            for low, high in ranges:
                if low < high and len(self.draw) != high - low + 1:
                    raise ValueError(
                        f"thoughts.draw has {len(self.draw)} numbers, but there are {high - low + 1} refinements from "
                        f"{low} to {high} to draw from"
                    )
        if isinstance(self.draw, tuple) and not sum(self.draw):
            raise ValueError(f"thoughts.draw needs a number above 0, got {list(self.draw)}")
        if self.loss_weights is not None and not sum(self.loss_weights[-1:]):
            raise ValueError(
                f"thoughts.loss_weights needs a last number above 0, got {list(self.loss_weights)}"
            )
        if self.residual_target is not None and self.residual_target <= 0:
            raise ValueError(f"thoughts.residual_target must be null or positive, got {self.residual_target}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"thoughts.threshold must lie between 0 and 1, got {self.threshold}")
        for name in ("thought_price", "correctness"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"thoughts.{name} must be 0 or more, got {getattr(self, name)}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"thoughts.top_k must be null or at least 1, got {self.top_k}")
        if self.method == "vanilla" and self.num_thoughts:
            raise ValueError(
                f"thoughts.num_thoughts = {self.num_thoughts} with thoughts.method = vanilla, which has none; "
                "set thoughts.method = latent or thoughts.num_thoughts = 0"
            )
        if self.method in FILLING and not self.num_thoughts:
            raise ValueError(
                f"thoughts.method = {self.method} with thoughts.num_thoughts = 0 would train a plain decoder; "
                "the nearest number that thinks is 1"
            )
        return self

    @property
    def refinement_range(self) -> tuple[int, int]:
        """Smallest and largest number of refinements."""
        return _range(self.refinements)

    def over(self, steps: int) -> ThoughtsConfig:
        """The same with a curriculum in steps, of a training of so many."""
        phases = (
            p.model_copy(update={"until_step": round(p.until_step * steps)}) if p.until_step < 1 else p
            for p in self.curriculum
        )
        return self.model_copy(update={"curriculum": tuple(phases)})

    def phase(self, step: int) -> tuple[int, tuple[int, int]]:
        """Slots in use and range of refinements at a training step; shares of a training must have become steps, see `over`."""
        for phase in self.curriculum:
            assert not 0 < phase.until_step < 1, "a share of a training"
            if step < phase.until_step:
                given = self.refinements if phase.refinements is None else phase.refinements
                return phase.num_thoughts + 1, _range(given)
        return self.num_slots, self.refinement_range

    @property
    def num_slots(self) -> int:
        """Slots per position: S = N + 1."""
        return self.num_thoughts + 1


def layers_of(span: Span, layers: int) -> tuple[int, int]:
    """First layer and the one after the last of a span; the middle third is what two outer ones of n // 3 layers leave.

    Raises ConfigError for layers that a decoder of so many does not have.
    """
    third = layers // 3
    named = {
        "all": (0, layers),
        "first": (0, third),
        "middle": (third, layers - third),
        "last": (layers - third, layers),
    }
    start, stop = named[span] if isinstance(span, str) else span
    if not 0 <= start < stop <= layers:
        raise ConfigError(
            f"thoughts.span = {span} is no span of {layers} layers; the nearest is "
            f"[{min(max(start, 0), layers - 1)}, {min(max(stop, start + 1, 1), layers)}]"
        )
    return start, stop


def _range(refinements: int | tuple[int, int]) -> tuple[int, int]:
    return refinements if isinstance(refinements, tuple) else (refinements, refinements)
