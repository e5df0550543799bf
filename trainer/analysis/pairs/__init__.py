"""Pairs of features: correlations of activations, twins, and joint histograms of twins."""
