"""Configuration of a comparison: one base run, a list of arms, and what all arms get equally much of; or a ladder of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import model_validator

from latentpt.config import (
    ConfigError,
    Count,
    NotNegative,
    Positive,
    Section,
    Whole,
    load_config,
    nearest,
)

Budget = Literal["tokens", "training_flops", "inference_flops", "seconds"]
Spending = Literal["tokens", "layers", "width", "triple"]

UNITS: dict[Budget, str] = {
    "tokens": "training tokens",
    "training_flops": "training FLOPs",
    "inference_flops": "inference FLOPs per token",
    "seconds": "seconds of training",
}


class Rung(Section):
    """One training budget of a ladder."""

    flops: Positive
    """Training FLOPs of every run."""
    seeds: Count | None = None
    """How many of the comparison's seeds are trained at this budget, the first ones; null means all."""


class LadderConfig(Section):
    """A study over sizes and training budgets. Every arm is trained at every size for every budget, by one stated rule.

    A size is a number of layers; the width follows from it, so that one dial sets both:
    hidden_size = aspect * layers, rounded to whole heads of the base's head width.
    """

    sizes: list[Count]
    """The sizes, growing: numbers of layers, or of heads where the depth is held."""
    aspect: Positive | None = None
    """Width for each layer; null means that of the base."""
    hold: Literal["aspect", "width", "depth"] = "aspect"
    """What the sizes keep: aspect (depth and width grow together), the base's width (iso-width: layers grow) or the base's
    depth (iso-depth: heads, and with them the width, grow)."""
    budgets: list[Rung]
    """The budgets, growing."""
    tokens_per_parameter: tuple[NotNegative, NotNegative] = (5.0, 500.0)
    """Runs outside of this range of training tokens per non-embedding parameter are left out."""
    lr_power: float = 0.5
    """optimizer.lr of a run is the base's times (base width / width) ** lr_power; 0 keeps it, 1 is muP's rule for matrices."""
    weight_decay: Literal["fixed", "timescale"] = "fixed"
    """fixed: the base's in every run; timescale: such that lr * weight_decay * steps is that of the base, so that AdamW
    averages over the same share of every training (arXiv 2405.13698)."""
    sweep: list[Positive] = []
    """Factors on optimizer.lr that every arm tries first (smallest budget, the middle of the sizes that the reference has
    there, first seed); each arm keeps its best. The cost is counted. Empty: no arm is tuned."""
    points: Count = 20
    """Validation points along every training."""
    served: list[Positive] = []
    """Numbers of tokens served after training, for the lifetime multiplier."""
    draws: Annotated[int, Ge(100), Le(1_000_000)] = 1000
    """Bootstrap draws behind every interval."""

    @model_validator(mode="after")
    def _check(self) -> LadderConfig:
        flops = [rung.flops for rung in self.budgets]
        for key, values in (("sizes", self.sizes), ("budgets", flops)):
            if not values or values != sorted(set(values)):
                raise ValueError(f"ladder.{key} must be growing numbers, got {values}")
        low, high = self.tokens_per_parameter
        if not low < high:
            raise ValueError(
                f"ladder.tokens_per_parameter must be [low, high] with low < high, got {[low, high]}"
            )
        return self


class TasksConfig(Section):
    """Downstream tasks that every trained model is given, as `launch/eval.py` does."""

    names: list[str] = []
    """Tasks, such as lambada_openai; empty: none."""
    data: str | None = None
    """Folder of the tasks' files; null means where `launch/eval.py` looks."""
    fewshot: Whole = 0
    """Solved examples before each question."""
    limit: Count | None = None
    """Questions of each task; null means all."""


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
    amount: Positive | None = None
    """Size of the budget in its unit; null means what the reference arm uses as configured."""
    spend: Spending = "tokens"
    """What an arm that is cheaper than the budget gets more of (a dearer one less): tokens; layers (the width is held:
    iso-width); width (the depth is held: iso-depth); triple: depth and width are held, key and value heads match the KV
    bytes of a token, the MLP the parameters, tokens the training FLOPs."""
    spend_of: dict[str, Spending] = {}
    """Arms with another `spend` than the rest."""
    tolerance: Positive = 0.05
    """Largest relative distance from the budget that the plan accepts (layers and widths come in whole numbers)."""
    seeds: list[int] = [0]
    """Each arm is trained once per seed; a seed fixes initialisation and data order, the same for all arms."""
    differ: list[str] = []
    """Keys outside model size and thoughts in which arms may differ, for example optimizer.lr; others are refused."""
    processes: Count | None = None
    """Processes (devices) per training; null means one per GPU, one on a machine without."""
    threads: Count | None = None
    """CPU threads of a process, on which the last digits of losses depend; null means the cores, divided among the
    trainings side by side."""
    evaluation_samples: Count | None = None
    """Validation samples on which the training forward and exact decoding are compared after training; null means validation.samples."""
    prompts: list[str] = []
    """Texts that every arm continues in the report."""
    tasks: TasksConfig = TasksConfig()
    """Downstream tasks in the report."""
    probe_steps: Count = 30
    """Steps that measure an arm's speed when the budget is in seconds, or with `plan --probe`."""
    ladder: LadderConfig | None = None
    """Sizes and budgets of a scaling study; null compares at one size and one budget."""

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
        if self.ladder is not None:
            self._check_ladder(self.ladder)
        for name in self.arms:
            if self.spending(name) == "triple" and self.budget != "training_flops":
                raise ValueError(
                    f"arm {name}: spend = triple matches training FLOPs too; set budget to training_flops"
                )
        if self.budget == "inference_flops":
            for name in self.arms:
                if name != self.reference_arm and self.spending(name) == "tokens":
                    raise ValueError(
                        f"arm {name}: tokens do not change inference FLOPs per token; "
                        f"set spend or spend_of.{name} to layers or width"
                    )
        return self

    def _check_ladder(self, ladder: LadderConfig) -> None:
        if self.budget != "training_flops" or self.amount is not None:
            raise ValueError(
                "a comparison with a ladder has its budgets there; set budget to training_flops and amount to null"
            )
        if any(self.spending(name) != "tokens" for name in self.arms):
            raise ValueError("arms of a ladder spend tokens; `ladder.hold` says what its sizes keep")
        for rung in ladder.budgets:
            if rung.seeds is not None and rung.seeds > len(self.seeds):
                raise ValueError(
                    f"ladder.budgets asks for {rung.seeds} seeds, but seeds has {len(self.seeds)}: {self.seeds}"
                )

    @property
    def reference_arm(self) -> str:
        """Arm that sets the budget."""
        return self.reference if self.reference is not None else next(iter(self.arms))

    def spending(self, arm: str) -> Spending:
        """What `arm` gets more or less of to meet the budget."""
        return self.spend_of.get(arm, self.spend)

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of its trainings must say."""
        return {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}

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
