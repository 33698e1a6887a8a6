"""What methods share that think once a token and carry a state from each token to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentpt.seeding import stream
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.schedule import Schedule


class CarryMethod(ThoughtMethod):
    """Base of the methods with one slot, fed the state of the position before: decoding costs one pass a token."""

    carry = True
    one_slot = True

    def loss_weights(self, schedule: Schedule) -> Sequence[float] | None:
        """The method's own factors on the losses of the sweeps; None: the last one alone counts."""
        return None

    def schedule(self, refinements: int | None = None, slots: int | None = None) -> Schedule:
        """The solver's schedule, with a loss on several of its sweeps."""
        schedule = super().schedule(refinements, slots)
        weights = self.config.loss_weights or self.loss_weights(schedule)
        return schedule if weights is None else schedule.weighed(weights)

    def update(self, states: Tensor, memory: Tensor | None) -> Tensor:
        """The states as they are; without gradient if thoughts.detach."""
        return states.detach() if self.config.detach else states


@torch.no_grad()
def fill_uniform(module: nn.Module, bound: float, seed: int, name: str) -> None:
    """Give a module's parameters values from [-bound, bound] that depend on the seed and their name alone."""
    for part, parameter in module.named_parameters(name):
        values = torch.rand(parameter.shape, generator=stream(seed, part))
        parameter.copy_((2 * values - 1) * bound)
