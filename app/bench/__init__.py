"""Benches of the explorer and the worker, and the commands of all benches."""
