"""A run: the configuration of one training and the folder that holds all of it.

Trainings write what is here, everything above reads it; nothing here needs an engine, and torch is imported only by
what reads tensors.
"""

from latentpt.run.config import RunConfig
from latentpt.run.folder import RunFolder, cut_metrics, read_metrics, versions
from latentpt.run.trained import checkpoint_step, load_model

__all__ = [
    "RunConfig",
    "RunFolder",
    "checkpoint_step",
    "cut_metrics",
    "load_model",
    "read_metrics",
    "versions",
]
