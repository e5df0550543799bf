"""The corpus: one deterministic stream of documents that every source reads."""
