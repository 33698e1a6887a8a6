"""One page about one run."""

from latentpt.report.command import report

__all__ = ["report"]
