"""HTML pages that need no other file: one dress for comparisons, runs, evaluations and fine-tunings, and small drawings."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --rule: #ddd; --paper: #fff; --head: #f5f5f3;
        --mark: #4878a8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --rule: #3a3a3a; --paper: #17181a; --head: #222427; --mark: #7fb0e0; }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 84rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 60rem; } p.sub { color: var(--soft); margin: 0 0 1.5rem; }
p.verdict { font-size: 1.05rem; border-left: 3px solid var(--mark); padding-left: .8rem; margin: 0 0 1.5rem; }
ul { padding-left: 1.2rem; margin: .4rem 0 1.6rem; }
div.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .8rem; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap;
         background: var(--paper); }
th { background: var(--head); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; font-weight: 600; position: sticky; left: 0; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.texts td { text-align: left; vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere;
                 font: .8rem/1.45 ui-monospace, monospace; }
table.words td:first-child, table.texts td:first-child { white-space: nowrap; padding-right: 1rem; }
pre { font: .8rem/1.45 ui-monospace, monospace; background: var(--head); padding: .8rem 1rem; border-radius: 6px;
      overflow-x: auto; }
summary { cursor: pointer; color: var(--soft); }
img { max-width: min(100%, 72rem); margin: .6rem 0; background: #fff; border-radius: 6px; }
svg { width: 100%; max-width: 46rem; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.bar { fill: var(--mark); } .line { fill: none; stroke: var(--mark); stroke-width: 1.5; }
.mark { stroke: #c44; stroke-dasharray: 4 3; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #bbb; --paper: #fff; --head: #f0f0f0; }
  body { font-size: 10pt; margin: 0; max-width: none; padding: 0; } div.wide { overflow: visible; }
  table { font-size: 7pt; } th, td { padding: .15rem .3rem; white-space: normal; }
  tr, img { break-inside: avoid; } h2, h3 { break-after: avoid; } thead { display: table-header-group; }
}
"""
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 180, 60, 24


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts, which are HTML; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of figures; cells are escaped, dotted keys in the head may break after a dot or a dash below."""
    if not rows:
        return "<p>There are none.</p>"

    def cells(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in map(html.escape, row)) + "</tr>"

    top = cells("th", head).replace(".", ".<wbr>").replace("_", "_<wbr>")
    body = "\n".join(cells("td", row) for row in rows)
    return f"<table>\n<thead>{top}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def facts(values: Mapping[str, str]) -> str:
    """Names and what is said about them, one under the other."""
    rows = (f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in values.items())
    return '<table class="words">\n' + "\n".join(rows) + "\n</table>"


def texts(named: Iterable[tuple[str, str]]) -> str:
    """Written text under names, one under the other, blank lines left out."""
    rows = (
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(without_blank_lines(text))}</td></tr>"
        for name, text in named
    )
    return '<table class="texts">\n' + "\n".join(rows) + "\n</table>"


def without_blank_lines(text: str) -> str:
    """The text with its blank lines left out, at its ends too."""
    return re.sub(r"\n\s*\n", "\n", text.strip("\n"))


def picture(words: str, content: bytes) -> str:
    """A PNG inside the page."""
    source = base64.b64encode(content).decode("ascii")
    return f'<div><img alt="{html.escape(words)}" src="data:image/png;base64,{source}"></div>'


# ---------------------------------------------------------------------------------------------- drawings


def line(values: Sequence[float]) -> str:
    """Values by index as a curve."""
    top = max([*values, 1e-12])
    step = (WIDTH - LEFT) / max(len(values) - 1, 1)
    points = " ".join(f"{LEFT + i * step:.1f},{height_of(value, top):.1f}" for i, value in enumerate(values))
    return drawing(
        f"<polyline class='line' fill='none' stroke='#4878a8' points='{points}'/>",
        top,
        ("0", f"{max(len(values) - 1, 0)}"),
    )


def bars(values: Mapping[str, float], mark: float) -> str:
    """Named values as bars, each over its name, and a line across at `mark`."""
    top = max([*values.values(), mark, 1e-12])
    step = (WIDTH - LEFT) / max(len(values), 1)
    every = -(-len(values) // 24)  # so many names stand beside each other
    drawn = []
    for i, (name, value) in enumerate(values.items()):
        x, y = LEFT + i * step, height_of(value, top)
        drawn.append(
            f"<rect class='bar' fill='#4878a8' x='{x + 2:.1f}' width='{step - 4:.1f}' y='{y:.1f}' "
            f"height='{HEIGHT - BOTTOM - y + 2:.1f}'><title>{html.escape(name)}: {value:.3f}</title></rect>"
        )
        if i % every == 0:
            drawn.append(
                f"<text x='{x + step / 2:.1f}' y='{HEIGHT - 6}' text-anchor='middle'>{html.escape(name)}</text>"
            )
    y = height_of(mark, top)
    drawn.append(f"<line class='mark' stroke='#c44' x1='{LEFT}' x2='{WIDTH}' y1='{y:.1f}' y2='{y:.1f}'/>")
    return drawing("".join(drawn), top)


def height_of(value: float, top: float) -> float:
    """Where a value stands in a drawing whose axis ends at `top`."""
    return (HEIGHT - BOTTOM) * (1 - value / top) + 2


def drawing(content: str, top: float, ends: tuple[str, str] | None = None) -> str:
    """SVG content on an axis from 0 to `top`; `ends` are written under the first and the last x."""
    axis = (
        f"<text x='{LEFT - 6}' y='12' text-anchor='end'>{top:.3g}</text>"
        f"<text x='{LEFT - 6}' y='{HEIGHT - BOTTOM}' text-anchor='end'>0</text>"
    )
    if ends is not None:
        axis += f"<text x='{LEFT}' y='{HEIGHT - 6}'>{html.escape(ends[0])}</text>"
        axis += f"<text x='{WIDTH}' y='{HEIGHT - 6}' text-anchor='end'>{html.escape(ends[1])}</text>"
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{axis}{content}</svg>"
