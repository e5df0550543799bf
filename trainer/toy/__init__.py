"""Toy worlds with known concepts, to score crosscoders against a ground truth."""
