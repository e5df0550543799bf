"""Training-free comparisons of the models, to hold the crosscoder's findings against."""
