"""Pretraining of language models that think before every token."""
