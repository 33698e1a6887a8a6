"""How a prompt is read: exactly, or by an approximate solver of the latent recurrence that works on all of it at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from latentpt.config import nearest
from latentpt.thoughts.converge import until_settled
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.schedule import Schedule, sequential
from latentpt.thoughts.watch import Watch

Solver = Literal["exact", "sequential", "gauss_seidel", "jacobi"]


@dataclass(frozen=True)
class Prefill:
    """A solver for prompts.

    Methods without feedback to what later slots see (vanilla, pause, loop, everything stage-causal) are exact in one
    sweep whatever the solver; only causal latent thoughts are approximated.
    """

    solver: Solver = "exact"
    """exact: in parallel where one sweep is exact, else token by token; sequential: token by token; gauss_seidel and
    jacobi: sweeps over the whole prompt until nothing moves."""
    tolerance: float = 1e-3
    """gauss_seidel and jacobi end when no latent's input moves by more than this share of its size."""
    max_sweeps: int = 32
    """They also end after so many sweeps; sweeps beyond the length of the prompt times S change nothing."""
    chunk: int | None = None
    """Positions read together, for less memory; None means the whole prompt."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.solver not in get_args(Solver):
            near = nearest(self.solver, get_args(Solver))
            raise ValueError(f"prefill solver {self.solver} is unknown; the nearest is {near}")
        if self.tolerance < 0:
            raise ValueError(f"prefill tolerance must be 0 or more, got {self.tolerance}")
        if self.max_sweeps < 2:
            raise ValueError(f"prefill max_sweeps must be at least 2, got {self.max_sweeps}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"prefill chunk must be at least 1, got {self.chunk}")

    def schedule(self, method: ThoughtMethod) -> tuple[Schedule, Watch | None]:
        """The schedule by which prompts are read, and who ends its sweeps early."""
        exact = method.exact_schedule()
        if self.solver == "sequential":
            return sequential(method.slots), None
        if exact.chunk is None:
            return replace(exact, chunk=self.chunk), None
        if self.solver == "exact":
            return exact, None
        slot_by_slot = self.solver == "gauss_seidel"
        return until_settled(method.slots, slot_by_slot, self.tolerance, self.max_sweeps, self.chunk)
