"""The report as one HTML file that needs no other: table, picture, verdict, what differs, generated text."""

from __future__ import annotations

import base64
import html

from latentpt.compare.plan import held_equal, short
from latentpt.compare.results import Results
from latentpt.compare.tables import html_table, quantity

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --rule: #ddd; --paper: #fff; --head: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --rule: #3a3a3a; --paper: #17181a; --head: #222427; }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.sub { color: var(--soft); margin: 0 0 1.5rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { background: var(--head); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
blockquote { margin: .4rem 0 1rem; padding: .5rem .9rem; background: var(--head); border-radius: 6px;
             white-space: pre-wrap; font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
blockquote b { font-weight: 700; }
"""


def page(
    results: Results, title: str, header: list[str], rows: list[list[str]], notes: list[str], picture: bytes
) -> str:
    """The whole page; every piece of text is escaped, the PNG is inside."""
    arms = ", ".join(arm.name for arm in results.arms)
    source = base64.b64encode(picture).decode("ascii")
    differs = results.plan.differs
    names = [arm.name for arm in results.plan.arms]
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="sub">{html.escape(arms)}</p>',
        f'<div class="wide">{html_table(header, rows)}</div>',
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        f'<p><img alt="Validation loss of the arms" src="data:image/png;base64,{source}"></p>',
        "<h2>What differs between the arms</h2>",
        f'<div class="wide">{html_table(["key", *names], [[key, *(short(values[name]) for name in names)] for key, values in differs.items()])}</div>',
        f"<p>{html.escape(held_equal(results.plan))}</p>",
        *generated(results),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def generated(results: Results) -> list[str]:
    """Each prompt with the continuation of every arm (first seed)."""
    prompts = results.plan.comparison.prompts
    if not prompts:
        return []
    lines = ["<h2>Generated text</h2>"]
    for arm in results.arms:
        lines.append(f"<p><b>{html.escape(arm.name)}</b> ({quantity(arm.plan.parameters)} parameters)</p>")
        for prompt, text in arm.runs[0].measured.texts.items():
            lines.append(f"<blockquote><b>{html.escape(prompt)}</b>{html.escape(text)}</blockquote>")
    return lines
