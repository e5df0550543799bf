"""Selects active features: BatchTopK, which keeps k per row on average over a batch, and TopK.

Scores are activation times decoder norm, which is invariant to scaling a feature's encoder up and its decoder down.
Selection is exact without sorting rows x features: few candidates exceed a bound a little below the last threshold, and
the k-th largest is found among them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.kernels.readback import ScalarReadback

BF16_SLACK = 1 - 2**-8
"""Searches slightly below the bound, so that rounding it to bf16 drops nothing."""


def guess_margin(keep: int) -> float:
    """Distance between the last threshold and the first bound searched, as a share of the threshold.

    The fewer entries are kept, the more the threshold varies between batches. With too few candidates, the search runs
    again with a lower bound.
    """
    return min(0.5, max(0.02, 3.5 / math.sqrt(max(keep, 1))))


class Selection(NamedTuple):
    """Entries kept in several groups."""

    kept: list[Tensor]
    """Per group, flat indices of the kept entries in increasing order, int64."""
    value: list[Tensor]
    """Per group, their pre-activations, fp32."""
    threshold: float
    """Smallest score kept; 0 if nothing was."""


Search = Callable[[Sequence[Tensor]], Sequence[tuple[Tensor, Tensor]]]
"""Maps a bound per group [features] to the entries above it: flat indices in order, int64 [n], pre-activations [n]."""


def batch_topk(search: Search, scale: Sequence[Tensor], keep: int, guess: float = 0.0) -> Selection:
    """Keep the `keep` largest positive scores over all groups together.

    Scores are pre-activations times the group's scale [features]. `guess` is the expected threshold; a bad guess costs
    another search, never exactness.
    """
    bound, lower = max(guess, 0.0) * (1 - guess_margin(keep)), 0.9
    while True:
        found = search([bound * BF16_SLACK / s for s in scale])
        scores = torch.cat([value * s[flat % len(s)] for (flat, value), s in zip(found, scale, strict=True)])
        if bound == 0.0 or len(scores) >= keep:
            selection, above = _keep_largest(found, scores, keep, bound)
            # The search is complete only above the bound itself: rounding moves the bounds of columns differently.
            if bound == 0.0 or above >= keep:
                return selection
        # Falls to zero below a floor: a tiny guess could not be lowered any further and would never end the loop.
        bound, lower = bound * lower if bound > max(guess * 0.2, 1e-12) else 0.0, 0.7


def _keep_largest(
    found: Sequence[tuple[Tensor, Tensor]], scores: Tensor, keep: int, bound: float
) -> tuple[Selection, float]:
    """The `keep` largest of all scores [n], and how many exceed the bound; synchronises with the device once."""
    if not len(scores):
        return Selection([flat for flat, _ in found], [value for _, value in found], 0.0), 0
    mask, lowest_kept = _top_mask(scores, keep)
    parts = mask.split([len(flat) for flat, _ in found])
    counts = ScalarReadback(torch.stack([x.sum() for x in (scores > bound, *parts)]))
    smallest = ScalarReadback(lowest_kept)
    above, *sizes = counts.tolist()
    kept = [nonzero_indices(part, int(size)) for part, size in zip(parts, sizes, strict=True)]
    entries = [(flat[index], value[index]) for (flat, value), index in zip(found, kept, strict=True)]
    return Selection([flat for flat, _ in entries], [value for _, value in entries], smallest.item()), above


def _top_mask(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Mask of the `keep` largest scores [n], and the smallest of them; on a CPU the first of equal ones."""
    if len(scores) <= keep:
        return torch.ones_like(scores, dtype=torch.bool), scores.min()
    if scores.device.type != "cpu":
        value, index = torch.topk(scores, keep, sorted=False)
        return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, index, True), value.min()
    # torch.topk on a CPU sorts what it keeps; a partition is enough.
    lowest_kept = torch.as_tensor(np.partition(scores.numpy(force=True), len(scores) - keep)[len(scores) - keep])
    mask = scores > lowest_kept
    equal = torch.nonzero(scores == lowest_kept).squeeze(1)
    mask[equal[: keep - int(mask.sum())]] = True
    return mask, lowest_kept


def nonzero_indices(mask: Tensor, count: int) -> Tensor:
    """Indices of the true entries of a flat mask, int64 [count]; knowing `count` avoids synchronising with a GPU."""
    if mask.is_cuda:
        return torch.nonzero_static(mask, size=count).squeeze(1)
    return torch.nonzero(mask).squeeze(1)


def row_topk(pre: Sequence[Tensor], scale: Sequence[Tensor], k: int) -> Selection:
    """Keep the k largest positive scores of every row, over all groups together; arguments as for `batch_topk`."""
    scores = torch.cat([p.float() * s for p, s in zip(pre, scale, strict=True)], dim=1)
    best = torch.topk(scores, min(k, scores.shape[1]), dim=1)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best.indices, best.values > 0)
    parts = mask.split([p.shape[1] for p in pre], dim=1)
    sizes = ScalarReadback(torch.stack([part.sum() for part in parts])).tolist()
    kept = [nonzero_indices(part.reshape(-1), int(size)) for part, size in zip(parts, sizes, strict=True)]
    return Selection(kept, [p.reshape(-1)[flat].float() for p, flat in zip(pre, kept, strict=True)], 0.0)


def ranking_norm(norms: Sequence[Tensor], rank_by: str) -> Tensor:
    """Factor by which an activation is multiplied to give its score [features].

    `norms` are a group's decoder norms [features] in each source it writes. With the sum, as in the literature, a
    feature that writes one source competes at half weight against one that writes two.
    """
    stacked = torch.stack(list(norms))
    match rank_by:
        case "largest_norm":
            return stacked.amax(dim=0)
        case "sum_of_norms":
            return stacked.sum(dim=0)
        case "root_sum_of_squares":
            return stacked.square().sum(dim=0).sqrt()
        case _:
            return torch.ones_like(stacked[0])


WINDOW_DIVISOR = 10
"""A running threshold averages over at most the last tenth of the steps, because earlier scores had other weights."""


@dataclass
class RunningThreshold:
    """Moving average of the smallest score kept: the inference threshold for a store without held-out rows."""

    decay: float
    value: float = 0.0
    steps: int = 0

    def update(self, smallest: float) -> None:
        """Include one batch; the first sets the value, and early ones soon have little weight."""
        weight = max(1 - self.decay, WINDOW_DIVISOR / (WINDOW_DIVISOR + self.steps))
        self.value += weight * (smallest - self.value)
        self.steps += 1
