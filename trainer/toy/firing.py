"""Firing: which concepts are active on a row, and how strongly (the generative model of arXiv 2602.11729).

Logits of all concepts are jointly normal: a few common factors make concepts fire together, and each has noise of its
own. Probabilities are their sigmoids times a decay over a random order of the concepts, so that some are common and
some rare, and add up to the same number of active concepts on every row. Axes: R rows, C concepts, N active pairs.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FACTORS = 10
FACTOR_DEVIATION = 0.5
"""Standard deviation of a logit's share that comes from the common factors."""
OWN_DEVIATION = 1.0
"""Standard deviation of a logit's noise of its own."""
DECAY_RANGE = 2.048
"""Logarithm of how much more often the most frequent concept fires than the rarest."""
LEAST_PROBABILITY = 1e-4
ACTIVE_SHARE = 0.01
"""Active concepts per row, as a share of all."""


class Active(NamedTuple):
    """Active concepts of some rows."""

    row: Tensor
    """Row of each int64 [N], not decreasing."""
    concept: Tensor
    """Concept of each int64 [N]."""
    magnitude: Tensor
    """Uniform between 0 and 1, fp32 [N]; every source that holds the concept sees the same."""


@dataclass(frozen=True)
class Firing:
    """The distribution of active concepts over rows."""

    loadings: Tensor
    """What each common factor adds to each logit [factors, C]."""
    decay: Tensor
    """What each concept's probability is multiplied with [C]; 1 for the most frequent."""

    @classmethod
    def random(cls, concepts: int, generator: torch.Generator) -> "Firing":
        """Random loadings, and a random order from frequent to rare."""
        loadings = torch.randn(FACTORS, concepts, generator=generator) * FACTOR_DEVIATION / math.sqrt(FACTORS)
        rank = torch.randperm(concepts, generator=generator)
        return cls(loadings, torch.exp(-DECAY_RANGE * rank / concepts))

    @property
    def concepts(self) -> int:
        """Number of concepts."""
        return len(self.decay)

    def probabilities(self, rows: int, generator: torch.Generator) -> Tensor:
        """Probability that each concept is active on each of so many new rows [R, C].

        The logits' own noise is integrated out instead of drawn: given the factors, concepts fire independently of
        each other either way, and half a thousand normal numbers per row are saved.
        """
        factors = torch.randn(rows, len(self.loadings), generator=generator)
        # The mean of sigmoid(a + noise) is sigmoid of a shrunk (MacKay 1992), to 0.004 for these logits.
        shrink = 1 / math.sqrt(1 + math.pi / 8 * OWN_DEVIATION**2)
        chance = torch.sigmoid_(factors @ (self.loadings * shrink))
        total = chance @ self.decay
        chance *= self.decay
        chance *= (ACTIVE_SHARE * self.concepts / total)[:, None]
        return chance.clamp_(LEAST_PROBABILITY, 1.0)

    def draw(self, rows: int, generator: torch.Generator) -> Active:
        """Active concepts of so many new rows; every row has at least one."""
        chance = self.probabilities(rows, generator)
        flat = bernoulli_places(chance, generator)
        silent = torch.ones(rows, dtype=torch.bool)
        silent[flat // self.concepts] = False
        lonely = torch.nonzero(silent).squeeze(1)
        if len(lonely):
            chosen = torch.multinomial(chance[lonely], 1, generator=generator).squeeze(1)
            flat = torch.cat([flat, lonely * self.concepts + chosen]).sort().values
        return Active(flat // self.concepts, flat % self.concepts, torch.rand(len(flat), generator=generator))


def bernoulli_places(chance: Tensor, generator: torch.Generator) -> Tensor:
    """Flat indices, in order, of a table of coins [R, C] that came up, each with its own chance.

    Points are scattered at the rate of every column's largest chance and thinned out, so that a handful of random
    numbers per row is drawn instead of one per coin.
    """
    rows, columns = chance.shape
    largest = chance.amax(dim=0).clamp_max(1 - 1e-6)
    # A cell holds at least one of Poisson many points with chance 1 - exp(-rate).
    rate = -torch.log1p(-largest.double())
    points = int(torch.poisson(rate.sum() * rows, generator=generator))
    column = torch.searchsorted(
        rate.cumsum(0), torch.rand(points, dtype=torch.float64, generator=generator) * rate.sum()
    ).clamp_max_(columns - 1)
    flat: Tensor = torch.unique(torch.randint(rows, (points,), generator=generator) * columns + column)
    kept = torch.rand(len(flat), generator=generator) * largest[flat % columns] < chance.reshape(-1)[flat]
    return flat.masked_select(kept)
