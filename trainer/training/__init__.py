"""Fitting crosscoders to stored or streamed activations: the run's `train` stage."""
