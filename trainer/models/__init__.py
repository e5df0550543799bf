"""Language models: finding and loading them, and reading or editing activations at a hookpoint."""
