"""Tests of claims that a source lacks a feature: readouts, decoys, q-values, verdicts."""
