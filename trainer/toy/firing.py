"""Samples active concepts and their magnitudes per row (generative model of arXiv 2602.11729).

Logits of all concepts are jointly normal: a few common factors correlate the concepts, and each has independent noise.
Probabilities are the sigmoids of the logits times a decay over a random order of the concepts, which makes some
frequent and some rare, scaled to the same expected number of active concepts on every row. Axes: R rows, C concepts,
N active pairs.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FACTORS = 10
FACTOR_DEVIATION = 0.5
"""Standard deviation of a logit's part from the common factors."""
NOISE_DEVIATION = 1.0
"""Standard deviation of a logit's independent noise."""
DECAY_RANGE = 2.048
"""Logarithm of the ratio of the largest to the smallest decay."""
MIN_PROBABILITY = 1e-4
ACTIVE_SHARE = 0.01
"""Expected active concepts per row, as a share of all."""


class Active(NamedTuple):
    """Pairs of a row and a concept that is active on it."""

    row: Tensor
    """int64 [N], not decreasing."""
    concept: Tensor
    """int64 [N]."""
    magnitude: Tensor
    """Uniform in [0, 1), fp32 [N]; the same in every source that holds the concept."""


@dataclass(frozen=True)
class FiringModel:
    """The distribution of active concepts over rows."""

    loadings: Tensor
    """Weight of each common factor in each logit [factors, C]."""
    decay: Tensor
    """Factor on each concept's probability [C]; 1 for the most frequent."""

    @classmethod
    def random(cls, concepts: int, generator: torch.Generator) -> "FiringModel":
        """Random loadings, and a decay over a random order of the concepts."""
        loadings = torch.randn(FACTORS, concepts, generator=generator) * FACTOR_DEVIATION / math.sqrt(FACTORS)
        rank = torch.randperm(concepts, generator=generator)
        return cls(loadings, torch.exp(-DECAY_RANGE * rank / concepts))

    @property
    def concepts(self) -> int:
        """Number of concepts."""
        return len(self.decay)

    def probabilities(self, rows: int, generator: torch.Generator) -> Tensor:
        """Samples factors of `rows` new rows and returns the probabilities of all concepts [R, C].

        The independent noise of the logits is integrated out instead of sampled: given the factors, concepts fire
        independently either way, and it saves C normal samples per row.
        """
        factors = torch.randn(rows, len(self.loadings), generator=generator)
        # E[sigmoid(a + noise)] ≈ sigmoid(shrink · a) (MacKay 1992), with an error of at most 0.004 for these logits.
        shrink = 1 / math.sqrt(1 + math.pi / 8 * NOISE_DEVIATION**2)
        probability = torch.sigmoid_(factors @ (self.loadings * shrink))
        total = probability @ self.decay
        probability *= self.decay
        probability *= (ACTIVE_SHARE * self.concepts / total)[:, None]
        return probability.clamp_(MIN_PROBABILITY, 1.0)

    def draw(self, rows: int, generator: torch.Generator) -> Active:
        """Samples the active concepts of `rows` new rows; every row has at least one."""
        probability = self.probabilities(rows, generator)
        flat = sample_bernoulli(probability, generator)
        is_empty = torch.ones(rows, dtype=torch.bool)
        is_empty[flat // self.concepts] = False
        empty = torch.nonzero(is_empty).squeeze(1)
        if len(empty):
            chosen = torch.multinomial(probability[empty], 1, generator=generator).squeeze(1)
            flat = torch.cat([flat, empty * self.concepts + chosen]).sort().values
        return Active(flat // self.concepts, flat % self.concepts, torch.rand(len(flat), generator=generator))


def sample_bernoulli(probability: Tensor, generator: torch.Generator) -> Tensor:
    """Increasing flat indices of the successes of independent Bernoulli trials with probabilities [R, C].

    Points of a Poisson process at the rate of every column's largest probability are thinned, which takes a few random
    numbers per row instead of one per trial.
    """
    rows, columns = probability.shape
    largest = probability.amax(dim=0).clamp_max(1 - 1e-6)
    # A cell receives at least one point with probability 1 - exp(-rate).
    rate = -torch.log1p(-largest.double())
    points = int(torch.poisson(rate.sum() * rows, generator=generator))
    column = torch.searchsorted(
        rate.cumsum(0), torch.rand(points, dtype=torch.float64, generator=generator) * rate.sum()
    ).clamp_max_(columns - 1)
    flat: Tensor = torch.unique(torch.randint(rows, (points,), generator=generator) * columns + column)
    kept = torch.rand(len(flat), generator=generator) * largest[flat % columns] < probability.reshape(-1)[flat]
    return flat.masked_select(kept)
