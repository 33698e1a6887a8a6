"""The report of a comparison: one table, a verdict where the spread allows one, plots, generated text."""

from __future__ import annotations

from latentpt.compare.config import UNITS
from latentpt.compare.report.page import made_with, page
from latentpt.compare.report.plots import draw_costs, draw_finals
from latentpt.compare.report.published import publish
from latentpt.compare.report.results import ArmResult, Results, source_table, task_table
from latentpt.files import write_bytes, write_text
from latentpt.pages.document import table
from latentpt.pages.tables import markdown_table, quantity, text_table

HEADER = [
    "arm",
    "parameters",
    "FLOPs/token training",
    "FLOPs/token inference",
    "thoughts",
    "tokens",
    "training FLOPs",
    "seconds",
    "tokens/s",
    "validation loss",
    "exact-decode loss",
    "standard error",
    "gap",
]


PICTURES = {"loss.png": "Validation loss over what it costs", "arms.png": "Final losses of the arms"}


def write_report(results: Results, unigram: float) -> str:
    """Write report.md, report.html, pictures and every figure as data into the comparison's folder.

    Returns the report for the terminal: generated text first, the table and the verdict last, where they are seen.
    """
    folder = results.plan.comparison.folder
    title = f"Equal {UNITS[results.plan.comparison.budget]}: {quantity(results.plan.amount)}"
    rows = [row(arm) for arm in results.arms]
    drawn = [draw_costs(results, title), draw_finals(results, title)]
    for name, picture in zip(PICTURES, drawn, strict=True):
        write_bytes(folder / name, picture)
    note, judged = reading(results, unigram), verdict(results)
    pictures = dict(zip(PICTURES.values(), drawn, strict=True))
    write_text(folder / "report.html", page(results, title, table(HEADER, rows), note, judged, pictures))
    shown = [f"![{words}]({name})" for name, words in PICTURES.items()]
    by_source = source_table(results.arms)
    tables = {"table": (HEADER, rows), "sources": by_source, "tasks": task_table(results.arms)}
    publish(results, {name: table for name, table in tables.items() if len(table[0]) > 1}, study=None)
    below = [markdown_table(*by_source)] if len(by_source[0]) > 1 else []
    made = "\\\n".join(made_with(results))  # a backslash keeps the lines apart
    markdown = [f"# {title}", made, markdown_table(HEADER, rows), note, *judged, *below, *shown]
    write_text(folder / "report.md", "\n\n".join(markdown) + "\n")
    texts = [
        f"--- {arm.name}: {prompt}{text}"
        for arm in results.arms
        for prompt, text in arm.runs[0].measured.texts.items()
    ]
    return "\n\n".join([*texts, title, text_table(HEADER, rows), note, *judged])


def row(arm: ArmResult) -> list[str]:
    """One line of the table."""
    return [
        arm.name,
        quantity(arm.plan.parameters),
        quantity(arm.training_flops / arm.plan.tokens),
        quantity(arm.inference_flops_per_token),
        f"{arm.thoughts.mean:.2f}",
        quantity(arm.plan.tokens),
        quantity(arm.training_flops),
        f"{arm.seconds:.0f}",
        f"{arm.speed:.0f}",
        f"{arm.loss:.4f}",
        f"{arm.exact_loss:.4f}",
        "-" if arm.exact_loss.error is None else f"{arm.exact_loss.error:.4f}",
        f"{arm.gap:+.4f}",
    ]


def reading(results: Results, unigram: float) -> str:
    """How to read the table: units, spread, samples, and the loss of knowing nothing but token frequencies."""
    seeds = max(len(arm.runs) for arm in results.arms)
    samples = results.arms[0].runs[0].measured.samples
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    missing = "" if results.complete else " Not every planned run is finished yet."
    return (
        f"Losses are nats per token on {samples} held-out samples, {spread}; the training forward, exact sequential "
        f"decoding, and the gap between them. Thoughts are the average of a token in exact decoding, which inference FLOPs count. Token frequencies alone reach {unigram:.4f} (unigram).{missing}"
    )


def verdict(results: Results) -> list[str]:
    """What the differences from the reference in exact-decode loss allow to say: how large one must be, who passes."""
    reference = results.plan.comparison.reference_arm
    if results.reference is None or len(results.arms) < 2:
        return [f"No verdict: {reference} and another arm must be finished first."]
    smallest = results.smallest_difference()
    if smallest is None:
        return [
            "No verdict: not two seeds are finished in all arms, and one says nothing about the spread that a difference "
            "must exceed."
        ]
    means = {name: float(losses.mean()) for name, losses in results.shared_losses().items()}
    differences = {name: mean - means[reference] for name, mean in means.items() if name != reference}
    groups = {
        f"Better than {reference}": {n: d for n, d in differences.items() if d < -smallest},
        f"Worse than {reference}": {n: d for n, d in differences.items() if d > smallest},
        f"Not distinguishable from {reference}": {n: d for n, d in differences.items() if abs(d) <= smallest},
    }
    return [
        f"By exact-decode loss at equal {UNITS[results.plan.comparison.budget]}, differences from {reference} above "
        f"{smallest:.4f} nats exceed the spread of the seeds (95 %, all comparisons together).",
        *(f"{words}: {listed(group)}." for words, group in groups.items() if group),
    ]


def listed(differences: dict[str, float]) -> str:
    """Arms with their differences, the lowest loss first."""
    ranked = sorted(differences.items(), key=lambda pair: pair[1])
    return ", ".join(f"{name} ({difference:+.4f})" for name, difference in ranked)
