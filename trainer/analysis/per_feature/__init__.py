"""Measures of one feature at a time: firings, contexts, promoted tokens, decoder norms."""
