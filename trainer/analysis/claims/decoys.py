"""Makes decoys: shared features re-read from one owner's sources, whose claims are known to be false.

A claim says that only its owner's sources have a feature. For every owner with claims, shared features are chosen whose
firing rates match those of the claimed ones, and each is *transplanted*: its activation is predicted by the linear
readout from the owner's sources alone, thresholded to fire as often as the feature itself. Like a dedicated feature, a
decoy reads the owner's sources alone, in the real geometry of the models, but what it represents is in the other
sources too. The strengths of decoys therefore show how strong a false claim can look.
Axes: D decoys, R rows, W width of a source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.contrast import ReadoutContrast, readout_contrast, readout_slack
from trainer.analysis.claims.readout import Readout, readout
from trainer.analysis.per_feature.decoder_norms import holders
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments, RowMoments
from trainer.crosscoder.crosscoder import Codes, Crosscoder
from trainer.kernels.sparse import dense_above
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows

SAMPLE = 32_768
"""Most rows that the decoys' thresholds are estimated on."""
COLUMNS = 256
"""Decoys whose readouts on the sample are computed at a time."""


@dataclass(frozen=True)
class Decoys:
    """Decoys for the claims of one owner."""

    owner: str
    features: np.ndarray
    """The shared feature that each decoy is made from, int64 [D]."""
    weights: Mapping[str, Tensor]
    """Readout weights by source of the owner, fp32 [D, W]."""

    def inputs(self, rows: Rows) -> Tensor:
        """Normalised activations of the owner's sources, concatenated [R, sum of W]."""
        return torch.cat([rows[source] for source in self.weights], dim=1)

    @cached_property
    def mean_weight(self) -> Tensor:
        """Weights on `inputs` of the mean of the sources' readouts, without intercept [D, sum of W]."""
        return torch.cat(list(self.weights.values()), dim=1) / len(self.weights)


def transplant_decoys(
    owner: str,
    readouts: Mapping[str, Readout],
    holds: np.ndarray,
    claims: np.ndarray,
    *,
    count: int,
    least: float,
) -> Decoys | None:
    """At most `count` decoys for one owner's claims, or None if no feature is eligible.

    Eligible are features that all of the owner's sources and some other source have (`holds`, bool [F, T] over the
    sources of the readouts), with a readout score of at least `least` from one of the owner's sources. Those chosen
    match the `claims`, bool [F], in their number of firings. Readouts from several sources are averaged.
    """
    members = holders([owner], tuple(readouts))[0]
    own_readouts = {name: one for (name, one), member in zip(readouts.items(), members, strict=True) if member}
    firings = next(iter(own_readouts.values())).moments.firings.cpu().numpy().sum(axis=0)
    predictable = np.max([np.nan_to_num(one.score, nan=-np.inf) for one in own_readouts.values()], axis=0) >= least
    eligible = np.flatnonzero(holds[:, members].all(axis=1) & holds[:, ~members].any(axis=1) & predictable)
    if not len(eligible):
        return None
    chosen = eligible[matched_sample(firings[eligible], firings[claims & predictable], count)]
    return Decoys(owner, chosen, {name: one.weight(chosen)[0].float() for name, one in own_readouts.items()})


def matched_sample(values: np.ndarray, wanted: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of `count` distinct elements of `values`, distributed as closely as possible like `wanted`.

    All indices if there are no more than `count`; evenly spaced ranks if `wanted` is empty.
    """
    if len(values) <= count:
        return np.arange(len(values))
    targets = np.quantile(wanted if len(wanted) else values, (np.arange(count) + 0.5) / count)
    order = np.argsort(values, kind="stable")
    index = np.arange(count)
    # Each target takes the first free rank at or after its own; ranks past the end move down.
    rank = np.maximum.accumulate(np.searchsorted(values[order], targets) - index) + index
    return np.sort(order[np.minimum(rank, len(values) - count + index)])


def decoy_contrasts(
    store: ActivationStore,
    crosscoder: Crosscoder,
    decoys: Sequence[Decoys],
    density: np.ndarray,
    *,
    folds: TwoFold,
    row_moments: RowMoments | None = None,
    progress: Progress,
) -> dict[str, ReadoutContrast]:
    """Readout contrasts of every owner's decoys [D], by owner, computed like those of claims.

    Makes a pass over the store. `density` is firings per row of every feature [F]; `row_moments` are the moments of all
    rows in these folds, if known from an earlier pass.
    """
    if not decoys:
        return {}
    thresholds = decoy_thresholds(store, crosscoder, decoys, density)
    count = sum(len(part.features) for part in decoys)
    moments = Moments(crosscoder.widths, count, device=crosscoder.device, row_moments=row_moments)
    first = 0
    with progress.task("Testing decoys", total=store.manifest.rows):
        for block in store.blocks():
            rows = crosscoder.normalise(block.rows)
            codes = decoy_codes(decoys, thresholds, rows)
            moments.add(rows, codes, folds.folds_of_block(block, first))
            first += codes.rows
            progress.advance(codes.rows)
    scores = {source: readout(moments, source).score for source in crosscoder.targets}
    contrasts, at = {}, 0
    for part in decoys:
        part_scores = {source: score[at : at + len(part.features)] for source, score in scores.items()}
        holds = holders([part.owner] * len(part.features), crosscoder.targets)
        contrasts[part.owner] = readout_contrast(part_scores, holds, readout_slack(moments))
        at += len(part.features)
    return contrasts


def decoy_codes(decoys: Sequence[Decoys], thresholds: Sequence[Tensor], rows: Rows) -> Codes:
    """Firings of decoys on normalised rows: excess over the threshold; decoys of all owners numbered consecutively."""
    parts, before = [], 0
    for part, threshold in zip(decoys, thresholds, strict=True):
        inputs, weight = part.inputs(rows).bfloat16(), part.mean_weight.bfloat16()
        # The threshold is subtracted before rounding to bf16, so that small excesses keep their precision.
        flat, value = dense_above(inputs, weight, -threshold.bfloat16(), torch.zeros_like(threshold))
        parts.append((flat // len(weight), flat % len(weight) + before, value))
        before += len(weight)
    row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(row, stable=True)
    return Codes(row[order], feature[order], value[order], len(next(iter(rows.values()))))


def decoy_thresholds(
    store: ActivationStore, crosscoder: Crosscoder, decoys: Sequence[Decoys], density: np.ndarray
) -> list[Tensor]:
    """Thresholds at which each decoy fires as often as its feature, estimated on evenly spaced rows."""
    step = max(1, store.manifest.rows // SAMPLE)
    # Copied, since a view into a memory-mapped shard keeps the whole shard in memory.
    picked = [{name: x[::step].clone() for name, x in block.rows.items()} for block in store.blocks()]
    sample = crosscoder.normalise({name: torch.cat([part[name] for part in picked]) for name in store.widths})
    count = len(next(iter(sample.values())))
    thresholds = []
    for part in decoys:
        inputs = part.inputs(sample)
        firings = np.clip(np.round(density[part.features] * count), 1, count - 1).astype(np.int64)
        found = []
        for first in range(0, len(firings), COLUMNS):
            predicted = (part.mean_weight[first : first + COLUMNS] @ inputs.T).cpu().numpy()
            rank = count - 1 - firings[first : first + COLUMNS]
            found += [np.partition(one, at)[at] for one, at in zip(predicted, rank, strict=True)]
        thresholds.append(torch.tensor(np.array(found), device=inputs.device))
    return thresholds
