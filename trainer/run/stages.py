"""Names of a run's stages."""

STAGES = ("harvest", "train", "evaluate", "calibrate", "analyse")
"""In the order in which they run."""
