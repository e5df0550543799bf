"""On what text two models predict differently, beyond what any change of a model does there."""
