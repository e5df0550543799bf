"""Reads and writes other tools' checkpoints, exactly or not at all; one module per format."""
