"""IsoFLOP curves: at one budget, a parabola of loss over log size (Hoffmann et al. 2022, approach 2).

Parabolas are biased where the loss surface is not symmetric or the sizes are not centred (arXiv 2603.22339): the law
stands beside them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from latentpt.compare.fits.projection import Floats

BEYOND = 100.0


class Parabola(NamedTuple):
    """Parabolas fitted to k rows of losses at one budget."""

    parameters: Floats
    """Size at the lowest point [k], at most a hundred times beyond the measured ones; nan where the curve has none."""
    loss: Floats
    """Loss there [k]."""
    factors: Floats
    """Curvature, slope and height at the middle of log N [k, 3]."""
    middle: float
    """The middle of log N."""


def parabola(parameters: Floats, losses: Floats) -> Parabola | None:
    """Fit rows of losses [k, n] at sizes [n]; None unless there are three sizes."""
    if len(np.unique(parameters)) < 3:
        return None
    middle = float(np.log(parameters).mean())
    factors = losses @ np.linalg.pinv(np.vander(np.log(parameters) - middle, 3)).T
    bend, slope, height = factors.T
    reach = np.abs(np.log(parameters) - middle).max() + np.log(BEYOND)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.where(bend > 0, np.clip(-slope / (2 * bend), -reach, reach), np.nan)
    return Parabola(np.exp(at + middle), height + slope * at + bend * at**2, factors, middle)
