"""The thought methods by name. Adding one is one file beside this one and one line here."""

from __future__ import annotations

from latentpt.config import ConfigError, nearest
from latentpt.modeling.config import ModelConfig
from latentpt.thoughts.adaptive import Alcot, Ponder3
from latentpt.thoughts.config import ThoughtsConfig
from latentpt.thoughts.dual_slot import DualSlot
from latentpt.thoughts.full_bandwidth import FullBandwidth
from latentpt.thoughts.hidden_decoding import SequentialHiddenDecoding
from latentpt.thoughts.hybrid import Hybrid
from latentpt.thoughts.latent import Latent, LatentMixture
from latentpt.thoughts.loop import Loop, MidLoop
from latentpt.thoughts.method import ThoughtMethod
from latentpt.thoughts.middle_recurrence import MiddleRecurrence
from latentpt.thoughts.p2n import P2N
from latentpt.thoughts.pause import Pause
from latentpt.thoughts.ponder import Ponder, PonderHidden
from latentpt.thoughts.recurrent import LatentRecurrent
from latentpt.thoughts.smear import Smear
from latentpt.thoughts.vanilla import Vanilla

METHODS: dict[str, type[ThoughtMethod]] = {
    "vanilla": Vanilla,
    "latent": Latent,
    "latent_mixture": LatentMixture,
    "pause": Pause,
    "loop": Loop,
    "ponder": Ponder,
    "ponder_hidden": PonderHidden,
    "sequential_hidden_decoding": SequentialHiddenDecoding,
    "mid_loop": MidLoop,
    "smear": Smear,
    "p2n": P2N,
    "dual_slot": DualSlot,
    "hybrid": Hybrid,
    "lrt": LatentRecurrent,
    "fbt": FullBandwidth,
    "t2mlr": MiddleRecurrence,
    "alcot": Alcot,
    "ponder3": Ponder3,
}


def make_method(config: ThoughtsConfig, model: ModelConfig) -> ThoughtMethod:
    """The method a configuration names; raises ConfigError with the nearest name if there is none."""
    if config.method not in METHODS:
        raise ConfigError(
            f"thoughts.method = {config.method} is unknown; the nearest method is {nearest(config.method, METHODS)}"
        )
    return METHODS[config.method](config, model)
