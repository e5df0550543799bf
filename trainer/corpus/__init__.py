"""The text every source reads, as one deterministic stream of documents."""
