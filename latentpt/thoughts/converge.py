"""Solve a stretch by repeating one sweep until it no longer changes anything: for prompts, without gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpt.modeling.decoder import Decoder, KeysValues
from latentpt.thoughts.method import ThoughtMethod, Tokens
from latentpt.thoughts.schedule import Sweep
from latentpt.thoughts.solvers import Cells, Stretch


@torch.no_grad()
def solve_to_tolerance(
    decoder: Decoder,
    method: ThoughtMethod,
    tokens: Tokens,
    slot_by_slot: bool,
    tolerance: float,
    most: int,
    prefix: KeysValues | None = None,
) -> tuple[Tensor, KeysValues, int]:
    """Sweep over tokens [B, L] until the latent slots' inputs change by less than `tolerance`, `most` times at most.

    The sweep goes slot by slot (Gauss-Seidel) or over all cells at once (Jacobi, after its growing passes). The change
    is the largest over all positions of ||u - u'|| / ||u||. Returns the residual stream of the last slots [B, L, d], the
    keys and values of the stretch, and the number of sweeps over all slots.
    """
    slots = method.slots
    stretch = Stretch(decoder, method, tokens, list(prefix or []))
    again = Sweep(slots, stride=slots if slot_by_slot else 1)
    growing = [] if slot_by_slot else [Sweep(k) for k in range(1, slots)]
    cells: Cells | None = None
    for sweep, following in zip(growing, [*growing, again][1:], strict=True):
        cells = stretch.sweep(sweep, following, cells, keep=False)
    before: Tensor | None = None
    count = 1
    while count < most:
        cells = stretch.sweep(again, again, cells, keep=False)
        count += 1
        latents = cells.inputs[:, :, -1]
        if before is not None and _change(latents, before) < tolerance:
            break
        before = latents
    cells = stretch.sweep(again, None, cells, keep=True)
    return cells.x[:, :, -1], cells.kv, count


def _change(new: Tensor, old: Tensor) -> float:
    """Largest relative distance of rows of [B, L, d]."""
    return ((new - old).norm(dim=-1) / new.norm(dim=-1)).max().item()
