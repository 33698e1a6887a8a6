"""A plan on the disk: plan.json and one run configuration for every run."""

from __future__ import annotations

import json
from pathlib import Path

from latentpt.compare.planning.plan import Plan
from latentpt.config import ConfigError, build, to_yaml
from latentpt.files import write_text
from latentpt.run import RunConfig


def write_plan(plan: Plan) -> None:
    """Write plan.json and one run configuration per arm and seed; a plan that contradicts runs made by another is refused.

    Raises:
        ConfigError: a run folder exists whose configuration in the earlier plan was another one.
    """
    texts = {}
    for arm in plan.arms:
        for seed in plan.comparison.seeds:
            path = plan.config_path(arm.name, seed)
            folder = plan.run_folder(arm.name, seed)
            values = {**arm.config, "seed": seed, "output": str(folder)}
            texts[path] = to_yaml(build(RunConfig, values))
            if folder.exists() and path.exists() and path.read_text(encoding="utf-8") != texts[path]:
                raise ConfigError(
                    f"{folder} holds a run of another plan ({path} would change); "
                    "give the comparison another `output`, or remove that folder to train it again"
                )
    for path, text in texts.items():
        write_text(path, text)
    write_text(
        plan.comparison.folder / "plan.json", json.dumps(plan.model_dump(mode="json"), indent=1) + "\n"
    )


def read_plan(folder: Path) -> Plan:
    """The plan written in a comparison's folder; ConfigError if there is none."""
    path = folder / "plan.json"
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; run `python launch/compare.py plan` with this comparison first"
        )
    return build(Plan, json.loads(path.read_text(encoding="utf-8")))
