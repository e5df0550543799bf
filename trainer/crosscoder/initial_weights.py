"""Draws the weights that a training begins with."""

import torch
from torch import Tensor

from trainer.crosscoder.groups import Group


def initial_weights(
    widths: dict[str, int], groups: tuple[Group, ...], *, decoder_norm: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights before training: random decoder directions of norm `decoder_norm`, encoders equal to them, biases zero.

    The decoders of a tied group are one tensor under several names.
    """
    weights: dict[str, Tensor] = {}
    for group in groups:
        for source in group.writes:
            if group.tied and source != group.writes[0]:
                weights[f"decoder.{source}.{group.name}"] = weights[f"decoder.{group.writes[0]}.{group.name}"]
                continue
            direction = torch.randn(group.features, widths[source], generator=generator)
            direction *= decoder_norm / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
            weights[f"decoder.{source}.{group.name}"] = direction
        for source in group.reads:
            encoder = weights.get(f"decoder.{source}.{group.name}")
            if encoder is None:
                encoder = torch.randn(group.features, widths[source], generator=generator) / widths[source] ** 0.5
            weights[f"encoder.{source}.{group.name}"] = encoder.clone()
        weights[f"encoder_bias.{group.name}"] = torch.zeros(group.features)
    written = {source for group in groups for source in group.writes}
    return weights | {f"decoder_bias.{s}": torch.zeros(width) for s, width in widths.items() if s in written}
