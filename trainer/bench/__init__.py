"""Benches: how fast a stage is, against a physical limit or a peer that was measured in the same run."""
