"""Builds the store of the noise null: one source is what the others predict of it, plus Gaussian noise.

The noise has the residual's covariance and each row's own size. Nothing in it is sparse, and it holds no concept: every
claim that only this source has a feature is false. The other sources stay as they are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trainer.analysis.claims.linear_map import LinearMap, fit_map
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.calibration.rng import seeded_generator
from trainer.calibration.samples import write_sample
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.prediction import joint
from trainer.crosscoder.row_moments import RowMoments
from trainer.store.store import ActivationStore, Rows


def store_moments(store: ActivationStore, crosscoder: Crosscoder) -> RowMoments:
    """Second moments of all rows of a store, normalised."""
    moments, folds, first = RowMoments(crosscoder.widths, device=crosscoder.device), TwoFold.from_store(store), 0
    for block in store.blocks():
        rows = crosscoder.normalise(block.rows)
        count = len(next(iter(rows.values())))
        moments.add(rows, folds.folds_of_block(block, first))
        first += count
    return moments


def noise_store(
    store: ActivationStore,
    path: Path,
    crosscoder: Crosscoder,
    source: str,
    moments: RowMoments,
    *,
    rows: int,
    seed: int,
) -> ActivationStore:
    """Store in which `source` holds nothing that the others do not predict, but noise."""
    names: Sequence[str] = crosscoder.sources
    linear_map = fit_map(moments, [name for name in names if name != source], [source])
    known = {one.name: one for one in store.sources}

    def transform(raw: Rows, first: int) -> Rows:
        normalised = crosscoder.normalise(raw)
        generator = seeded_generator("noise", seed, source, first)
        return {name: raw[name] for name in names} | {
            source: crosscoder.normaliser[source].denormalise(_noisy(normalised, linear_map, generator)).cpu()
        }

    sources = tuple(replace(known[name], dtype="bfloat16") for name in names)
    return write_sample(store, path, sources, rows=rows, transform=transform)


def _noisy(rows: Rows, linear_map: LinearMap, generator: torch.Generator) -> torch.Tensor:
    """What the map predicts of its target on normalised rows, plus noise of the residual's shape [R, W]."""
    x = joint(rows, linear_map.given)
    # The mean of both fits: each row is in the fit of one of them.
    predicted = (
        sum(x @ weight + offset for weight, offset in zip(linear_map.weight, linear_map.offset, strict=True)) / 2
    )
    size = linear_map.size(joint(rows, linear_map.target) - predicted)
    draw = torch.randn(x.shape[0], len(linear_map.covariance), generator=generator).to(x.device)
    noisy: torch.Tensor = predicted + size[:, None] * (draw @ linear_map.root.T)
    return noisy
