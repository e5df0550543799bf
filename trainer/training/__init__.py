"""Fits crosscoders to stored or streamed activations: a run's `train` stage."""
