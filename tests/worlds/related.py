"""Stores of sources that tell much of each other linearly, each with sparse concepts of its own."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.store.store import ActivationStore, StoredSource, StoreWriter

WIDTHS = {"left": 24, "right": 32}
LATENT, CONCEPTS = 4, 8
"""Dimensions that all share, and concepts that each source has alone."""


class Related(NamedTuple):
    """A store, and what is known of it."""

    store: ActivationStore
    directions: dict[str, Tensor]
    """By source, unit directions of its own concepts in raw space [CONCEPTS, W]."""
    held_out: dict[str, Tensor]
    """By source, magnitudes of its own concepts on the held-out rows [R, CONCEPTS]."""


def related_sources(
    path: Path, widths: dict[str, int] | None = None, *, rows: int = 6144, amplitude: float = 30.0
) -> Related:
    """Every source is a linear map of one dense latent, shifted, plus its own concepts, plus noise.

    Concepts are orthogonal to the image of the latent, so that no map to another source reads them.
    """
    widths, generator = widths or WIDTHS, torch.Generator().manual_seed(3)
    maps = {name: torch.randn(LATENT, width, generator=generator) * 10 for name, width in widths.items()}
    directions = {
        name: _orthogonal(torch.randn(CONCEPTS, width, generator=generator), maps[name])
        for name, width in widths.items()
    }
    writer = StoreWriter(path, tuple(StoredSource(name, width, "float32") for name, width in widths.items()))
    held_out: dict[str, Tensor] = {}
    for split, count in (("train", rows), ("held_out", 1024)):
        latent, values = torch.randn(count, LATENT, generator=generator), {}
        for number, (name, width) in enumerate(widths.items()):
            fires = torch.rand(count, CONCEPTS, generator=generator) < 0.1
            magnitude = fires * (0.5 + torch.rand(count, CONCEPTS, generator=generator)) * amplitude
            noise = torch.randn(count, width, generator=generator)
            values[name] = latent @ maps[name] + magnitude @ directions[name] + noise + 100 * number
            held_out[name] = magnitude
        writer.add(values, {}, split)  # type: ignore[arg-type]
    writer.finish(None, {})
    return Related(ActivationStore.open(path), directions, held_out)


def _orthogonal(directions: Tensor, space: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(space.T)
    return torch.nn.functional.normalize(directions - directions @ basis @ basis.T, dim=1)
