"""The frozen YAML description of a run, with every default."""
