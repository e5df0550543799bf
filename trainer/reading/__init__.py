"""From documents to aligned activations: tokenize, cut into sequences, align, run the models."""
