"""Measures all features of a trained crosscoder and judges their claims: the run's `analyse` stage."""
