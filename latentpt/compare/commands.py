"""The three commands of launch/compare.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentpt.compare.config import ComparisonConfig, load_comparison
from latentpt.compare.planning.describe import describe_plan
from latentpt.compare.planning.folder import read_plan, write_plan
from latentpt.compare.planning.plan import Plan, make_plan
from latentpt.compare.report.results import read_results
from latentpt.compare.report.write import write_report
from latentpt.compare.running.execute import execute
from latentpt.compare.running.measure import measure, sample_limit, unigram_loss
from latentpt.compare.running.speed import measure_speeds
from latentpt.config import ConfigError, build
from latentpt.run import RunConfig


def plan(config: str, overrides: Sequence[str], trainer: Path) -> str:
    """Match the arms, write their run configurations and return the plan in words."""
    comparison = load_comparison(config, list(overrides))
    speeds = measure_speeds(comparison, trainer) if comparison.budget == "seconds" else None
    planned = make_plan(comparison, speeds)
    write_plan(planned)
    return describe_plan(planned)


def run(config: str, overrides: Sequence[str], trainer: Path) -> str:
    """Train and measure every planned run that is not finished."""
    planned = current_plan(load_comparison(config, list(overrides)))
    execute(planned, trainer, after=measure)
    return f"all runs of {planned.comparison.folder} are finished; `report` makes the table and the page"


def report(config: str, overrides: Sequence[str], trainer: Path) -> str:
    """Write report.md, report.html and loss.png from the finished runs and return the report as text."""
    planned = current_plan(load_comparison(config, list(overrides)))
    results = read_results(planned)
    base = build(RunConfig, planned.arms[0].config)
    unigram = unigram_loss(base, sample_limit(planned, base))
    return write_report(results, unigram) + f"\n\n{planned.comparison.folder / 'report.html'}"


def current_plan(comparison: ComparisonConfig) -> Plan:
    """The written plan; ConfigError when the comparison was changed after it was planned."""
    planned = read_plan(comparison.folder)
    if planned.comparison != comparison:
        raise ConfigError(
            f"{comparison.folder}: the comparison was changed after it was planned; run `plan` again"
        )
    return planned
