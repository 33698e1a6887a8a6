"""Pretraining of language models that think before every token."""

from latentpt import cpu

cpu.guard()  # here, since it must come before torch and whatever uses a module of ours comes through here
