"""The diagnostics as one HTML page that needs nothing else."""

from __future__ import annotations

import html

from latentpt.evaluation.diagnostics import Changes, Diagnostics, verdict
from latentpt.pages.document import bars, document, line, table


def diagnostics_page(name: str, where: str, found: Diagnostics) -> str:
    """HTML of everything that was found out about the model `name`, `where` being the text it was asked on."""
    samples, length, some = found.samples, found.length, found.looked_at
    parts = [
        f"<h1>Are the thoughts of {html.escape(name)} used?</h1>",
        f"<p class='sub'>{html.escape(where)}: {samples:,} samples of {length:,} tokens, {samples * length:,} predictions. "
        "± is a standard error over samples; a change is measured sample by sample.</p>",
        f"<p class='verdict'>{html.escape(verdict(found))}</p>",
        "<h2>Loss</h2><p>Nats per token. If thinking helps, every line below the first two is worse. A change is called "
        "chance where its 95&nbsp;% interval includes zero.</p>",
        table(("", "loss", "change", "standard error", ""), _losses(found)),
    ]
    if found.collapse:
        parts += [
            f"<h2>Collapse</h2><p>Latents that are all alike say nothing: a cosine near 1, a first component near 100&nbsp;%, "
            f"an effective rank near 1. The size is relative to a token's input. {some:,} samples, {some * length:,} latents "
            "of each slot.</p>",
            table(
                ("latent slot", "mean cosine", "first component", "effective rank", "size"),
                [
                    (
                        str(c.slot),
                        f"{c.cosine:.3f}",
                        f"{c.first_share:.1%}",
                        f"{c.effective_rank:.1f}",
                        f"{c.size:.2f}",
                    )
                    for c in found.collapse
                ],
            ),
        ]
    parts += [
        "<h2>Residual of the solver</h2><p>How far the training forward's last state is from exact decoding (relative), by "
        f"position, the mean of {some:,} samples.</p>",
        line(found.residual),
    ]
    if found.attention:
        layers = {f"layer {layer}": mass for layer, mass in enumerate(found.attention, found.first_layer)}
        parts += [
            "<h2>Attention on latent slots</h2><p>Of the predicting slot, by layer, 0 being the one next to the input; the mean "
            f"of heads and of {some * length:,} positions. The red line is their share among the slots it sees "
            f"({found.latent_share:.2f}), which attention without a preference would have.</p>",
            bars(layers, found.latent_share),
        ]
    return document(name, parts)


def _losses(found: Diagnostics) -> list[tuple[str, ...]]:
    rows = [("the training forward", f"{found.loss.value:.4f}", "", "", "")]
    changes = {"exact decoding": found.exact}
    changes |= {f"only {count} of the thoughts": change for count, change in found.fewer.items()}
    changes |= {f"states replaced: {what.replace('_', ' ')}": one for what, one in found.replaced.items()}
    return rows + [_row(what, change) for what, change in changes.items()]


def _row(what: str, change: Changes) -> tuple[str, ...]:
    error = "" if change.cost.error is None else f"{change.cost.error:.4f}"
    return (
        what, f"{change.loss:.4f}", f"{change.cost.value:+.4f}", error, "" if change.tells else "cannot tell",
    )  # fmt: skip
