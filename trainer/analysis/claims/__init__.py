"""Claims that a source lacks a feature: readouts, decoys, q-values and the verdict made of them."""
