"""Layers: a world whose sources are the layers of one model; a concept begins at some layer and persists.

At layer t the residual stream holds what it held before, and what the MLP of the layer before wrote. A concept begins
in the residual stream of its own layer; from there on every MLP adds a direction of its own for it.
"""

import torch

from trainer.toy.firing import Firing
from trainer.toy.world import World

CONTRIBUTION = 0.4
"""Length of what an MLP writes for a concept, against the unit length with which the concept begins."""


def layered_world(*, concepts: int, width: int, layers: int, seed: int) -> World:
    """Sources `resid-0`, `resid-1`, … and `mlp-0`, `mlp-1`, …; as many concepts begin at each layer, or one fewer."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.randperm(concepts, generator=generator) % layers
    residual = torch.zeros(concepts, width)
    streams, writes = {}, {}
    for layer in range(layers):
        fresh = torch.nn.functional.normalize(torch.randn(concepts, width, generator=generator), dim=1)
        added = torch.nn.functional.normalize(torch.randn(concepts, width, generator=generator), dim=1)
        residual = torch.where((begins == layer)[:, None], fresh, residual)
        streams[f"resid-{layer}"] = residual
        writes[f"mlp-{layer}"] = CONTRIBUTION * added * (begins <= layer)[:, None]
        residual = residual + writes[f"mlp-{layer}"]
    return World(streams | writes, Firing.random(concepts, generator), seed)
