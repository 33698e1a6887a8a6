"""No thoughts: the decoder as it is, and the baseline of every comparison."""

from __future__ import annotations

from latentpt.thoughts.method import ThoughtMethod


class Vanilla(ThoughtMethod):
    """One slot per position; nothing is fed back."""

    feedback = False
    one_slot = True
