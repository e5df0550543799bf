"""Language models: finding their files, loading them, and reading or editing activations at a hookpoint."""
