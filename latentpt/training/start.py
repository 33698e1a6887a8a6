"""A training that starts from weights of another model: of a run, or of what somebody published.

What needs torch is imported where it is needed: a configuration without such weights is read in no time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentpt.config import ConfigError, build, differences, read_config
from latentpt.modeling.config import ModelConfig
from latentpt.run import RunConfig, load_model
from latentpt.run.folder import with_folder

if TYPE_CHECKING:
    from latentpt.thoughts.model import LanguageModel


def load_run_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """A run's configuration; one whose training.start_from is a Hugging Face folder gets its decoder from there.

    The folder gives the whole `model` section, which is then left out (or says the same), and thoughts.embed_scale, so that
    token slots go on reading what they always did. Raises ConfigError for what does not fit.
    """
    values, origins = read_config(path, overrides)
    training, thoughts = values.get("training"), values.setdefault("thoughts", {})
    start = training.get("start_from") if isinstance(training, dict) else None
    if isinstance(start, str) and is_published(Path(start)):
        from latentpt.hub.folders import folder_config

        size, scale = folder_config(start)
        _check_same(start, values.get("model"), size)
        values["model"] = size.model_dump(mode="json")
        if isinstance(thoughts, dict):
            thoughts.setdefault("embed_scale", scale)
    elif isinstance(start, str) and start and not Path(start).exists() and "model" not in values:
        raise ConfigError(f"training.start_from = {start}: there is no such folder to take the model from")
    return with_folder(build(RunConfig, values, origins), path)


def is_published(path: Path) -> bool:
    """Whether weights lie there as Hugging Face or llama2.c keep them, not as a run does."""
    return (path / "config.json").is_file() or (path.is_file() and path.suffix == ".bin")


def _check_same(start: str, given: Any, size: ModelConfig) -> None:
    """Refuse a model section that says something else; what it leaves out is the source's, unless it names a family."""
    if not isinstance(given, dict):
        return
    base = {} if {"preset", "family"} & given.keys() else size.model_dump(mode="json")
    asked = build(ModelConfig, {**base, **given})
    for key, ours, theirs in differences(asked.model_dump(mode="json"), size.model_dump(mode="json")):
        if key == "preset" or (key in ("num_kv_heads", "head_size", "intermediate_size") and not ours):
            continue  # what is 0 follows from the rest
        raise ConfigError(
            f"model.{key} = {ours} contradicts training.start_from = {start}, which has {theirs}; "
            "leave the section model out to take it from there"
        )


def load_start(config: RunConfig, model: LanguageModel) -> None:
    """Give a new model the weights that training.start_from names: a run's latest, or those somebody published.

    Of the method's parameters those are taken that both have, and none if the source thinks otherwise. Raises ConfigError or
    CheckpointError for weights that are not there, damaged, or of another model.
    """
    import torch

    from latentpt.hub.folders import load_folder
    from latentpt.run.checkpoints import check_shapes, shapes_of

    start = Path(config.training.start_from)
    source = load_folder(start) if is_published(start) else load_model(start)[0]
    theirs, ours = dict(source.named_parameters()), dict(model.named_parameters())
    left = {name for name in theirs.keys() | ours.keys() if name.startswith("method.")}
    if source.thoughts.method == config.thoughts.method:
        left -= theirs.keys() & ours.keys()
    theirs, ours = ({n: p for n, p in side.items() if n not in left} for side in (theirs, ours))
    check_shapes(start, shapes_of(theirs), shapes_of(ours))
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])
