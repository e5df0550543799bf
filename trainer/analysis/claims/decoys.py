"""Decoys: shared features seen through one side's eyes, so that whatever is claimed of them is known to be false.

A claim says "only these sources have it". For every such owner, shared features are picked that fire about as often as
the claimed ones, and each is *transplanted*: the linear readout of its activation from the owner's sources alone, cut
where it fires as often as the feature itself. A decoy reads what a dedicated feature reads, in the real geometry of the
models, but means something that others write too. How exclusive decoys look is how exclusive a false claim can look.
Axes: D decoys, R rows, W width of a source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.contrast import Contrast, contrast, slack_of
from trainer.analysis.claims.readout import Readout, readout
from trainer.analysis.per_feature.decoder_norms import holders
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments, RowMoments
from trainer.crosscoder.crosscoder import Codes, Crosscoder
from trainer.kernels.sparse import dense_above
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows

SAMPLE = 32_768
"""Rows on which the decoys' thresholds are set, at most."""
COLUMNS = 256
"""Decoys whose readouts on the sample are in memory at a time."""


@dataclass(frozen=True)
class Decoys:
    """Decoys for the claims of one owner."""

    owner: str
    features: np.ndarray
    """The shared feature each was made from, int64 [D]."""
    weights: Mapping[str, Tensor]
    """Readout from each source of the owner, fp32 [D, W]."""

    def seen(self, rows: Rows) -> Tensor:
        """What the owner's sources hold of normalised rows, side by side [R, sum of W]."""
        return torch.cat([rows[source] for source in self.weights], dim=1)

    @cached_property
    def weight(self) -> Tensor:
        """What tells features from `seen` rows, up to a constant: the mean of the sources' readouts [D, sum of W]."""
        return torch.cat(list(self.weights.values()), dim=1) / len(self.weights)


def transplants(
    owner: str,
    readouts: Mapping[str, Readout],
    holds: np.ndarray,
    claimed: np.ndarray,
    *,
    count: int,
    least: float,
) -> Decoys | None:
    """Decoys for one owner's claims, or None when there is no feature to make them of.

    Made of features that the owner's sources hold and others too (`holds`, bool [F, T] over the sources of the
    readouts), and of which the owner's sources tell at least `least` of the variance; `count` at most, firing about as
    often as the `claimed` ones, bool [F]. Several sources of one owner see a feature by the mean of their readouts.
    """
    members = holders([owner], tuple(readouts))[0]
    mine = {name: one for (name, one), member in zip(readouts.items(), members, strict=True) if member}
    firings = next(iter(mine.values())).moments.firings.cpu().numpy().sum(axis=0)
    tells = np.max([np.nan_to_num(one.score, nan=-np.inf) for one in mine.values()], axis=0) >= least
    able = np.flatnonzero(holds[:, members].all(axis=1) & holds[:, ~members].any(axis=1) & tells)
    if not len(able):
        return None
    chosen = able[matched(firings[able], firings[claimed & tells], count)]
    return Decoys(owner, chosen, {name: one.weight(chosen)[0].float() for name, one in mine.items()})


def matched(values: np.ndarray, wanted: np.ndarray, count: int) -> np.ndarray:
    """Indices, in rising order, of `count` different values that are spread like the wanted ones as far as possible.

    All when there are no more than `count`; evenly over the ranks when nothing is wanted.
    """
    if len(values) <= count:
        return np.arange(len(values))
    targets = np.quantile(wanted if len(wanted) else values, (np.arange(count) + 0.5) / count)
    order = np.argsort(values, kind="stable")
    turn = np.arange(count)
    # Each takes the first free one at or after its place; what would run over the end moves down.
    place = np.maximum.accumulate(np.searchsorted(values[order], targets) - turn) + turn
    return np.sort(order[np.minimum(place, len(values) - count + turn)])


def examine(
    store: ActivationStore,
    crosscoder: Crosscoder,
    decoys: Sequence[Decoys],
    density: np.ndarray,
    *,
    halves: TwoFold,
    of_rows: RowMoments | None = None,
    progress: Progress,
) -> dict[str, Contrast]:
    """What the readouts say of every owner's decoys [D], by the same test as of claims.

    One more pass over the store, dense in the decoys only. `density` is firings per row of every feature [F]; `of_rows`
    are moments of all rows in these halves where they are known.
    """
    if not decoys:
        return {}
    bounds = thresholds(store, crosscoder, decoys, density)
    count = sum(len(part.features) for part in decoys)
    moments = Moments(crosscoder.widths, count, device=crosscoder.device, of_rows=of_rows)
    first = 0
    with progress.task("Testing decoys", total=store.manifest.rows):
        for block in store.blocks():
            rows = crosscoder.normalise(block.rows)
            codes = fired(decoys, bounds, rows)
            moments.add(rows, codes, halves.of_block(block, first))
            first += codes.rows
            progress.advance(codes.rows)
    scores = {source: readout(moments, source).score for source in crosscoder.targets}
    found, at = {}, 0
    for part in decoys:
        mine = {source: score[at : at + len(part.features)] for source, score in scores.items()}
        holds = holders([part.owner] * len(part.features), crosscoder.targets)
        found[part.owner] = contrast(mine, holds, slack_of(moments))
        at += len(part.features)
    return found


def fired(decoys: Sequence[Decoys], bounds: Sequence[Tensor], rows: Rows) -> Codes:
    """Where decoys exceed their thresholds on normalised rows, and by how much; numbered one after another."""
    parts, before = [], 0
    for part, bound in zip(decoys, bounds, strict=True):
        seen, weight = part.seen(rows).bfloat16(), part.weight.bfloat16()
        # The threshold, itself rounded, goes in before the product is: what is near it is small and keeps its digits.
        place, value = dense_above(seen, weight, -bound.bfloat16(), torch.zeros_like(bound))
        parts.append((place // len(weight), place % len(weight) + before, value))
        before += len(weight)
    row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(row, stable=True)
    return Codes(row[order], feature[order], value[order], len(next(iter(rows.values()))))


def thresholds(
    store: ActivationStore, crosscoder: Crosscoder, decoys: Sequence[Decoys], density: np.ndarray
) -> list[Tensor]:
    """Where to cut each decoy so that it fires as often as its feature, by an even sample of the rows."""
    step = max(1, store.manifest.rows // SAMPLE)
    # Copied: what only points into a mapped shard keeps all of it in memory.
    picked = [{name: x[::step].clone() for name, x in block.rows.items()} for block in store.blocks()]
    sample = crosscoder.normalise({name: torch.cat([part[name] for part in picked]) for name in store.widths})
    count = len(next(iter(sample.values())))
    bounds = []
    for part in decoys:
        seen = part.seen(sample)
        keep = np.clip(np.round(density[part.features] * count), 1, count - 1).astype(np.int64)
        found = []
        for first in range(0, len(keep), COLUMNS):
            told = (part.weight[first : first + COLUMNS] @ seen.T).cpu().numpy()
            place = count - 1 - keep[first : first + COLUMNS]
            found += [np.partition(one, at)[at] for one, at in zip(told, place, strict=True)]
        bounds.append(torch.tensor(np.array(found), device=seen.device))
    return bounds
