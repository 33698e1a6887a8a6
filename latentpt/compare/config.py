"""Configuration of a comparison: one base run, a list of arms, and what all arms get equally much of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from latentpt.config import ConfigError, Section, load_config, nearest

Budget = Literal["tokens", "training_flops", "inference_flops", "seconds"]
Spending = Literal["tokens", "layers", "width"]

UNITS: dict[Budget, str] = {
    "tokens": "training tokens",
    "training_flops": "training FLOPs",
    "inference_flops": "inference FLOPs per token",
    "seconds": "seconds of training",
}


class ComparisonConfig(Section):
    """Arms that differ in the keys they name and in nothing else, matched at one budget."""

    base: str
    """Run configuration that every arm starts from; a path relative to the comparison's own file."""
    output: str
    """Folder of the plan, the runs and the report."""
    arms: dict[str, dict[str, Any]]
    """Arm name -> the part of a run configuration in which it differs from the base."""
    reference: str | None = None
    """Arm that sets the budget and that the verdict compares the others with; null means the first."""
    budget: Budget = "tokens"
    """What every arm gets equally much of: tokens, training_flops, inference_flops (per token) or seconds (of training)."""
    amount: float | None = None
    """Size of the budget in its unit; null means what the reference arm uses as configured."""
    spend: Spending = "tokens"
    """What an arm that is cheaper than the budget gets more of (a dearer one less): tokens, layers or width."""
    spend_of: dict[str, Spending] = {}
    """Arms with another `spend` than the rest."""
    tolerance: float = 0.05
    """Largest relative distance from the budget that the plan accepts (layers and widths come in whole numbers)."""
    seeds: list[int] = [0]
    """Each arm is trained once per seed; a seed fixes initialisation and data order, the same for all arms."""
    differ: list[str] = []
    """Keys outside model size and thoughts in which arms may differ, for example optimizer.lr; others are refused."""
    processes: int | None = None
    """Processes (devices) per training; null means one per GPU, one on a machine without."""
    evaluation_samples: int | None = None
    """Validation samples on which the training forward and exact decoding are compared after training; null means validation.samples."""
    prompts: list[str] = []
    """Texts that every arm continues in the report."""
    probe_steps: int = 30
    """Steps that measure an arm's speed when the budget is in seconds."""

    @model_validator(mode="after")
    def _check(self) -> ComparisonConfig:
        if not self.arms:
            raise ValueError("arms is empty; name at least one arm")
        for name in self.arms:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(
                    f"arms.{name!s}: an arm's name is a folder, made of letters, digits, dots and dashes"
                )
        named = [("reference", self.reference)] if self.reference is not None else []
        for key, name in [*named, *(("spend_of", name) for name in self.spend_of)]:
            if name not in self.arms:
                raise ValueError(
                    f"{key} names the unknown arm {name!r}; did you mean {nearest(name, self.arms)}?"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be a list of different numbers, got {self.seeds}")
        for key in ("amount", "tolerance"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"{key} must be positive, got {value}")
        for key in ("evaluation_samples", "probe_steps", "processes"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        if self.budget == "inference_flops":
            for name in self.arms:
                if name != self.reference_arm and self.spending(name) == "tokens":
                    raise ValueError(
                        f"arm {name}: tokens do not change inference FLOPs per token; "
                        f"set spend or spend_of.{name} to layers or width"
                    )
        return self

    @property
    def reference_arm(self) -> str:
        """Arm that sets the budget."""
        return self.reference if self.reference is not None else next(iter(self.arms))

    def spending(self, arm: str) -> Spending:
        """What `arm` gets more or less of to meet the budget."""
        return self.spend_of.get(arm, self.spend)

    @property
    def folder(self) -> Path:
        """Folder of the plan, the runs and the report."""
        return Path(self.output)


def load_comparison(path: str | Path, overrides: list[str] | None = None) -> ComparisonConfig:
    """Read a comparison from YAML; `base` comes back relative to the working directory.

    Raises:
        ConfigError: a file that is missing, an unknown key or a combination that cannot work.
    """
    config = load_config(ComparisonConfig, path, overrides or ())
    base = Path(path).parent / config.base
    if not base.is_file():
        raise ConfigError(f"{path}: base = {config.base} is not a file beside this one ({base})")
    return config.model_copy(update={"base": str(base)})


def as_overrides(values: dict[str, Any], prefix: str = "") -> list[str]:
    """A nested part of a configuration as `section.field=value` overrides, the form in which arms reach the loader."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += as_overrides(value, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}={json.dumps(value)}")  # JSON is YAML
    return lines
