"""Measure: the figures of the documentation, each beside what it is to be compared with, in one run."""
