"""The report as one HTML file that needs no other: table, verdict, pictures, what differs, generated text."""

from __future__ import annotations

import html
import time

from latentpt.compare.plan import differences_table, held_equal
from latentpt.compare.results import Results
from latentpt.pages.document import document, picture, texts
from latentpt.pages.document import table as table_of
from latentpt.run import RunFolder
from latentpt.run.provenance import provenance


def page(
    results: Results, title: str, table: str, note: str, verdict: list[str], pictures: dict[str, bytes]
) -> str:
    """The whole page; every piece of text is escaped, the PNGs are inside under their words."""
    comparison = results.plan.comparison
    seeds = ", ".join(map(str, comparison.seeds))
    sub = [
        f"{len(results.arms)} arms, seeds {seeds}, reference {comparison.reference_arm}",
        *made_with(results),
    ]
    first, *others = verdict
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="sub">{"<br>".join(map(html.escape, sub))}</p>',
        f'<div class="wide">{table}</div>',
        f"<p>{html.escape(note)}</p>",
        f"<p>{html.escape(first)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in others) + "</ul>"
        if others
        else "",
        *(picture(words, content) for words, content in pictures.items()),
        "<h2>What differs between the arms</h2>",
        f'<div class="wide">{table_of(*differences_table(results.plan))}</div>',
        f"<p>{html.escape(held_equal(results.plan))}</p>",
        *generated(results),
    ]
    return document(title, sections)


def made_with(results: Results) -> list[str]:
    """When, on what and with what the runs were trained, a line each."""
    folders = [
        RunFolder(results.plan.run_folder(arm.name, run.seed)) for arm in results.arms for run in arm.runs
    ]
    made = provenance(folders)
    today = time.strftime("%Y-%m-%d")
    dates = f"trained {made['trained']}, reported {today}" if "trained" in made else f"reported {today}"
    return [dates, *(made[name] for name in ("hardware", "versions") if name in made)]


def generated(results: Results) -> list[str]:
    """Every prompt with what each arm (first seed) goes on with, one under the other, blank lines left out."""
    prompts = results.plan.comparison.prompts
    if not prompts:
        return []
    lines = ["<h2>Generated text</h2>"]
    for prompt in prompts:
        lines.append(f"<h3>{html.escape(prompt)}</h3>")
        lines.append(texts((arm.name, arm.runs[0].measured.texts.get(prompt, "")) for arm in results.arms))
    return lines
