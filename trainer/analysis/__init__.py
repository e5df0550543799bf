"""Stage 4: what every feature of a trained crosscoder is, one module per question, from one encode pass."""

from trainer.analysis.stage import analyse

__all__ = ["analyse"]
