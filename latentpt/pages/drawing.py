"""Pictures by matplotlib in one style, as the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

matplotlib.use("Agg")

# Distinguishable for colour-blind readers too (after Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
LOSS = "loss (nats per token)"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
}


def png(figure: Figure) -> bytes:
    """The figure as a file's bytes; it is closed."""
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=144)
    plt.close(figure)
    return picture.getvalue()
