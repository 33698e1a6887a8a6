"""Weights in and out of the Hugging Face formats."""

from latentpt.hub.convert import from_hf, to_hf

__all__ = ["from_hf", "to_hf"]
