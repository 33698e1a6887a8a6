"""The diagnostics as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from latentpt.evaluation.diagnostics import Diagnostics

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem } td, th { padding: 0.2rem 0.8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
svg { width: 100%; height: auto } .bar { fill: #4878a8 } .line { fill: none; stroke: #4878a8; stroke-width: 1.5 }
.mark { stroke: #c44; stroke-dasharray: 4 3 } text { font: 11px system-ui, sans-serif; fill: #555 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } tr { border-color: #444 } text { fill: #aaa } }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 180, 60, 24


def diagnostics_page(name: str, found: Diagnostics) -> str:
    """HTML of everything that was found out about the model `name`."""
    plain = {"the training forward": found.loss, "exact decoding": found.exact_loss}
    fewer = {f"only {count} of the thoughts": loss for count, loss in found.fewer.items()}
    replaced = {f"states replaced: {what.replace('_', ' ')}": loss for what, loss in found.replaced.items()}
    losses = plain | fewer | replaced
    parts = [
        f"<h1>Are the thoughts of {html.escape(name)} used?</h1>",
        "<h2>Loss</h2><p>Nats per token. If thinking helps, every line below the first two is worse.</p>",
        _table(("", "loss", "change"), [(what, f"{loss:.4f}", f"{loss - found.loss:+.4f}") for what, loss in losses.items()]),
        "<h2>Collapse</h2><p>Latents that are all alike say nothing: a cosine near 1, a first component near 100&nbsp;%, "
        "an effective rank near 1. The size is relative to a token's input.</p>",
        _table(
            ("latent", "mean cosine", "first component", "effective rank", "size"),
            [(str(c.slot), f"{c.cosine:.3f}", f"{c.first_share:.1%}", f"{c.effective_rank:.1f}", f"{c.size:.2f}") for c in found.collapse],
        ),
        "<h2>Residual of the solver</h2><p>How far the training forward's last state is from exact decoding, by position.</p>",
        _line(found.residual),
    ]  # fmt: skip
    if found.attention:
        parts += [
            "<h2>Attention on latent slots</h2><p>Of the predicting slot, by layer; the red line is their share among "
            "the slots it sees.</p>",
            _bars({str(layer): mass for layer, mass in enumerate(found.attention)}, found.latent_share),
        ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{html.escape(name)}</title>"
    return f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>There are none.</p>"
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _line(values: Sequence[float]) -> str:
    """Values by index as a curve."""
    top = max([*values, 1e-12])
    step = (_WIDTH - _LEFT) / max(len(values) - 1, 1)
    points = " ".join(f"{_LEFT + i * step:.1f},{_y(value, top):.1f}" for i, value in enumerate(values))
    last = f"<text x='{_WIDTH}' y='{_HEIGHT - 6}' text-anchor='end'>{max(len(values) - 1, 0)}</text>"
    return _drawing(f"<polyline class='line' points='{points}'/>{last}", top)


def _bars(values: Mapping[str, float], mark: float) -> str:
    """Named values as bars, and a line across at `mark`."""
    top = max([*values.values(), mark, 1e-12])
    step = (_WIDTH - _LEFT) / len(values)
    bars = "".join(
        f"<rect class='bar' x='{_LEFT + i * step + 2:.1f}' width='{step - 4:.1f}' y='{_y(value, top):.1f}' "
        f"height='{_HEIGHT - _BOTTOM - _y(value, top):.1f}'><title>{html.escape(name)}: {value:.3f}</title></rect>"
        for i, (name, value) in enumerate(values.items())
    )
    y = _y(mark, top)
    return _drawing(f"{bars}<line class='mark' x1='{_LEFT}' x2='{_WIDTH}' y1='{y:.1f}' y2='{y:.1f}'/>", top)


def _y(value: float, top: float) -> float:
    return (_HEIGHT - _BOTTOM) * (1 - value / top) + 2


def _drawing(content: str, top: float) -> str:
    axis = (
        f"<text x='{_LEFT - 6}' y='12' text-anchor='end'>{top:.3g}</text>"
        f"<text x='{_LEFT - 6}' y='{_HEIGHT - _BOTTOM}' text-anchor='end'>0</text>"
        f"<text x='{_LEFT}' y='{_HEIGHT - 6}'>0</text>"
    )
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{axis}{content}</svg>"
