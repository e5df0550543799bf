"""Tests of claims that a source lacks a feature: readouts, probes, excess over noise, verdicts."""
