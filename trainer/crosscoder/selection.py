"""Sparsity: which features stay active. BatchTopK keeps the k strongest per row on average over a batch.

Scores are activation times decoder norm, so that scaling a feature's encoder up and its decoder down changes nothing.
Selection is exact, without sorting rows x features: candidates above a running threshold are few, and the k-th
largest is found among them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.kernels.readback import ScalarReadback
from trainer.recipe.fitting import SparsityRecipe

ROUNDED_DOWN = 1 - 2**-8
"""Searched is for a little less than the bound, so that its rounding to bf16 leaves out nothing above it."""


def spare(keep: int) -> float:
    """By how much the search for a threshold begins below the last one, as a share of it.

    The threshold of few varies more between batches. Too few candidates, and the search begins anew, lower.
    """
    return min(0.5, max(0.02, 3.5 / math.sqrt(max(keep, 1))))


class Selected(NamedTuple):
    """What is kept of several groups' scores."""

    kept: list[Tensor]
    """Per group, flat indices of kept entries in increasing order, int64."""
    value: list[Tensor]
    """Per group, their pre-activations, fp32."""
    threshold: float
    """The smallest score kept; 0 when nothing was."""


Search = Callable[[Sequence[Tensor]], Sequence[tuple[Tensor, Tensor]]]
"""From a bound per group [features] to what exceeds it: flat indices in order, int64 [n], and pre-activations [n]."""


def batch_topk(search: Search, scale: Sequence[Tensor], keep: int, guess: float = 0.0) -> Selected:
    """Keep the `keep` largest positive scores over all groups together.

    Scores are pre-activations times the group's scale [features]. `guess` is about the threshold expected; a bad one
    costs another search, never exactness.
    """
    bound, lower = max(guess, 0.0) * (1 - spare(keep)), 0.9
    while True:
        found = search([bound * ROUNDED_DOWN / s for s in scale])
        scores = torch.cat([value * s[at % len(s)] for (at, value), s in zip(found, scale, strict=True)])
        if bound == 0.0 or len(scores) >= keep:
            selected, above = _largest(found, scores, keep, bound)
            # Only above the bound itself is nothing missing: rounding moves every column's bound by another share.
            if bound == 0.0 or above >= keep:
                return selected
        # A guess so small that it cannot be lowered any more must not keep the search going.
        bound, lower = bound * lower if bound > max(guess * 0.2, 1e-12) else 0.0, 0.7


def _largest(found: Sequence[tuple[Tensor, Tensor]], scores: Tensor, keep: int, bound: float) -> tuple[Selected, float]:
    """The `keep` largest of all scores [n], and how many exceed the bound. The device is waited for once."""
    if not len(scores):
        return Selected([at for at, _ in found], [value for _, value in found], 0.0), 0
    chosen, least = _strongest(scores, keep)
    parts = chosen.split([len(at) for at, _ in found])
    counts, smallest = ScalarReadback(torch.stack([x.sum() for x in (scores > bound, *parts)])), ScalarReadback(least)
    above, *sizes = counts.numbers()
    kept = [true_places(part, int(size)) for part, size in zip(parts, sizes, strict=True)]
    picked = [(at[index], value[index]) for (at, value), index in zip(found, kept, strict=True)]
    return Selected([at for at, _ in picked], [value for _, value in picked], smallest.number()), above


def _strongest(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Which scores [n] are the `keep` largest, and the smallest of them; of equal ones the first."""
    if len(scores) <= keep:
        return torch.ones_like(scores, dtype=torch.bool), scores.min()
    if scores.device.type != "cpu":
        value, index = torch.topk(scores, keep, sorted=False)
        return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, index, True), value.min()
    # torch would sort the half that is kept.
    least = torch.as_tensor(np.partition(scores.numpy(force=True), len(scores) - keep)[len(scores) - keep])
    chosen = scores > least
    equal = torch.nonzero(scores == least).squeeze(1)
    chosen[equal[: keep - int(chosen.sum())]] = True
    return chosen, least


def true_places(mask: Tensor, count: int) -> Tensor:
    """Places of a flat mask that are true, in order, int64 [count]; their number spares waiting for a GPU."""
    if mask.is_cuda:
        return torch.nonzero_static(mask, size=count).squeeze(1)
    return torch.nonzero(mask).squeeze(1)


def row_topk(pre: Sequence[Tensor], scale: Sequence[Tensor], k: int) -> Selected:
    """Keep the k largest positive scores of every row, over all groups together; arguments as for `batch_topk`."""
    scores = torch.cat([p.float() * s for p, s in zip(pre, scale, strict=True)], dim=1)
    best = torch.topk(scores, min(k, scores.shape[1]), dim=1)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best.indices, best.values > 0)
    parts = mask.split([p.shape[1] for p in pre], dim=1)
    sizes = ScalarReadback(torch.stack([part.sum() for part in parts])).numbers()
    kept = [true_places(part.reshape(-1), int(size)) for part, size in zip(parts, sizes, strict=True)]
    return Selected(kept, [p.reshape(-1)[at].float() for p, at in zip(pre, kept, strict=True)], 0.0)


def ranking_norm(norms: Sequence[Tensor], rank_by: str) -> Tensor:
    """What an activation is multiplied with to compete for the budget [features].

    `norms` are a group's decoder norms in each source it writes. With the sum, as in the literature, a
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


def annealed_k(recipe: SparsityRecipe, step: int, steps: int) -> int:
    """The k of a step: from `k_start` linearly down to `k` over the first share of the steps."""
    start = recipe.k_start or 4 * recipe.k
    over = recipe.anneal_share * steps
    if step >= over:
        return recipe.k
    return round(start + (recipe.k - start) * step / over)


RECENT = 10
"""A running threshold looks back over one step in this many, at most: earlier scores are of other weights."""


@dataclass
class RunningThreshold:
    """Moving average of the smallest score kept: the threshold at inference of a store without held-out rows."""

    decay: float
    value: float = 0.0
    steps: int = 0

    def update(self, smallest: float) -> None:
        """Count one batch in; the first sets it, and the first ones soon weigh nothing."""
        new = max(1 - self.decay, RECENT / (RECENT + self.steps))
        self.value += new * (smallest - self.value)
        self.steps += 1
