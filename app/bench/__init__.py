"""Benches that need the explorer or the worker, and the command that runs any bench."""
