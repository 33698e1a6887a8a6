"""The thoughts' configuration: which method, how many thoughts, which solver finds them in training."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from latentpt.config import Section


class Phase(Section):
    """A stretch of training with fewer thoughts or refinements than at the end."""

    until_step: int
    """The phase holds for steps below this one."""
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
    visibility: Literal["causal", "stage_causal"] = "causal"
    """causal: a slot sees every earlier slot (the paper); stage_causal: slot s sees only slots s' <= s, exact in N + 1 passes."""
    solver: Literal["jacobi", "gauss_seidel", "strided", "sequential"] = "jacobi"
    """How the training forward finds the latents under causal visibility."""
    refinements: int | tuple[int, int] = 3
    """Refinement sweeps K after the first solution (gauss_seidel: K + 1 sweeps): a number, or [low, high] drawn for each
    training step from (seed, step); evaluation uses high."""
    draw: Literal["uniform", "inverse_cost"] = "uniform"
    """How K is drawn from a range: all alike, or with probability proportional to 1 / cost."""
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
    """Method pause: the vocabulary row that fills the latent slots, one that no text uses; null means the last row."""
    top_k: int | None = None
    """Methods ponder and latent_mixture: mix only the k most likely embeddings; null means all."""
    cumulative: bool = False
    """Method ponder: add to the last input (the original PonderLM) instead of to the first (the published LLaMA file)."""

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
        if ends != sorted(set(ends)):
            raise ValueError(f"thoughts.curriculum needs growing until_step values, got {ends}")
        for phase in self.curriculum:
            if not 0 <= phase.num_thoughts <= self.num_thoughts:
                raise ValueError(
                    f"thoughts.curriculum has num_thoughts = {phase.num_thoughts}, "
                    f"which must lie between 0 and thoughts.num_thoughts = {self.num_thoughts}"
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
        return self

    @property
    def refinement_range(self) -> tuple[int, int]:
        """Smallest and largest number of refinements."""
        return _range(self.refinements)

    def phase(self, step: int) -> tuple[int, tuple[int, int]]:
        """Slots in use and range of refinements at a training step."""
        for phase in self.curriculum:
            if step < phase.until_step:
                given = self.refinements if phase.refinements is None else phase.refinements
                return phase.num_thoughts + 1, _range(given)
        return self.num_slots, self.refinement_range

    @property
    def num_slots(self) -> int:
        """Slots per position: S = N + 1."""
        return self.num_thoughts + 1


def _range(refinements: int | tuple[int, int]) -> tuple[int, int]:
    return refinements if isinstance(refinements, tuple) else (refinements, refinements)
