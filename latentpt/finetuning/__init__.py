"""Reasoning in continuous space, learnt by fine-tuning: Coconut and Latent Thoughts Tuning."""

from latentpt.finetuning.fills import Fill, predicted_embedding
from latentpt.finetuning.generate import latent_generate
from latentpt.finetuning.rollout import latent_forward

__all__ = ["Fill", "latent_forward", "latent_generate", "predicted_embedding"]
