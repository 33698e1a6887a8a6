"""How a prompt is read: exactly, or by an approximate solver of the latent recurrence that works on all of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from latentpt.config import nearest
from latentpt.modeling.decoder import KeysValues
from latentpt.thoughts.converge import solve_to_tolerance
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import sequential

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

    def in_parallel(self, model: LanguageModel) -> bool:
        """Whether prompts of this model are read many positions at once."""
        if self.solver == "exact":
            return model.method.exact_schedule().chunk != 1
        return self.solver != "sequential"

    @torch.no_grad()
    def read(self, model: LanguageModel, ids: Tensor, prefix: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """h(t, N) after the final norm [B, n, d] of ids [B, n] that follow the prefix, and their keys and values."""
        exact = model.method.exact_schedule()
        if self.solver == "sequential":
            exact = sequential(model.method.slots)
        elif self.solver != "exact" and exact.chunk == 1:
            start = prefix[0][0].shape[2] // model.method.slots if prefix else 0
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)
            tokens = model.method.tokens(model.decoder, ids, positions)
            x, kv, _ = solve_to_tolerance(
                model.decoder, model.method, tokens, self.solver == "gauss_seidel", self.tolerance, self.max_sweeps,
                prefix,
            )  # fmt: skip
            return model.decoder.norm(x), kv
        return model.think(ids, exact, prefix, keep=True)
