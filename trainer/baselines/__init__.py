"""Baselines: what comparing the models tells without training anything, to hold the crosscoder's findings against."""
