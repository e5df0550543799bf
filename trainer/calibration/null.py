"""Null run: one model against rotated, rescaled copies of itself, so that every claim of exclusivity is false.

Each source of the comparison is replaced by the first one, turned by its own random rotation and multiplied by its own
random factor. The recipe stays the same, down to the names of the sources.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.calibration.rng import chance
from trainer.calibration.samples import write_sample
from trainer.crosscoder.normalisation import Normaliser
from trainer.store.store import ActivationStore, Rows

LEAST, MOST = 0.3, 3.0
"""Between what the factors lie."""


def null_store(
    store: ActivationStore, path: Path, names: Sequence[str], normaliser: Normaliser, *, rows: int, seed: int
) -> ActivationStore:
    """A store of the sources named, all made of the first; `normaliser` is the first one's."""
    known = {source.name: source for source in store.sources}
    original = known[names[0]]
    generator = chance("null run", seed)
    turns = {name: _turn(original.width, generator) for name in names}

    def change(raw: Rows, _: int) -> Rows:
        # Without the mean, which is most of some models' activations and would cost bfloat16 its digits.
        plain = normaliser(raw[original.name])
        return {name: plain @ turn for name, turn in turns.items()}

    sources = tuple(replace(known[name], width=original.width, dtype="bfloat16") for name in names)
    return write_sample(store, path, sources, rows=rows, change=change)


def _turn(width: int, generator: torch.Generator) -> Tensor:
    """A random rotation times a random factor [width, width]."""
    turn, triangle = torch.linalg.qr(torch.randn(width, width, generator=generator))
    # Signs make the rotation uniform (Mezzadri 2007).
    factor = LEAST * (MOST / LEAST) ** float(torch.rand((), generator=generator))
    whole: Tensor = turn * triangle.diagonal().sign() * factor
    return whole
