"""Scaling laws fitted to the losses of many runs, and what follows from them, each with an interval. numpy and scipy alone."""
