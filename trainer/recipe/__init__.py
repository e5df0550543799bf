"""The immutable YAML description of a run, with all defaults."""
