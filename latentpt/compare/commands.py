"""The three commands of launch/compare.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from latentpt.compare.config import ComparisonConfig, load_comparison
from latentpt.compare.planning.describe import describe_plan
from latentpt.compare.planning.folder import read_plan, write_plan
from latentpt.compare.planning.plan import Plan, data_of, make_plan
from latentpt.compare.report.results import read_results
from latentpt.compare.report.scaling import write_scaling
from latentpt.compare.report.write import write_report
from latentpt.compare.running.execute import Share, execute
from latentpt.compare.running.measure import measure, sample_limit, unigram_loss
from latentpt.compare.running.speed import expected_seconds, measure_plan, measure_speeds
from latentpt.compare.running.sweep import chosen, sweep_of
from latentpt.config import ConfigError, build
from latentpt.data.errors import DataError
from latentpt.data.identity import check_identity
from latentpt.run import RunConfig


def plan(config: str, overrides: Sequence[str], trainer: Path, probe: bool = False) -> str:
    """Match the arms, write their run configurations and return the plan in words.

    `probe` measures the speed of every arm at every size, so that the plan can say how long it takes.
    """
    comparison = load_comparison(config, list(overrides))
    speeds = measure_speeds(comparison, trainer) if comparison.budget == "seconds" else None
    planned = tune(make_plan(comparison, speeds))
    write_plan(planned)
    if probe:
        measure_plan(planned, trainer)
    return describe_plan(planned, expected_seconds(planned))


def tune(planned: Plan) -> Plan:
    """The plan with the learning rates that its sweep has chosen, once it is finished."""
    factors = chosen(planned)
    return make_plan(planned.comparison, tuned=factors) if factors else planned


def run(config: str, overrides: Sequence[str], trainer: Path, share: Share | None = None) -> str:
    """Train and measure every planned run of a share (None: all) that is not finished, those of a sweep first."""
    share, begun = share or Share(), time.monotonic()
    planned = current_plan(load_comparison(config, list(overrides)))
    if sweep_of(planned).arms and not planned.tuned:
        execute(sweep_of(planned), trainer, measure, share)
        planned = tune(planned)
        if not planned.tuned:
            raise ConfigError(
                "the sweep is not finished yet by the other tasks; the same command goes on once it is"
            )
        write_plan(planned)
        share = share.after(time.monotonic() - begun)
    execute(planned, trainer, measure, share)
    return f"all runs of {planned.comparison.folder} are finished; `report` makes the table and the page"


def report(config: str, overrides: Sequence[str], trainer: Path) -> str:
    """Write the page, pictures and every figure as data from the finished runs; returns the report as text."""
    planned = current_plan(load_comparison(config, list(overrides)))
    results = read_results(planned)
    base = build(RunConfig, planned.arms[0].config)
    unigram = unigram_loss(base, sample_limit(planned, base))
    write = write_report if planned.comparison.ladder is None else write_scaling
    return write(results, unigram) + f"\n\n{planned.comparison.folder / 'report.html'}"


def current_plan(comparison: ComparisonConfig) -> Plan:
    """The written plan; ConfigError when the comparison, or the data, was changed after it was planned."""
    planned = read_plan(comparison.folder)
    if planned.comparison != comparison:
        raise ConfigError(
            f"{comparison.folder}: the comparison was changed after it was planned; run `plan` again"
        )
    data = data_of(build(RunConfig, planned.arms[0].config))
    if data and not planned.data:  # planned before the data was there
        planned = planned.model_copy(update={"data": data})
        write_plan(planned)
    try:
        check_identity(planned.data, data or planned.data)
    except DataError as error:
        raise ConfigError(
            f"{comparison.folder}: the data was changed after it was planned ({error})"
        ) from None
    return planned
