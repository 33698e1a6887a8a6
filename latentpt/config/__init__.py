"""Typed configuration: sections, YAML files that extend one another, dotted overrides, and errors one can act on.

A section lives beside the code that reads it (`latentpt.modeling.config`, `latentpt.data.config`, ...);
`latentpt.run.config` composes them into one run. Values are taken in this order, later ones winning:

    defaults of the sections  <  the file named by `extends`  <  the YAML file  <  overrides `section.field=value`
"""

from latentpt.config.listing import describe, options
from latentpt.config.loading import build, differences, load_config, to_yaml
from latentpt.config.reading import parse_override
from latentpt.config.section import (
    ConfigError,
    Count,
    Decay,
    Long,
    NotNegative,
    Positive,
    Section,
    Share,
    Whole,
    nearest,
    nearest_divisor,
    require_at_least,
)

__all__ = [
    "ConfigError",
    "Count",
    "Decay",
    "Long",
    "NotNegative",
    "Positive",
    "Section",
    "Share",
    "Whole",
    "build",
    "describe",
    "differences",
    "load_config",
    "nearest",
    "nearest_divisor",
    "options",
    "parse_override",
    "require_at_least",
    "to_yaml",
]
