"""Toy worlds whose concepts are known, so that what a crosscoder finds can be checked against the truth."""
