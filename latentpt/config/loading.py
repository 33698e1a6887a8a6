"""From files and overrides to checked sections, and back to YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from latentpt.config.reading import Origins, merge, merge_file, parse_override
from latentpt.config.section import ConfigError, Section
from latentpt.config.sentences import sentence

S = TypeVar("S", bound=Section)


def load_config(kind: type[S], path: str | Path | None, overrides: Iterable[str] = ()) -> S:
    """Build a `kind` from defaults, the YAML file at `path` (None: defaults only) and `section.field=value` overrides.

    Raises:
        ConfigError: a missing or broken file, a cycle of `extends`, an unknown key, a wrong type, or a combination
            that a section refuses. The message is one sentence.
    """
    values: dict[str, Any] = {}
    origins: Origins = {}
    if path is not None:
        merge_file(values, origins, Path(path))
    for override in overrides:
        keys, value = parse_override(override)
        for key in reversed(keys):
            value = {key: value}
        merge(values, value, origins, (), f"override {override}")
    return build(kind, values, origins)


def build(kind: type[S], values: Mapping[str, Any], origins: Origins | None = None) -> S:
    """Validate plain `values` into a `kind`; raises ConfigError with the first problem in one sentence."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(sentence(kind, error, origins or {})) from None


def to_yaml(section: Section) -> str:
    """All values of a section, defaults included, as YAML that loads back to an equal section."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two dumped configurations, with both values (None where absent)."""
    for key in [*old, *(key for key in new if key not in old)]:
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}", left, right
