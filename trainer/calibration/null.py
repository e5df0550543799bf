"""Builds the store of the null run: rotated, rescaled copies of one source; every claim is false.

Each source of the comparison is replaced by the first one, multiplied by a random rotation and a random factor. The
recipe stays the same, including the names of the sources.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.calibration.rng import seeded_generator
from trainer.calibration.samples import write_sample
from trainer.crosscoder.normalisation import Normaliser
from trainer.store.store import ActivationStore, Rows

MIN_FACTOR, MAX_FACTOR = 0.3, 3.0
"""Bounds of the random factors, which are log-uniform."""


def null_store(
    store: ActivationStore, path: Path, names: Sequence[str], normaliser: Normaliser, *, rows: int, seed: int
) -> ActivationStore:
    """Store of the sources `names`, all derived from the first, whose normaliser is `normaliser`."""
    known = {source.name: source for source in store.sources}
    original = known[names[0]]
    generator = seeded_generator("null run", seed)
    rotations = {name: _scaled_rotation(original.width, generator) for name in names}

    def transform(raw: Rows, _: int) -> Rows:
        # The mean, which dominates the activations of some models, is subtracted to keep precision in bfloat16.
        normalised = normaliser(raw[original.name])
        return {name: normalised @ rotation for name, rotation in rotations.items()}

    sources = tuple(replace(known[name], width=original.width, dtype="bfloat16") for name in names)
    return write_sample(store, path, sources, rows=rows, transform=transform)


def _scaled_rotation(width: int, generator: torch.Generator) -> Tensor:
    """A random rotation times a random factor [width, width]."""
    orthogonal, triangle = torch.linalg.qr(torch.randn(width, width, generator=generator))
    # The signs of the diagonal make the distribution uniform (Mezzadri 2007).
    factor = MIN_FACTOR * (MAX_FACTOR / MIN_FACTOR) ** float(torch.rand((), generator=generator))
    rotation: Tensor = orthogonal * triangle.diagonal().sign() * factor
    return rotation
