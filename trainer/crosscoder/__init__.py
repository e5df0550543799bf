"""The crosscoder: feature groups, normalisation, TopK selection, encoding and decoding."""
