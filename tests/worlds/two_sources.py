"""Rows of two sources with known relation, as a sample: `right` is a linear image of `left` plus noise of its own."""

import numpy as np
import torch

from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.row_moments import RowMoments

WIDTHS = {"left": 24, "right": 32}
ROWS, DOCUMENTS = 24_000, 240


def two_sources(*, noise: float = 0.7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Activations by source, fp32 [ROWS, W]."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(ROWS, WIDTHS["left"], generator=generator)
    image = torch.randn(WIDTHS["left"], WIDTHS["right"], generator=generator) / WIDTHS["left"] ** 0.5
    own = torch.randn(ROWS, WIDTHS["right"], generator=generator)
    return {"left": left, "right": left @ image + noise * own}


def as_sample(rows: dict[str, torch.Tensor]) -> tuple[RowSample, RowMoments]:
    """A sample of these rows in documents of equal length, and their moments."""
    count = len(next(iter(rows.values())))
    cluster = np.arange(count) * DOCUMENTS // count
    fold = cluster % 2
    sample = RowSample(
        {name: x.to(torch.bfloat16) for name, x in rows.items()},
        fold,
        cluster,
        np.arange(count),
        count,
        cluster,
    )
    moments = RowMoments({name: x.shape[1] for name, x in rows.items()})
    moments.add({name: x.float() for name, x in sample.rows.items()}, torch.from_numpy(fold))
    return sample, moments


def planted(rows: dict[str, torch.Tensor], source: str, *, rate: float = 0.01, strength: float = 6.0, seed: int = 1):
    """Adds a concept to one source in place; gives its unit direction and the rows where it is."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(rows[source].shape[1], generator=generator), dim=0)
    fires = torch.rand(len(rows[source]), generator=generator) < rate
    rows[source][fires] += strength * direction
    return direction, np.flatnonzero(fires.numpy())
