"""The report of a comparison: one table, a verdict where the spread allows one, plots, generated text."""

from __future__ import annotations

from latentpt.compare.config import UNITS
from latentpt.compare.page import page
from latentpt.compare.plots import draw
from latentpt.compare.results import ArmResult, Results
from latentpt.compare.tables import markdown_table, quantity, text_table
from latentpt.files import write_bytes, write_text

HEADER = [
    "arm",
    "parameters",
    "FLOPs/token training",
    "FLOPs/token inference",
    "tokens",
    "training FLOPs",
    "seconds",
    "tokens/s",
    "validation loss",
    "exact-decode loss",
    "gap",
]


def write_report(results: Results, unigram: float) -> str:
    """Write report.md, report.html and loss.png into the comparison's folder; returns the report for the terminal."""
    folder = results.plan.comparison.folder
    title = f"Equal {UNITS[results.plan.comparison.budget]}: {quantity(results.plan.amount)}"
    rows = [row(arm) for arm in results.arms]
    picture = draw(results, title)
    write_bytes(folder / "loss.png", picture)
    notes = [reading(results, unigram), *verdict(results)]
    write_text(folder / "report.html", page(results, title, HEADER, rows, notes, picture))
    markdown = [f"# {title}", markdown_table(HEADER, rows), "![Loss](loss.png)", *notes]
    write_text(folder / "report.md", "\n\n".join(markdown) + "\n")
    texts = [
        f"--- {arm.name}: {prompt}{text}"
        for arm in results.arms
        for prompt, text in arm.runs[0].measured.texts.items()
    ]
    return "\n\n".join([title, text_table(HEADER, rows), *notes, *texts])


def row(arm: ArmResult) -> list[str]:
    """One line of the table."""
    return [
        arm.name,
        quantity(arm.plan.parameters),
        quantity(arm.plan.training_flops_per_token),
        quantity(arm.plan.inference_flops_per_token),
        quantity(arm.plan.tokens),
        quantity(arm.plan.training_flops),
        f"{arm.seconds:.0f}",
        f"{arm.speed:.0f}",
        f"{arm.loss:.4f}",
        f"{arm.exact_loss:.4f}",
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
        f"decoding, and the gap between them. Token frequencies alone reach {unigram:.4f} (unigram).{missing}"
    )


def verdict(results: Results) -> list[str]:
    """One sentence per arm against the reference by exact-decode loss, and the size a difference must have."""
    reference = results.plan.comparison.reference_arm
    by_name = {arm.name: arm for arm in results.arms}
    if reference not in by_name or len(by_name) < 2:
        return [f"No verdict: {reference} and another arm must be finished first."]
    smallest = results.smallest_difference()
    if smallest is None:
        return ["No verdict: a single seed says nothing about the spread that a difference must exceed."]
    sentences = [
        f"By exact-decode loss at equal {UNITS[results.plan.comparison.budget]}, differences from {reference} above "
        f"{smallest:.4f} nats exceed the spread of the seeds (95 %, all comparisons together)."
    ]
    for arm in results.arms:
        if arm.name != reference:
            sentences.append(judgement(arm, by_name[reference], smallest))
    return sentences


def judgement(arm: ArmResult, reference: ArmResult, smallest: float) -> str:
    """What the difference between an arm and the reference allows to say."""
    difference = arm.exact_loss.mean - reference.exact_loss.mean
    if abs(difference) <= smallest:
        return f"{arm.name} and {reference.name}: not distinguishable ({difference:+.4f})."
    return (
        f"{arm.name} is {'better' if difference < 0 else 'worse'} than {reference.name} ({difference:+.4f})."
    )
