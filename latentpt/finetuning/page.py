"""What a fine-tuning came to as one HTML page that needs nothing else, in the dress of evaluation's pages."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from latentpt.finetuning.accuracy import Answered
from latentpt.finetuning.diagnostics import LatentReport, accuracy, standard_error
from latentpt.pages.document import LEFT, WIDTH, document, drawing, height_of, table

COLOURS = ("#4878a8", "#c44e52", "#55a868", "#8172b3", "#ccb974", "#64b5cd", "#8c613c", "#777")


def report_page(name: str, lines: Sequence[Mapping[str, Any]], found: LatentReport) -> str:
    """HTML about one run: accuracy by stage, and whether the latents are used."""
    measured = [line for line in lines if line["kind"] == "validation"]
    trained = [line for line in lines if line["kind"] == "train"]
    parts = [
        f"<h1>What the latents of {html.escape(name)} do</h1>",
        f"<p class='verdict'>{html.escape(found.verdict)}</p>",
        "<h2>Accuracy by stage</h2>",
        curves({"accuracy": [(line["epoch"], line["accuracy"]) for line in measured]}),
        table(
            ("stage", "epoch", "accuracy", "loss", "tokens an answer", "latents"),
            [
                (str(line["stage"]), str(line["epoch"]), f"{line['accuracy']:.1%}", f"{line['loss']:.4f}",
                 f"{line['generated']:.1f}", f"{line['latents']:.1f}")
                for line in measured
            ],
        ),
        "<h2>Training loss</h2>",
        curves({"loss": [(line["step"], line["loss"]) for line in trained]}),
        "<h2>Without them, or with others</h2><p>Accuracy on the same questions; the error is that of the difference.</p>",
        table(("latents", "accuracy", "change", "standard error"), _accuracies(found)),
        *_steps(found),
    ]  # fmt: skip
    return document(name, parts)


def _accuracies(found: LatentReport) -> list[tuple[str, str, str, str]]:
    named: dict[str, Answered] = {"as trained": found.plain}
    named |= {f"{count} after the question": result for count, result in found.fewer.items()}
    if found.never is not None:
        named["forbidden"] = found.never
    named |= {f"replaced by {name}": result for name, result in found.replaced.items()}
    return [
        (
            name,
            f"{accuracy(result):.1%}",
            f"{100 * (accuracy(result) - accuracy(found.plain)):+.1f}",
            f"{100 * standard_error(result, found.plain):.1f}",
        )
        for name, result in named.items()
    ]


def _steps(found: LatentReport) -> list[str]:
    if not found.steps:
        return []
    rows = [
        (
            str(step.collapse.slot),
            f"{step.collapse.cosine:.3f}",
            f"{step.collapse.first_share:.1%}",
            f"{step.collapse.effective_rank:.1f}",
            f"{step.collapse.size:.2f}",
            f"{step.entropy:.2f}",
            ", ".join(f"{token!r} {share:.0%}" for token, share in step.tokens),
        )
        for step in found.steps
    ]
    head = (
        "latent",
        "mean cosine",
        "first component",
        "effective rank",
        "size",
        "entropy",
        "the head would say",
    )
    return [
        "<h2>Latent by latent</h2><p>Latents that are all alike say nothing: a cosine near 1, a first component near "
        "100&nbsp;%, an effective rank near 1. The size is relative to an embedding; entropy in nats.</p>",
        table(head, rows),
    ]


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], low: float = 0.0) -> str:
    """Named curves of (x, y) points, from `low` upwards."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return "<p>There are none.</p>"
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    top = max([y for _, y in points] + [low + 1e-12])
    drawn = []
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{LEFT + (x - first) / max(last - first, 1e-12) * (WIDTH - LEFT):.1f},{height_of(y, top):.1f}"
            for x, y in line
        )
        drawn.append(f"<polyline class='line' style='stroke:{colour}' points='{path}'/>")
        if len(lines) > 1:
            drawn.append(
                f"<text x='{WIDTH}' y='{14 + 12 * number}' text-anchor='end' style='fill:{colour}'>{html.escape(name)}</text>"
            )
    return drawing("".join(drawn), top, (f"{first:g}", f"{last:g}"))
