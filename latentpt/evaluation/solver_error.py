"""How far each solver is from the exact recurrence, pass by pass, on a trained model and real text."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from latentpt.generation.decode import Session
from latentpt.thoughts.model import LanguageModel
from latentpt.thoughts.schedule import Schedule, gauss_seidel, jacobi, strided


class SolverError(NamedTuple):
    """One solver after one number of sweeps, against exact sequential decoding."""

    solver: str
    """What ran."""
    passes: int
    """Cells through the trunk per position."""
    state: float
    """Relative error of the last slots' hidden states, |h - h*| / |h*|."""
    divergence: float
    """Mean KL(exact || solver) of the next-token distributions in nats."""
    loss: float
    """Mean cross-entropy in nats per token, minus that of exact decoding."""


def schedules(slots: int, sweeps: int) -> dict[str, Schedule]:
    """The solvers worth comparing, each with up to `sweeps` refinements."""
    found = {f"jacobi, K = {k}": jacobi(slots, k) for k in range(sweeps + 1)}
    if slots > 1:  # with one slot it is Jacobi
        found |= {
            f"gauss_seidel, {k} sweep{'s' if k > 1 else ''}": gauss_seidel(slots, k)
            for k in range(1, sweeps + 2)
        }
    found |= {f"strided 2, K = {k}": strided(slots, 2, k) for k in range(1, sweeps + 1)}
    chunked = gauss_seidel(slots, 1).sweeps
    return found | {"gauss_seidel, 1 sweep, chunks of 32": Schedule(chunked, chunk=32)}


@torch.no_grad()
def solver_errors(model: LanguageModel, tokens: Tensor, sweeps: int = 4) -> list[SolverError]:
    """Errors on samples int64 [b, L + 1]; raises ValueError for a method that has nothing to solve."""
    method = model.method
    if method.exact_schedule().chunk is None:
        raise ValueError(
            f"{model.thoughts.method} with {model.thoughts.num_thoughts} thoughts and {model.thoughts.visibility} "
            "visibility is exact in one sweep; there is no solver to compare"
        )
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    exact = Session(model, *ids.shape).extend(ids)
    reference = _log_probabilities(model, exact)
    picked = _loss(reference, targets)
    found = []
    for name, schedule in schedules(method.slots, sweeps).items():
        hidden = model.think(ids, schedule)
        scores = _log_probabilities(model, hidden)
        divergence = (reference.exp() * (reference - scores)).sum(-1).mean()
        state = (hidden - exact).norm() / exact.norm()
        loss = _loss(scores, targets) - picked
        found.append(SolverError(name, schedule.passes, float(state), float(divergence), float(loss)))
    return found


def _log_probabilities(model: LanguageModel, hidden: Tensor) -> Tensor:
    return model.decoder.head(hidden).float().log_softmax(dim=-1)


def _loss(scores: Tensor, targets: Tensor) -> Tensor:
    return -scores.gather(-1, targets[..., None]).mean()


def table(errors: list[SolverError], trained_with: str) -> str:
    """The errors in lines, and how fast Jacobi contracts."""
    lines = [f"{'solver':<38} {'passes':>6} {'state error':>12} {'KL, nats':>10} {'loss - exact':>13}"]
    for e in errors:
        lines.append(f"{e.solver:<38} {e.passes:>6} {e.state:>12.2e} {e.divergence:>10.1e} {e.loss:>+13.1e}")
    ratios = [
        b.state / a.state
        for a, b in itertools.pairwise(errors)
        if a.solver.startswith("jacobi") and b.solver.startswith("jacobi") and b.state > 1e-6
    ]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"trained with {trained_with}; a Jacobi pass leaves {mean:.2f} of the error")
    return "\n".join(lines)
