"""The inference worker, the only process of the app that loads torch: holds the models and samples steered text."""
