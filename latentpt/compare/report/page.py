"""The report as one HTML file that needs no other: table, verdict, pictures, what differs, generated text."""

from __future__ import annotations

import base64
import html
import re

from latentpt.compare.planning.describe import differences_table, held_equal
from latentpt.compare.report.results import Results, source_table, task_table
from latentpt.compare.tables import html_table

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --rule: #ddd; --paper: #fff; --head: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --rule: #3a3a3a; --paper: #17181a; --head: #222427; }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 84rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 60rem; } p.sub { color: var(--soft); margin: 0 0 1.5rem; }
ul { padding-left: 1.2rem; margin: .4rem 0 1.6rem; }
div.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; font-size: .8rem; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap;
         background: var(--paper); }
th { background: var(--head); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; font-weight: 600; position: sticky; left: 0; }
table.texts td { text-align: left; vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere;
                 font: .8rem/1.45 ui-monospace, monospace; }
table.texts td:first-child { white-space: nowrap; padding-right: 1rem; }
img { max-width: min(100%, 72rem); margin: .6rem 0; background: #fff; border-radius: 6px; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --rule: #bbb; --paper: #fff; --head: #f0f0f0; }
  body { font-size: 10pt; margin: 0; max-width: none; padding: 0; } div.wide { overflow: visible; }
  table { font-size: 7pt; } th, td { padding: .15rem .3rem; white-space: normal; }
  tr, img { break-inside: avoid; } h2, h3 { break-after: avoid; } thead { display: table-header-group; }
}
"""


def page(
    results: Results, title: str, table: str, note: str, verdict: list[str], pictures: dict[str, bytes]
) -> str:
    """The whole page; every piece of text is escaped, the PNGs are inside under their words."""
    first, *others = verdict
    sections = [
        f'<div class="wide">{table}</div>',
        f"<p>{html.escape(note)}</p>",
        f"<p>{html.escape(first)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in others) + "</ul>"
        if others
        else "",
        *sources(results),
        *(picture(words, content) for words, content in pictures.items()),
        "<h2>What differs between the arms</h2>",
        f'<div class="wide">{html_table(*differences_table(results.plan))}</div>',
        f"<p>{html.escape(held_equal(results.plan))}</p>",
        *generated(results),
    ]
    return document(title, results, "\n".join(filter(None, sections)))


def document(title: str, results: Results, body: str) -> str:
    """A page of its own around a report: title, what was compared, body."""
    comparison = results.plan.comparison
    seeds = ", ".join(map(str, comparison.seeds))
    sub = f"{len(comparison.arms)} arms, seeds {seeds}, reference {comparison.reference_arm}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + f'<h1>{html.escape(title)}</h1>\n<p class="sub">{html.escape(sub)}</p>\n{body}'
        + "\n</body>\n</html>\n"
    )


def sources(results: Results) -> list[str]:
    """Losses by held-out source and metrics of downstream tasks, arm by arm, where there are any."""
    parts = []
    for words, (header, rows) in (
        ("Exact-decode loss by source", source_table(results)),
        ("Downstream tasks", task_table(results)),
    ):
        if len(header) > 1:
            parts += [f"<h2>{words}</h2>", f'<div class="wide">{html_table(header, rows)}</div>']
    return parts


def picture(words: str, content: bytes) -> str:
    """A PNG inside the page."""
    source = base64.b64encode(content).decode("ascii")
    return f'<div><img alt="{html.escape(words)}" src="data:image/png;base64,{source}"></div>'


def generated(results: Results) -> list[str]:
    """Every prompt with what each arm (first seed) goes on with, one under the other, blank lines left out."""
    prompts = results.plan.comparison.prompts
    if not prompts:
        return []
    lines = ["<h2>Generated text</h2>"]
    for prompt in prompts:
        lines.append(f"<h3>{html.escape(prompt)}</h3>")
        texts = [(arm.name, arm.runs[0].measured.texts.get(prompt, "")) for arm in results.arms]
        texts = [(name, re.sub(r"\n\s*\n", "\n", text.strip())) for name, text in texts]
        rows = "\n".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in texts
        )
        lines.append(f'<table class="texts">\n{rows}\n</table>')
    return lines
