"""Measures claims: is it a feature (excess over noise), and whose is it (probes of either side), with intervals.

Claims are judged on rows that training never saw. All intervals are over groups of documents, drawn with replacement:
rows of one group are not independent. Axes: C claims, S sources, K groups of documents, B draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.excess import Detectors, energies
from trainer.analysis.claims.linear_map import fit_map
from trainer.analysis.claims.probes import Probes, probe_features
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.row_moments import RowMoments

DRAWS = 400
"""Bootstrap draws."""
TAIL = 0.05
"""Beyond either end of an interval."""
HALF = 0.5
"""Of a firing, added to the energy in the mirror, so that none there gives no infinity."""
NOTHING_SEEN = 3.0
"""With no hit in n groups of documents, up to about 3 / n of them may hold one (the rule of three, at 95 %)."""


@dataclass(frozen=True)
class Estimate:
    """A measure with its 90 % interval [C]; NaN where it cannot be measured."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def select(self, index: np.ndarray) -> "Estimate":
        """Of some claims."""
        return Estimate(self.value[index], self.low[index], self.high[index])


@dataclass(frozen=True)
class ClaimedFeatures:
    """What is measured: directions with a threshold, said to be some sources' own."""

    sources: tuple[str, ...]
    holds: np.ndarray
    """Which sources the owner names, bool [C, S]."""
    firings: Sequence[np.ndarray]
    """Of every claim, the rows of the sample where it fires."""
    encoder: Mapping[str, Tensor]
    """By source, weights on normalised activations [C, W]."""
    threshold: Tensor
    """Activation from which on it fires, less its bias [C]."""
    least: Tensor
    """Activation from which on it fires [C]."""

    def detectors(self, index: Tensor, own: Sequence[str], others: Sequence[str]) -> Detectors:
        """What makes some claims fire, with the weights of `own` and of the `others` side by side."""

        def beside(names: Sequence[str]) -> Tensor:
            return torch.cat([self.encoder[name].cpu()[index] for name in names], dim=1)

        return Detectors(beside(own), beside(others), self.threshold[index], self.least[index])

    @classmethod
    def of_crosscoder(
        cls, crosscoder: Crosscoder, features: np.ndarray, holds: np.ndarray, codes: CodeSpool, sample: RowSample
    ) -> "ClaimedFeatures":
        """Some features of a crosscoder; `holds`, bool [F, T], is over its targets."""
        index = torch.from_numpy(features)
        bias = torch.cat([crosscoder.weights[f"encoder_bias.{group.name}"] for group in crosscoder.groups]).detach()
        firings, least = [], []
        for feature in features:
            found = codes.read(int(feature), int(feature) + 1)
            firings.append(sample.select(found.row))
            least.append(found.value.min(initial=np.inf))
        smallest = torch.tensor(np.array(least, np.float32))
        named = [crosscoder.sources.index(name) for name in crosscoder.targets]
        all_sources = np.zeros((len(features), len(crosscoder.sources)), bool)
        all_sources[:, named] = holds[features]
        return cls(
            crosscoder.sources,
            all_sources,
            firings,
            {
                name: crosscoder.encoder(name)[index.to(crosscoder.device)] * _factor(crosscoder, index)
                for name in crosscoder.sources
            },
            smallest - bias.cpu().float()[index],
            smallest,
        )


@dataclass(frozen=True)
class ClaimEvidence:
    """What is known of each claim [C]; NaN where it cannot be measured."""

    ratio: Estimate
    """R-precision of the best probe outside the owner over that of the best inside."""
    own: np.ndarray
    """R-precision of the best probe inside."""
    excess: Estimate
    """Energy over that in the mirror; see `excess`."""
    r_precision: np.ndarray
    """R-precision of every source [C, S]."""
    auc: np.ndarray
    """AUC of every source [C, S]."""


def measure_claims(sample: RowSample, claimed: ClaimedFeatures, moments: RowMoments) -> ClaimEvidence:
    """Measure every claim; deterministic."""
    probes = probe_features(sample, claimed.firings, claimed.sources, moments)
    fired, drawn = firings_by_group(sample, claimed.firings), draws(sample.judged_clusters)
    total = np.where(probes.enough, fired.sum(axis=0), np.nan)
    r_precision = (probes.hits.sum(axis=1) / total).T
    inside = _best(np.where(claimed.holds, r_precision, -np.inf))
    outside = _best(np.where(claimed.holds, -np.inf, r_precision))
    return ClaimEvidence(
        _ratio(probes, inside, outside, fired, drawn),
        np.take_along_axis(r_precision, inside[:, None], axis=1)[:, 0],
        _excess(sample, claimed, moments, fired, drawn),
        r_precision,
        probes.auc.T,
    )


def firings_by_group(sample: RowSample, firings: Sequence[np.ndarray]) -> np.ndarray:
    """Firings on judged rows by group of documents, fp32 [K, C]; `firings` are rows of the sample, by claim."""
    fired = np.zeros((sample.clusters, len(firings)), np.float32)
    for claim, rows in enumerate(firings):
        fired[:, claim] = np.bincount(sample.cluster[rows[rows < sample.judged]], minlength=sample.clusters)
    return fired


def draws(judged: np.ndarray) -> np.ndarray:
    """How often each group of documents is drawn [B, K], of those with judged rows, bool [K]."""
    shares = judged / max(judged.sum(), 1)
    return np.random.default_rng(0).multinomial(judged.sum(), shares, DRAWS).astype(np.float32)


def _best(values: np.ndarray) -> np.ndarray:
    best: np.ndarray = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    return best


def _ratio(probes: Probes, inside: np.ndarray, outside: np.ndarray, fired: np.ndarray, drawn: np.ndarray) -> Estimate:
    claims = np.arange(len(inside))
    own, other = probes.hits[inside, :, claims].T, probes.hits[outside, :, claims].T
    return ratio_estimate(other, own, probes.enough, fired, drawn)


def ratio_estimate(
    other: np.ndarray, own: np.ndarray, enough: np.ndarray, fired: np.ndarray, drawn: np.ndarray
) -> Estimate:
    """Probe ratios from hits of the other's probes and of the owner's by group of documents [K, C].

    `fired` are firings by group [K, C], `drawn` how often each group is drawn [B, K]; NaN where not `enough`, bool [C].
    """
    value = _quotient(other.sum(axis=0), own.sum(axis=0))
    low, high = _quantiles(_quotient(drawn @ other, drawn @ own))
    # Where the other side has hardly a hit, resampling hits says nothing about those that were not met.
    share = _quotient(own.sum(axis=0), fired.sum(axis=0))
    groups = (fired > 0).sum(axis=0)
    high = np.fmax(high, NOTHING_SEEN / np.maximum(groups, 1) / np.maximum(share, 1e-9))
    return Estimate(*(np.where(enough, part, np.nan) for part in (value, low, high)))


def _excess(
    sample: RowSample, claimed: ClaimedFeatures, moments: RowMoments, fired: np.ndarray, drawn: np.ndarray
) -> Estimate:
    parts = np.full((3, len(claimed.firings)), np.nan)
    for holds in _distinct(claimed.holds):
        if holds.all() or not holds.any():
            continue
        index = np.flatnonzero((claimed.holds == holds).all(axis=1))
        own = [name for name, has in zip(claimed.sources, holds, strict=True) if has]
        others = [name for name in claimed.sources if name not in own]
        detectors = claimed.detectors(torch.from_numpy(index), own, others)
        observed, mirrored = (part.numpy() for part in energies(sample, fit_map(moments, others, own), detectors))
        half = HALF * _quotient(observed.sum(axis=0), fired[:, index].sum(axis=0))
        parts[0, index] = _quotient(observed.sum(axis=0), mirrored.sum(axis=0) + half)
        parts[1, index], parts[2, index] = _quantiles(_quotient(drawn @ observed, drawn @ mirrored + half))
    return Estimate(*parts)


def _distinct(holds: np.ndarray) -> Iterable[np.ndarray]:
    return np.unique(holds, axis=0)


def _factor(crosscoder: Crosscoder, index: Tensor) -> Tensor:
    """Factor of each feature's inputs [C, 1]."""
    factors = [torch.full((group.features,), crosscoder.read_factor(group)) for group in crosscoder.groups]
    return torch.cat(factors)[index].to(crosscoder.device)[:, None]


def _quotient(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0)
    return result


def _quantiles(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the central interval over the draws, each [C]; NaN where no draw has a value."""
    known = np.isfinite(draws).any(axis=0)
    if not len(known):
        return np.zeros(0), np.zeros(0)
    filled = np.where(known, draws, 0)
    low, high = np.nanquantile(filled, [TAIL, 1 - TAIL], axis=0)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)
