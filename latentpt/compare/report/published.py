"""Every figure as data, beside the page: CSV, LaTeX, JSON, and what they were made from in one small archive."""

from __future__ import annotations

import csv
import io
import json
import lzma
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentpt.compare.planning.folder import plan_path
from latentpt.compare.planning.plan import Plan, PlannedArm
from latentpt.compare.report.results import Results, RunResult
from latentpt.compare.running.measure import measurement_path
from latentpt.files import write_bytes, write_text
from latentpt.run import RunFolder, versions
from latentpt.run.checkpoints import MARK, committed


def publish(
    results: Results, tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]], study: object
) -> None:
    """Write runs.csv, each table as NAME.csv and NAME.tex, results.json and raw.tar.xz into the comparison's folder.

    `study` is what a ladder says, as JSON, or None.
    """
    folder = results.plan.comparison.folder
    runs = [record(arm.plan, run) for arm in results.arms for run in arm.runs]
    header = list(dict.fromkeys(key for run in runs for key in run))
    write_text(
        folder / "runs.csv", csv_text(header, [[str(run.get(key, "")) for key in header] for run in runs])
    )
    for name, (head, rows) in tables.items():
        write_text(folder / f"{name}.csv", csv_text(head, rows))
        write_text(folder / f"{name}.tex", latex_table(head, rows))
    complete = {
        "comparison": results.plan.comparison.model_dump(mode="json"),
        "complete": results.complete,
        "tuned": results.plan.tuned,
        "data": results.plan.data,
        "runs": runs,
        "study": study,
        "made_with": versions(),
    }
    write_text(folder / "results.json", json.dumps(complete, indent=1) + "\n")
    write_bytes(folder / "raw.tar.xz", archive(results.plan))


def record(arm: PlannedArm, run: RunResult) -> dict[str, Any]:
    """One run in one row."""
    planned = arm.model_dump(mode="json", exclude={"config", "seeds", "steps", "tokens", "share"})
    return {
        **planned,
        "seed": run.seed,
        "learning_rate": arm.config["optimizer"]["lr"],
        "tokens": run.tokens,
        "training_flops": run.training_flops,
        "seconds": run.seconds,
        "loss": run.measured.loss,
        "exact_loss": run.measured.exact_loss,
        "samples": run.measured.samples,
        **{f"exact_loss/{name}": loss for name, loss in run.measured.sources.items()},
        **{f"{task}/{key}": v for task, found in run.measured.tasks.items() for key, v in found.items()},
    }


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for booktabs, the first column flush left, the others flush right."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(sign, sign) for sign in cell) for cell in cells) + r" \\"

    body = "\n".join(line(row) for row in rows)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join(
        [begin, r"\toprule", line(header), r"\midrule", body, r"\bottomrule", r"\end{tabular}", ""]
    )


def archive(plan: Plan) -> bytes:
    """Plan, run configurations, metrics, versions and measurements of all runs; the same bytes for the same content.

    Unpacked into the comparison's output it is what `run` goes on from: with every finished run is the mark of its checkpoint,
    whose name its measurement bears, without the weights.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sources(plan):
            content = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(plan.comparison.folder).as_posix())
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return lzma.compress(packed.getvalue(), preset=9)


def sources(plan: Plan) -> Iterator[Path]:
    """The files that the results are made from, in the plan's order."""
    yield plan_path(plan.comparison.folder)
    for arm, seed in plan.jobs():
        folder = RunFolder(plan.run_folder(arm.name, seed))
        measured = measurement_path(plan, arm.name, seed)
        marks = [path / MARK for path in committed(folder.checkpoints)[-1:]]
        for path in (folder.config, folder.versions, folder.metrics, folder.summary, *marks, measured):
            if path.is_file():
                yield path
