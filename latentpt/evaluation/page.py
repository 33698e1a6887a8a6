"""The diagnostics as one HTML page that needs nothing else."""

from __future__ import annotations

import html

from latentpt.evaluation.diagnostics import Diagnostics
from latentpt.pages.document import bars, document, line, table


def diagnostics_page(name: str, found: Diagnostics) -> str:
    """HTML of everything that was found out about the model `name`."""
    plain = {"the training forward": found.loss, "exact decoding": found.exact_loss}
    fewer = {f"only {count} of the thoughts": loss for count, loss in found.fewer.items()}
    replaced = {f"latents replaced: {what.replace('_', ' ')}": loss for what, loss in found.replaced.items()}
    losses = plain | fewer | replaced
    parts = [
        f"<h1>Are the thoughts of {html.escape(name)} used?</h1>",
        "<h2>Loss</h2><p>Nats per token. If thinking helps, every line below the first two is worse.</p>",
        table(("", "loss", "change"), [(what, f"{loss:.4f}", f"{loss - found.loss:+.4f}") for what, loss in losses.items()]),
        "<h2>Collapse</h2><p>Latents that are all alike say nothing: a cosine near 1, a first component near 100&nbsp;%, "
        "an effective rank near 1. The size is relative to a token's input.</p>",
        table(
            ("latent", "mean cosine", "first component", "effective rank", "size"),
            [(str(c.slot), f"{c.cosine:.3f}", f"{c.first_share:.1%}", f"{c.effective_rank:.1f}", f"{c.size:.2f}") for c in found.collapse],
        ),
        "<h2>Residual of the solver</h2><p>How far the training forward's last state is from exact decoding, by position.</p>",
        line(found.residual),
    ]  # fmt: skip
    if found.attention:
        parts += [
            "<h2>Attention on latent slots</h2><p>Of the predicting slot, by layer; the red line is their share among "
            "the slots it sees.</p>",
            bars({str(layer): mass for layer, mass in enumerate(found.attention)}, found.latent_share),
        ]
    return document(name, parts)
