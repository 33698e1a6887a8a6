"""A plan on the disk: plan.json and one run configuration for every run."""

from __future__ import annotations

import json
from pathlib import Path

from latentpt.compare.planning.plan import Plan
from latentpt.config import ConfigError, build, differences, load_config, to_yaml
from latentpt.data.errors import DataError
from latentpt.data.identity import check_identity
from latentpt.files import write_text
from latentpt.run import RunConfig, RunFolder


def write_plan(plan: Plan) -> None:
    """Write plan.json and one run configuration per run; a plan that contradicts runs made by another is refused.

    Raises:
        ConfigError: a run folder exists that was made with another configuration or on other data.
    """
    texts = {}
    for arm, seed in plan.jobs():
        run = plan.run_config(arm, seed)
        refuse_another(RunFolder(plan.run_folder(arm.name, seed)), run)
        texts[plan.config_path(arm.name, seed)] = to_yaml(run)
    refuse_other_data(plan)
    for path, text in texts.items():
        write_text(path, text)
    write_text(plan_path(plan.comparison.folder), json.dumps(plan.model_dump(mode="json"), indent=1) + "\n")


def plan_path(folder: Path) -> Path:
    """Where the plan of a comparison is kept."""
    return folder / "plan.json"


def refuse_another(folder: RunFolder, run: RunConfig) -> None:
    """Raise ConfigError where a run's folder holds the run of another configuration, naming the first difference."""
    if not folder.config.is_file():
        return
    made = load_config(RunConfig, folder.config)
    for key, old, new in differences(made.model_dump(mode="json"), run.model_dump(mode="json")):
        raise ConfigError(
            f"{folder.path} holds a run of another plan ({key} was {old} there and would be {new}); "
            "give the comparison another `output`, or remove that folder to train it again"
        )


def refuse_other_data(plan: Plan) -> None:
    """Raise ConfigError where runs exist that were planned on other training data than is there now."""
    path, runs = plan_path(plan.comparison.folder), plan.comparison.folder / "runs"
    if not path.is_file() or not plan.data or not runs.is_dir() or not any(runs.iterdir()):
        return
    try:
        check_identity(read_plan(plan.comparison.folder).data or plan.data, plan.data)
    except DataError as error:
        raise ConfigError(
            f"{runs} holds runs on other data ({error}); give the comparison another `output`"
        ) from None


def read_plan(folder: Path) -> Plan:
    """The plan written in a comparison's folder; ConfigError if there is none."""
    path = plan_path(folder)
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; run `python launch/compare.py plan` with this comparison first"
        )
    return build(Plan, json.loads(path.read_text(encoding="utf-8")))
