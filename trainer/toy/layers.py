"""A toy world whose sources are the layers of one model; a concept begins at some layer and persists.

The residual stream at layer t is that of layer t - 1 plus the output of its MLP. A concept begins in the residual
stream of its layer; from there on the MLP of every layer adds a direction specific to the concept and the layer.
"""

import torch

from trainer.toy.firing import FiringModel
from trainer.toy.world import World

CONTRIBUTION = 0.4
"""Norm of an MLP's output for a concept, relative to the unit norm with which the concept begins."""


def layered_world(*, concepts: int, width: int, layers: int, seed: int) -> World:
    """A world of sources `resid-0`, `resid-1`, … and `mlp-0`, `mlp-1`, …; concepts begin evenly over the layers."""
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
    return World(streams | writes, FiringModel.random(concepts, generator), seed)
