"""Evaluates a crosscoder on held-out rows: the `evaluate` stage of a run."""
