"""What every section of a configuration shares: typed, frozen, strict about names.

A section lives beside the code that reads it (`latentpt.modeling.config`, `latentpt.data.config`, ...);
`latentpt.run` composes them into one run.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all configuration sections: immutable, unknown keys refused, every field documented with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ConfigError(ValueError):
    """A configuration that cannot work, said in one sentence that names the key and the nearest valid value."""
