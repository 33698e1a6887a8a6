"""Dual slot: latents beside the predictions in a span of layers, each adding the latent of the token before.

    H = F(X), Y = F(X + shift(H)), F the span of layers, the suffix on Y alone (github.com/ZitongWang018/dual-slot)

What Y(t) reads is known as soon as token t is, so decoding runs both slots in one pass over two cells. Published with
causal visibility, where H sees earlier Y and Jacobi solves (K = `refinements` + 1 of the published passes); under
stage-causal visibility latents see latents alone and two passes of the span are exact. With same_slot predictions are
blind to latents. More thoughts are a deeper chain, H_s = F(X + shift(H_(s-1))).
"""

from __future__ import annotations

from latentpt.thoughts.plan import Feed
from latentpt.thoughts.shifting import ShiftingMethod


class DualSlot(ShiftingMethod):
    """u(t, 0) = X(t), u(t, s) = X(t) + H(t - 1, s - 1)."""

    def feeds(self, slots: int) -> tuple[Feed | None, ...]:
        """The slot before, of the position before."""
        return None, *(Feed(1, slot - 1) for slot in range(1, slots))
