"""The thought methods by name. Adding one is one file beside this one and one line here."""

from __future__ import annotations

from latentpt.config import ConfigError, nearest
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.latent import Latent
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.vanilla import Vanilla

METHODS: dict[str, type[ThoughtMethod]] = {
    "vanilla": Vanilla,
    "latent": Latent,
}


def make_method(config: ThoughtsConfig, model: ModelConfig) -> ThoughtMethod:
    """The method a configuration names; raises ConfigError with the nearest name if there is none."""
    if config.method not in METHODS:
        raise ConfigError(
            f"thoughts.method = {config.method} is unknown; the nearest method is {nearest(config.method, METHODS)}"
        )
    return METHODS[config.method](config, model)
