"""Variable projection: for given exponents the law is linear, so two dimensions are searched (arXiv 2603.22339)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

Floats = NDArray[np.float64]
EXPONENTS = (0.01, 3.0)
"""Bounds of a and b."""
GRID = np.geomspace(0.05, 1.6, 10)


def project(parameters: Floats, tokens: Floats, loss: Floats) -> Floats:
    """Fit L = E + A N^-a + B D^-b to n runs, E, A and B at least zero; returns (log E, log A, a, log B, b).

    Relative residuals are those of log L to first order. For each pair of exponents the three factors are a linear least
    squares problem; the sum of squares left is searched over a grid and then followed downhill. Its gradient needs no
    derivative of the factors, which are optimal.
    """
    sizes = np.log(parameters / parameters.mean()), np.log(tokens / tokens.mean())

    def left(exponents: Floats) -> tuple[float, Floats, Floats]:
        powers = [np.exp(-e * x) for e, x in zip(exponents, sizes, strict=True)]
        columns = np.stack([np.ones_like(loss), *powers], axis=1) / loss[:, None]
        factors, norm = nnls(columns, np.ones_like(loss))
        residual = columns @ factors - 1
        slopes = [
            -2 * residual @ (f * c * x) for f, c, x in zip(factors[1:], columns.T[1:], sizes, strict=True)
        ]
        return norm**2, np.array(slopes), factors

    grid = [np.array([a, b]) for a in GRID for b in GRID]
    first = min(grid, key=lambda exponents: left(exponents)[0])
    found = minimize(
        lambda e: left(e)[:2],
        first,
        jac=True,
        method="L-BFGS-B",
        bounds=[EXPONENTS] * 2,
        options={"ftol": 1e-14},
    )
    _, _, factors = left(found.x)
    e, a, b = np.log(np.maximum(factors, 1e-8))
    alpha, beta = found.x
    return np.array([e, a + alpha * np.log(parameters.mean()), alpha, b + beta * np.log(tokens.mean()), beta])
