"""The report as one HTML file that needs no other: table, verdict, pictures, what differs, generated text."""

from __future__ import annotations

import html
import time

from latentpt.compare.planning.describe import differences_table, held_equal
from latentpt.compare.report.results import Results, source_table, task_table
from latentpt.pages.document import document, picture, texts
from latentpt.pages.document import table as table_of
from latentpt.run import RunFolder
from latentpt.run.provenance import provenance


def page(
    results: Results, title: str, table: str, note: str, verdict: list[str], pictures: dict[str, bytes]
) -> str:
    """The whole page; every piece of text is escaped, the PNGs are inside under their words."""
    first, *others = verdict
    sections = [
        *head(title, results),
        f'<div class="wide">{table}</div>',
        f"<p>{html.escape(note)}</p>",
        f"<p>{html.escape(first)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in others) + "</ul>"
        if others
        else "",
        *sources(results),
        *(picture(words, content) for words, content in pictures.items()),
        "<h2>What differs between the arms</h2>",
        f'<div class="wide">{table_of(*differences_table(results.plan))}</div>',
        f"<p>{html.escape(held_equal(results.plan))}</p>",
        *generated(results),
    ]
    return document(title, sections)


def head(title: str, results: Results) -> list[str]:
    """Title, what was compared, and when and with what."""
    comparison = results.plan.comparison
    seeds = ", ".join(map(str, comparison.seeds))
    finished = len({arm.plan.arm for arm in results.arms})
    sub = [
        f"{finished} arms, seeds {seeds}, reference {comparison.reference_arm}",
        *made_with(results),
    ]
    return [f"<h1>{html.escape(title)}</h1>", f'<p class="sub">{"<br>".join(map(html.escape, sub))}</p>']


def sources(results: Results) -> list[str]:
    """Losses by held-out source and metrics of downstream tasks, arm by arm, where there are any."""
    parts = []
    for words, (header, rows) in (
        ("Exact-decode loss by source", source_table(results.arms)),
        ("Downstream tasks", task_table(results.arms)),
    ):
        if len(header) > 1:
            parts += [f"<h2>{words}</h2>", f'<div class="wide">{table_of(header, rows)}</div>']
    return parts


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
