"""Computes decoder norms per feature and source, and owners by the recipe's thresholds.

A norm ratio makes a claim and is no evidence: it says where a feature is written, not what other sources represent.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe

SHARED, OTHER = "shared", "other"
BLOCK = 4096
"""Features whose directions are copied at a time."""


@dataclass(frozen=True)
class DecoderNorms:
    """Norms in normalised space. Axes F features, S sources."""

    decoder: np.ndarray
    """Norm of the decoder direction [F, S]; 0 where the feature does not write."""
    encoder: np.ndarray
    """Norm of the encoder direction [F, S]; 0 where the feature does not read."""

    @property
    def share(self) -> np.ndarray:
        """Each source's decoder norm over the sum of all [F, S]; 0 for a feature that writes nothing."""
        total = self.decoder.sum(axis=1, keepdims=True)
        share: np.ndarray = np.divide(self.decoder, total, out=np.zeros_like(self.decoder), where=total > 0)
        return share

    @property
    def relative(self) -> np.ndarray:
        """0.5 (1 + (norm - other norm) / larger of both) [F, S]; NaN unless there are two sources.

        1: written to this source only; 0.5: equally to both; 0: to the other only (the sign of arXiv 2504.02922).
        """
        if self.decoder.shape[1] != 2:
            return np.full_like(self.decoder, np.nan)
        other = self.decoder[:, ::-1]
        larger = np.maximum(self.decoder, other)
        difference: np.ndarray = np.divide(self.decoder - other, larger, out=np.zeros_like(larger), where=larger > 0)
        return 0.5 * (1 + difference)

    def columns(self, source: list[int]) -> dict[str, np.ndarray]:
        """Columns of the table `feature_source`, by feature and source; `source` holds the sources' indices there."""
        features, sources = self.decoder.shape
        return {
            "feature": np.repeat(np.arange(features), sources),
            "source": np.tile(source, features),
            "decoder_norm": self.decoder.ravel(),
            "encoder_norm": self.encoder.ravel(),
            "norm_share": self.share.ravel(),
            "relative_norm": self.relative.ravel(),
        }


def decoder_norms(crosscoder: Crosscoder) -> DecoderNorms:
    """Norms of all directions of a crosscoder."""

    def norms(directions: Callable[[str, np.ndarray], torch.Tensor]) -> np.ndarray:
        parts = [
            torch.stack(
                [torch.linalg.vector_norm(directions(source, some).double(), dim=1) for source in crosscoder.sources],
                dim=1,
            )
            for some in _blocks(crosscoder)
        ]
        norm: np.ndarray = torch.cat(parts).cpu().numpy()
        return norm

    return DecoderNorms(norms(crosscoder.decoder), norms(crosscoder.encoder))


def _blocks(crosscoder: Crosscoder) -> Iterator[np.ndarray]:
    """All features in order, some at a time, to bound the memory."""
    return (np.arange(first, min(first + BLOCK, crosscoder.features)) for first in range(0, crosscoder.features, BLOCK))


def cosines(crosscoder: Crosscoder) -> np.ndarray:
    """Cosine of each decoder direction with the feature's longest one [F, S].

    NaN in the source with the longest direction, in sources of another width, and where the feature does not write.
    """
    parts = [
        _cosines([crosscoder.decoder(name, some).double() for name in crosscoder.sources])
        for some in _blocks(crosscoder)
    ]
    return torch.cat(parts).cpu().numpy()


def _cosines(directions: list[torch.Tensor]) -> torch.Tensor:
    """The same of the directions of some features, one [n, W] for each source."""
    norms = torch.stack([torch.linalg.vector_norm(direction, dim=1) for direction in directions], dim=1)
    longest = norms.argmax(dim=1)
    result = torch.full_like(norms, torch.nan)
    for reference, reference_direction in enumerate(directions):
        features = longest == reference
        for source, direction in enumerate(directions):
            if reference != source and direction.shape[1] == reference_direction.shape[1]:
                product = (direction[features] * reference_direction[features]).sum(dim=1)
                length = norms[features, reference] * norms[features, source]
                result[features, source] = torch.where(length > 0, product / length, torch.nan)
    return result


def holders(owner: list[str], sources: tuple[str, ...]) -> np.ndarray:
    """Which sources each owner names, bool [F, S]: all for `shared`, none for `other`."""
    named = {name: [source in name.split("+") for source in sources] for name in set(owner)}
    named |= {SHARED: [True] * len(sources), OTHER: [False] * len(sources)}
    return np.array([named[name] for name in owner], bool).reshape(len(owner), len(sources))


def owners(share: np.ndarray, sources: tuple[str, ...], recipe: AnalysisRecipe) -> list[str]:
    """Owner of each feature, from its norm shares [F, S] over the sources that the crosscoder writes.

    The name of a source whose share is above `exclusive_above`. Otherwise, with two sources, `shared` if the share lies
    in `shared_within`; with more, the sources that have at least half of an equal share, joined by +, or `shared` if
    those are all sources. Else `other`.
    """
    return [_owner(row, sources, recipe) for row in share]


def _owner(share: np.ndarray, sources: tuple[str, ...], recipe: AnalysisRecipe) -> str:
    if share.max() > recipe.exclusive_above:
        return sources[int(share.argmax())]
    if not share.any():
        return OTHER
    if len(sources) == 2:
        low, high = recipe.shared_within
        return SHARED if low <= share[0] <= high else OTHER
    names = [name for name, fraction in zip(sources, share, strict=True) if fraction >= 0.5 / len(sources)]
    if len(names) == len(sources):
        return SHARED
    return "+".join(names) if len(names) > 1 else OTHER


def claims(owner: list[str], sources: tuple[str, ...]) -> np.ndarray:
    """Whether each owner claims that one of these sources lacks the feature, bool [F]."""
    several = len(sources) > 1
    return np.array([several and name not in (SHARED, OTHER) for name in owner], bool)


def content_hashes(crosscoder: Crosscoder) -> list[str]:
    """Hash of each feature's decoder directions, sixteen hex digits; independent of the feature's index.

    A feature that stands for several trainings' has the hash with which it was first found.
    """
    hashes = []
    for some in _blocks(crosscoder):
        directions = torch.cat([crosscoder.decoder(source, some).cpu() for source in crosscoder.sources], dim=1)
        hashes += [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in directions.numpy()]
    for group in crosscoder.groups:
        if group.name in crosscoder.identity:
            hashes[group.first : group.stop] = crosscoder.identity[group.name]
    return hashes
