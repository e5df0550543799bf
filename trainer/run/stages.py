"""The stages of a run."""

STAGES = ("harvest", "train", "evaluate", "calibrate", "analyse")
"""In the order in which they run."""
