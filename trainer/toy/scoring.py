"""Scores a dictionary against a toy world: recall of concepts and correctness of owners.

A feature *matches* a concept in a source when the cosine of their directions there is above 0.83. A concept is
*recovered* when one feature matches it in every source that holds it. A feature's *call* is the set of sources to which
a rule assigns it: the norm rule those where its decoder norm is at least a quarter of its largest (for two sources a
share of the norms above 0.8, as in arXiv 2602.11729), the group rule those that its group writes. Axes: F live
features, C concepts, S sources, W width of a source.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MATCH = 0.83
NORM_RATIO = 0.25
"""A source belongs to a feature's call when its norm is at least this share of the largest."""
THIRDS = ("rare", "middle", "frequent")


@dataclass(frozen=True)
class GroundTruth:
    """The concepts of a world."""

    vectors: Mapping[str, Tensor]
    """By source, the direction of every concept [C, W]; zero where the source does not hold it."""
    frequency: Tensor
    """Share of the rows on which each concept fires [C]."""

    @cached_property
    def holds(self) -> Tensor:
        """Which source holds which concept, bool [C, S]."""
        return torch.stack([vectors.any(dim=1) for vectors in self.vectors.values()], dim=1)

    @property
    def exclusive(self) -> Tensor:
        """Concepts that one source holds, bool [C]."""
        return self.holds.sum(dim=1) == 1

    @property
    def shared(self) -> Tensor:
        """Concepts that several sources hold, bool [C]."""
        return self.holds.sum(dim=1) > 1

    def third(self, name: str) -> Tensor:
        """The rare, middle or frequent third of all concepts, bool [C]."""
        rank = self.frequency.argsort().argsort()
        return rank * len(THIRDS) // len(rank) == THIRDS.index(name)


@dataclass(frozen=True)
class CallCounts:
    """Counts of *narrow* calls, those for fewer than all sources, by whether they are right."""

    right: int
    """Match a concept that exactly the called sources hold."""
    too_narrow: int
    """Match a concept that further sources hold as well: false claims of exclusivity."""
    nothing: int
    """Match no concept that all called sources hold."""
    shared: int
    """Features with any call that match a concept held by several sources."""

    @property
    def precision(self) -> float | None:
        """Share of the narrow calls that are right; None when there are none."""
        total = self.right + self.too_narrow + self.nothing
        return self.right / total if total else None

    @property
    def false_exclusive_rate(self) -> float:
        """False claims of exclusivity per feature that matches a concept held by several sources."""
        return self.too_narrow / self.shared if self.shared else 0.0


class DictionaryMatches:
    """Matches between a dictionary's live features and the concepts of a world."""

    def __init__(self, truth: GroundTruth, decoders: Mapping[str, Tensor], alive: Tensor | None = None) -> None:
        """`decoders` are [features, W] per source, zero where a feature does not write; `alive` is bool [features]."""
        assert decoders.keys() == truth.vectors.keys(), "decoders and ground truth are about the same sources"
        self.truth, self.alive = truth, alive
        kept = slice(None) if alive is None else alive
        self._decoders = {source: decoders[source][kept].float() for source in truth.vectors}
        self._matches = torch.stack(
            [cosines(self._decoders[source], vectors) > MATCH for source, vectors in truth.vectors.items()], dim=2
        )

    @property
    def recovered(self) -> Tensor:
        """Concepts that one feature matches in every source that holds them, bool [C]."""
        return self._recovers().any(dim=0)

    @property
    def recovered_split(self) -> Tensor:
        """Concepts matched in each source that holds them, possibly by different features, bool [C]."""
        return (self._matches.any(dim=0) | ~self.truth.holds).all(dim=1)

    def recovered_as_called(self, calls: Tensor) -> Tensor:
        """Concepts, bool [C], recovered by a feature whose call, bool [F, S], is exactly the sources that hold them."""
        return (self._recovers() & self._calls_exactly(calls)).any(dim=0)

    def calls_by_norm(self) -> Tensor:
        """Calls by the norm rule, bool [F, S]."""
        norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in self._decoders.values()], dim=1)
        return norms >= norms.amax(dim=1, keepdim=True).clamp_min(1e-12) * NORM_RATIO

    def calls_by_group(self) -> Tensor:
        """Calls by the group rule: the sources where a feature has a nonzero decoder, bool [F, S]."""
        return torch.stack([x.any(dim=1) for x in self._decoders.values()], dim=1)

    def count_calls(self, calls: Tensor, among: Tensor | None = None) -> CallCounts:
        """Counts calls, bool [F, S], by correctness, over all concepts or those `among` selects, bool [C]."""
        narrow, exact = ~calls.all(dim=1), self._calls_exactly(calls)
        # Matches in sources outside the call do not count.
        matched = (self._matches & calls[:, None]).any(dim=2)
        if among is not None:
            matched &= among
        within = (self.truth.holds[None] | ~calls[:, None]).all(dim=2)
        right = (matched & exact).any(dim=1)
        too_narrow = (matched & within & ~exact).any(dim=1) & ~right
        return CallCounts(
            right=int((narrow & right).sum()),
            too_narrow=int((narrow & too_narrow).sum()),
            nothing=int((narrow & ~right & ~too_narrow).sum()),
            shared=int((matched & self.truth.shared).any(dim=1).sum()),
        )

    def _recovers(self) -> Tensor:
        """Whether each feature matches each concept in every source that holds it, bool [F, C]."""
        return (self._matches | ~self.truth.holds).all(dim=2)

    def _calls_exactly(self, calls: Tensor) -> Tensor:
        """Whether each feature's call is exactly the sources that hold each concept, bool [F, C]."""
        return (calls[:, None] == self.truth.holds[None]).all(dim=2)


def cosines(features: Tensor, concepts: Tensor) -> Tensor:
    """Cosine of every feature [F, W] with every concept [C, W], [F, C]; zero where either vector is zero."""
    return torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(concepts.float(), dim=1).T


def recall(recovered: Tensor, among: Tensor) -> float | None:
    """Recovered share of the concepts that `among` selects, both bool [C]; None when it selects none."""
    return float(recovered[among].float().mean()) if bool(among.any()) else None
