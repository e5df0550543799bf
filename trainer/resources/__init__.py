"""Estimates what a run will take, and whether it fits this machine."""
