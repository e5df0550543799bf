"""Calibrates verdicts on claims with known ground truth: the null run and the spike-ins."""
