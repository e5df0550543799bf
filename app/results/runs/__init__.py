"""Queries on a whole run: its headline measures, its overview, its baselines."""
