"""The crosscoder itself: groups of features, normalisation, which features stay active, encode and decode."""
