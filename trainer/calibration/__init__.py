"""Calibrates verdicts on claims with known ground truth: noise nulls, placebos and spike-ins."""
