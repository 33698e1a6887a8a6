"""P2N: a span of layers reads its own outcome at the position before (github.com/hyq718/p2n)."""

from __future__ import annotations

from latentpt.thoughts.shifting import ShiftingMethod


class P2N(ShiftingMethod):
    """h(t) = F(X(t) + h(t - 1)) with F the span: one pass a token in decoding.

    Trained by Jacobi: H_0 = F(X), H_(k+1) = F(X + shift(H_k)), K = `refinements` (published: drawn from 2 and 3).
    """

    one_slot = True
    carry = True
