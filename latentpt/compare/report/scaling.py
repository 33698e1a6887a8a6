"""The report of a ladder: what seeds allow to see, laws, multipliers, paired differences, every run; verdicts in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentpt.compare.fits.draws import Interval
from latentpt.compare.fits.paired import Paired
from latentpt.compare.planning.describe import differences_table, held_equal
from latentpt.compare.report.blocks import (
    Block,
    Heading,
    Picture,
    Table,
    Words,
    as_html,
    as_markdown,
    as_text,
)
from latentpt.compare.report.page import head, made_with
from latentpt.compare.report.published import publish
from latentpt.compare.report.results import ArmResult, Results, source_table, task_table
from latentpt.compare.report.scaling_plots import draw_all
from latentpt.compare.report.study import ArmStudy, Multiplier, Study, as_data, read_study
from latentpt.files import write_bytes, write_text
from latentpt.intervals import CONFIDENCE
from latentpt.pages.document import document
from latentpt.pages.tables import quantity


def write_scaling(results: Results, unigram: float) -> str:
    """Write report.html, report.md, pictures and every figure as data into the folder; returns the report as text."""
    study, folder = read_study(results), results.plan.comparison.folder
    title = f"What a thought is worth: {len(study.arms)} arms, {len(study.ladder.sizes)} sizes"
    blocks = report_blocks(study, unigram)
    for block in blocks:
        if isinstance(block, Picture):
            write_bytes(folder / block.name, block.content)
    write_text(folder / "report.html", document(title, [*head(title, results), as_html(blocks)]))
    made = "\\\n".join(made_with(results))  # a backslash keeps the lines apart
    write_text(folder / "report.md", f"# {title}\n\n{made}\n\n" + as_markdown(blocks))
    tables = {block.name: (block.header, block.rows) for block in blocks if isinstance(block, Table)}
    publish(results, tables, as_data(study))
    return f"{title}\n\n{as_text(blocks)}"


def report_blocks(study: Study, unigram: float) -> list[Block]:
    """The whole report."""
    plan = study.results.plan
    pictures = [Picture(*drawn) for drawn in draw_all(study)]
    return [
        Words([reading(study, unigram)]),
        Heading("Verdicts"),
        Words(verdicts(study)),
        Heading("What the seeds allow to see"),
        Words(seed_words(study)),
        *pictures,
        Heading("Compute multipliers"),
        Words([multiplier_words(study)]),
        Table("multipliers", *multiplier_table(study)),
        Heading("Laws"),
        Words(
            [
                "L = E + A N^-a + B D^-b in nats per token, N parameters outside embeddings and head, D tokens; Huber loss "
                "in log L, in brackets 90 % of the bootstrap over runs and seeds. The best size grows as C to the power of "
                "the size exponent. phi: what repeating layers r times is worth, N_once + r^phi N_repeated, in one law "
                "with the baseline."
            ]
        ),
        Table("laws", *law_table(study)),
        Heading("Best size at each budget"),
        Words(
            [
                "By a parabola through the budget's runs, which is biased where sizes are not centred, and by the law."
            ]
        ),
        Table("optima", *optima_table(study)),
        Heading("Differences at the same size, budget and seed"),
        Words(
            [
                f"Exact-decode loss minus that of {study.baseline}, the mean over shared sizes; the margin is that of "
                f"{CONFIDENCE:.0%} over all arms of a budget together, by the spread between seeds."
            ]
        ),
        Table("paired", *paired_table(study)),
        *source_blocks(study),
        Heading("What differs between the arms"),
        Table("arms", *differences_table(plan)),
        Words([held_equal(plan)]),
        Heading("Every run"),
        Table("losses", *losses_table(study)),
    ]


def reading(study: Study, unigram: float) -> str:
    """What the figures are of, and what is missing."""
    done = sum(len(arm.runs) for arm in study.arms.values())
    planned = sum(arm.sweep is None for arm, _ in study.results.plan.jobs())
    samples = next(iter(study.arms.values())).runs[0].result.measured.samples
    missing = f" {planned - done} of {planned} planned runs are not finished yet." if done < planned else ""
    tuning = (
        f" The sweep of learning rates cost {quantity(study.tuning_flops)} FLOPs more."
        if study.tuning_flops
        else ""
    )
    return (
        f"{done} runs; losses are nats per token by exact decoding on {samples} held-out samples. Token frequencies alone "
        f"reach {unigram:.4f} (unigram).{missing}{tuning}"
    )


def verdicts(study: Study) -> list[str]:
    """One sentence for each arm, at the largest budget it was trained with; as much as its intervals allow."""
    others = [arm for arm in study.arms.values() if arm.name != study.baseline]
    if study.baseline not in study.arms or not others:
        return [f"No verdict: {study.baseline} and another arm must be finished first."]
    return [verdict(study, arm) for arm in others]


def verdict(study: Study, arm: ArmStudy) -> str:
    """What can be said of one arm."""
    if not arm.multipliers:
        few = "" if study.arms[study.baseline].fit is not None else f" of {study.baseline}"
        return f"{arm.name}: too few runs{few} for a law (six or more, at three sizes and three lengths); see the differences."
    last = arm.multipliers[-1]
    worth = f"{factor(last.training)} the training FLOPs"
    if judged(last.training) == 0:
        said = (
            f"too small to tell: for its loss at {quantity(last.flops)} FLOPs {study.baseline} needs {worth}"
        )
    elif judged(last.training) > 0:
        said = f"worth it: for its loss at {quantity(last.flops)} FLOPs {study.baseline} needs {worth}"
    else:
        said = (
            f"not worth it: for its loss at {quantity(last.flops)} FLOPs {study.baseline} needs only {worth}"
        )
    decoding = {0: "as far as can be told as many", 1: "more", -1: "fewer"}[judged(last.inference)]
    beyond = "; beyond the measured budgets" if last.beyond else ""
    return f"{arm.name} is {said}{beyond}. Decoding, {study.baseline} needs {decoding} FLOPs per token: {factor(last.inference)}."


def judged(found: Interval) -> int:
    """1 where all of the interval is above 1, -1 where all is below, 0 where it cannot be told."""
    return int(found.low > 1) - int(found.high < 1)


def factor(found: Interval) -> str:
    """A multiplier with its interval."""
    return f"{number(found.value)} times [{number(found.low)}, {number(found.high)}]"


def number(value: float) -> str:
    """A multiplier; what a law never reaches is out of reach."""
    return f"{value:.2f}" if np.isfinite(value) else "out of reach"


def seed_words(study: Study) -> list[str]:
    """The spread between seeds, and the differences it lets one see."""
    found = study.seed_deviations()
    if not found:
        return [
            "Not two seeds of the baseline are finished at any budget: nothing is known about their spread."
        ]
    words = []
    for flops, (deviation, freedom) in found.items():
        margins = [margin for *_, margin in paired_at(study, flops) if margin is not None]
        seen = f"; paired differences of {np.median(margins):.4f} and more can be seen" if margins else ""
        words.append(
            f"At {quantity(flops)} FLOPs runs of {study.baseline} that differ in the seed alone spread by {deviation:.4f} "
            f"nats (standard deviation, {freedom} degrees of freedom){seen}."
        )
    return words


def multiplier_words(study: Study) -> str:
    """How the table is read."""
    served = (
        f", and for training and serving together at {listed(study.ladder.served)} tokens served"
        if study.ladder.served
        else ""
    )
    return (
        f"How many times the FLOPs {study.baseline} needs for the loss that the arm reaches at the budget with its best "
        f"size: of training, of decoding a token at those sizes{served}. Above 1 the arm is worth it; in brackets 90 % of "
        "the bootstrap. A star: the baseline's FLOPs lie beyond its measured budgets."
    )


def listed(numbers: Sequence[float]) -> str:
    """Numbers with prefixes in a sentence."""
    return ", ".join(map(quantity, numbers))


def multiplier_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """A line for each arm and budget."""
    header = ["arm", "budget, FLOPs", "training", "inference"]
    header += [f"lifetime, {quantity(served)} tokens" for served in study.ladder.served]

    def row(arm: ArmStudy, found: Multiplier) -> list[str]:
        columns = [found.training, found.inference, *found.lifetime.values()]
        star = "*" if found.beyond else ""
        return [arm.name, quantity(found.flops) + star, *(bracket(column, ".2f") for column in columns)]

    return header, [row(arm, found) for arm in study.arms.values() for found in arm.multipliers]


def bracket(found: Interval | None, spec: str = ".3f") -> str:
    """A value with its interval in a cell."""
    if found is None:
        return "-"
    value, low, high = (format(x, spec) if np.isfinite(x) else "inf" for x in found)
    if np.isnan(found.low):
        return value
    return f"{value} [{low}, {high}]"


def law_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """A line for each arm: the law, the same by variable projection, phi."""
    names = ["E", "a", "b", "size exponent"]
    header = [
        "arm",
        "runs",
        *names,
        "by parabolas",
        *(f"{name}, projected" for name in names),
        "spread, %",
        "phi",
    ]
    rows = []
    for arm in study.arms.values():
        cells = [bracket(arm.law.get(name)) for name in names]
        projected = [f"{arm.projected[name]:.3f}" if name in arm.projected else "-" for name in names]
        deviation = "-" if arm.deviation is None else f"{100 * arm.deviation:.2f}"
        rows.append(
            [
                arm.name,
                str(len(arm.runs)),
                *cells,
                bracket(arm.parabola_exponent),
                *projected,
                deviation,
                bracket(arm.phi, ".2f"),
            ]
        )
    return header, rows


def optima_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """A line for each arm and budget: best size and its loss."""

    def size(found: Interval | None) -> str:
        if found is None or np.isnan(found.low):
            return "-" if found is None else quantity(found.value)
        return f"{quantity(found.value)} [{quantity(found.low)}, {quantity(found.high)}]"

    header = ["arm", "budget, FLOPs", "size, parabola", "size, law", "loss, parabola", "loss, law"]
    return header, [
        [
            arm.name,
            quantity(found.flops),
            size(found.parabola),
            size(found.law),
            bracket(found.parabola_loss, ".4f"),
            bracket(found.law_loss, ".4f"),
        ]
        for arm in study.arms.values()
        for found in arm.optima
    ]


def paired_at(study: Study, flops: float) -> list[tuple[str, Paired, float | None]]:
    """Arm, its difference from the baseline at a budget, and the margin of `CONFIDENCE` over all arms of the budget."""
    found = {arm.name: arm.paired[flops] for arm in study.arms.values() if flops in arm.paired}
    each = 1 - (1 - CONFIDENCE) / max(len(found), 1)
    return [(name, pair, pair.margin(each)) for name, pair in found.items()]


def paired_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """A line for each arm and budget, with what may be said."""
    header = ["arm", "budget, FLOPs", "difference", "standard error", "margin", "sizes", "seeds", "said"]
    rows = []
    for flops in study.budgets:
        for name, found, margin in paired_at(study, flops):
            said = "one seed says nothing" if margin is None else "too small to tell"
            if margin is not None and abs(found.mean) > margin:
                said = "better" if found.mean < 0 else "worse"
            error, width = ("-" if x is None else f"{x:.4f}" for x in (found.error, margin))
            counts = [str(found.sizes), str(found.seeds)]
            rows.append([name, quantity(flops), f"{found.mean:+.4f}", error, width, *counts, said])
    return header, rows


def source_blocks(study: Study) -> list[Block]:
    """Losses by held-out source, and downstream tasks, of each arm's best run at its largest budget."""
    names, best = [*study.arms], [best_run(arm) for arm in study.arms.values()]
    blocks: list[Block] = []
    (first, *sources), rows = source_table(best)
    if sources:
        beside = [[name, *row] for name, row in zip(names, rows, strict=True)]
        blocks += [
            Heading("Losses by source"),
            Words(["Exact-decode loss of each arm's best run at its largest budget."]),
            Table("sources", [first, "run", *sources], beside),
        ]
    (first, *metrics), rows = task_table(best)
    if metrics:
        named = [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
        blocks += [Heading("Downstream tasks"), Table("tasks", [first, *metrics], named)]
    return blocks


def best_run(arm: ArmStudy) -> ArmResult:
    """The run with the lowest loss at an arm's largest budget, alone."""
    last = max(run.place[1] for run in arm.runs)
    best = min((run for run in arm.runs if run.place[1] == last), key=lambda run: run.loss)
    return ArmResult(best.arm, [best.result])


def losses_table(study: Study) -> tuple[list[str], list[list[str]]]:
    """A line for each size and budget, the mean over seeds."""
    header = [
        "arm, size, budget",
        "parameters",
        "tokens",
        "tokens/parameter",
        "learning rate",
        "seconds",
        "seeds",
    ]
    rows = []
    for arm in study.results.arms:
        planned = arm.plan
        rows.append(
            [
                planned.name,
                quantity(planned.body_parameters),
                quantity(planned.tokens),
                f"{planned.tokens_per_parameter:.1f}",
                f"{planned.config['optimizer']['lr']:.3g}",
                f"{arm.seconds:.0f}",
                str(len(arm.runs)),
                f"{arm.loss:.4f}",
                f"{arm.exact_loss:.4f}",
                "-" if arm.exact_loss.error is None else f"{arm.exact_loss.error:.4f}",
            ]
        )
    return [*header, "loss", "exact-decode loss", "standard error"], rows
