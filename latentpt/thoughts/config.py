"""The thoughts' configuration: which method, how many thoughts, which solver finds them in training."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from latentpt.config import Section


class ThoughtsConfig(Section):
    """Method, number of thoughts, visibility and solver."""

    method: str = "vanilla"
    """Thought method, a name of `latentpt.thoughts.METHODS`."""
    num_thoughts: int = 0
    """Latent slots N after every token."""
    visibility: Literal["causal", "stage_causal"] = "causal"
    """causal: a slot sees every earlier slot (the paper); stage_causal: slot s sees only slots s' <= s, exact in N + 1 passes."""
    solver: Literal["jacobi", "sequential"] = "jacobi"
    """How the training forward finds the latents under causal visibility."""
    refinements: int | tuple[int, int] = 3
    """Jacobi refinement passes K: a number, or [low, high] drawn for each training step from (seed, step); evaluation uses high."""
    bptt_passes: int | None = None
    """How many of the last passes carry gradient; null means all."""
    embed_scale: float | None = None
    """Factor on token embeddings; null means the method's own (sqrt(2.5 d) for latent and vanilla)."""

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
        if self.method == "vanilla" and self.num_thoughts:
            raise ValueError(
                f"thoughts.num_thoughts = {self.num_thoughts} with thoughts.method = vanilla, which has none; "
                "set thoughts.method = latent or thoughts.num_thoughts = 0"
            )
        return self

    @property
    def refinement_range(self) -> tuple[int, int]:
        """Smallest and largest number of refinements."""
        return (
            self.refinements if isinstance(self.refinements, tuple) else (self.refinements, self.refinements)
        )

    @property
    def num_slots(self) -> int:
        """Slots per position: S = N + 1."""
        return self.num_thoughts + 1
