"""Pairs of features: co-activation, twins, and how twins agree row by row."""
