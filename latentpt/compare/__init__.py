"""Comparisons that are fair: a plan of matched runs, their execution, and a report with its spread."""
