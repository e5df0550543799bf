"""Judges placebo claims: random directions of each source, thresholded to fire as often as claimed features do.

They mean nothing, so that none should be supported. *Isotropic* directions are uniform; *whitened* ones are uniform
after whitening the source, and lie where the source has little variance.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.claims import FeatureMeasures
from trainer.analysis.claims.evidence import ClaimedFeatures, ClaimEvidence, Estimate, measure_claims
from trainer.analysis.claims.verdict import SUPPORTED, FeatureStats, judge
from trainer.analysis.rows.sample import RowSample
from trainer.calibration.rng import seeded_generator
from trainer.crosscoder.row_moments import RowMoments
from trainer.recipe.measuring import VerdictRecipe

COUNT = 128
"""Directions per source and kind."""
KINDS = ("isotropic", "whitened")


class PlaceboCount(NamedTuple):
    """How many placebo claims of one kind are supported."""

    kind: str
    source: str
    claims: int
    judged: int
    """Claims with a probe ratio and an excess."""
    supported: int


def judge_placebos(
    sample: RowSample,
    sources: Sequence[str],
    moments: RowMoments,
    densities: Sequence[float],
    recipe: VerdictRecipe,
    *,
    seed: int = 0,
) -> Iterator[PlaceboCount]:
    """Judge placebos of every source at densities drawn from those of the claims; nothing if there are none."""
    if not len(densities):
        return
    for source in sources:
        for kind in KINDS:
            generator = seeded_generator("placebo", seed, source, kind)
            drawn = torch.randint(len(densities), (COUNT,), generator=generator).numpy()
            direction = _directions(kind, source, moments, generator)
            claimed = _claimed(sample, tuple(sources), source, direction, np.asarray(densities, float)[drawn])
            evidence = measure_claims(sample, claimed, moments)
            verdict = judge(np.ones(COUNT, bool), _stats(claimed, evidence, sample), recipe).verdict
            judged = np.isfinite(evidence.ratio.value) & np.isfinite(evidence.excess.value)
            yield PlaceboCount(kind, source, COUNT, int(judged.sum()), verdict.count(SUPPORTED))


def _directions(kind: str, source: str, moments: RowMoments, generator: torch.Generator) -> Tensor:
    """Random weights on normalised activations, fp32 [COUNT, W]."""
    width = moments.total[source].shape[1]
    direction = torch.randn(COUNT, width, generator=generator)
    if kind == "whitened":
        products = moments.joint([source], [source], None)
        values, axes = (part.cpu() for part in torch.linalg.eigh(products.products / products.rows))
        scale = values.clamp_min(1e-6 * float(values.mean())).rsqrt()
        direction = ((direction.double() * scale) @ axes.T).float()
    return torch.nn.functional.normalize(direction, dim=1)


def _claimed(
    sample: RowSample, sources: tuple[str, ...], source: str, direction: Tensor, density: np.ndarray
) -> ClaimedFeatures:
    """Directions of one source with thresholds that give these densities."""
    scores = torch.cat([direction @ rows.float().T for rows in sample.rows[source].split(16384)], dim=1).numpy()
    firings, threshold = [], []
    for score, share in zip(scores, density, strict=True):
        count = max(1, round(share * len(score)))
        least = np.partition(score, len(score) - count)[len(score) - count]
        firings.append(np.flatnonzero(score >= least))
        threshold.append(least)
    widths = {name: sample.rows[name].shape[1] for name in sources}
    encoder = {name: torch.zeros(len(direction), width) for name, width in widths.items()} | {source: direction}
    holds = np.tile([name == source for name in sources], (len(direction), 1))
    least = torch.tensor(np.array(threshold, np.float32))
    return ClaimedFeatures(sources, holds, firings, encoder, least, least)


def _stats(claimed: ClaimedFeatures, evidence: ClaimEvidence, sample: RowSample) -> FeatureStats:
    """Evidence on placebos: what else a feature can be doubted for is unknown."""
    unknown = np.full(len(claimed.firings), np.nan)
    firings = np.array([len(rows) for rows in claimed.firings])
    return FeatureStats(
        ratio=evidence.ratio,
        own=evidence.own,
        excess=evidence.excess,
        elsewhere=Estimate(unknown, unknown, unknown),
        fdr=unknown,
        nu_error=unknown,
        nu_reconstruction=unknown,
        found_again=unknown,
        other_runs=np.zeros(len(firings), np.int64),
        **vars(FeatureMeasures.without_text(firings, sample.size, unknown)),
    )
