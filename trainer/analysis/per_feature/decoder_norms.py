"""Decoder norms: where each feature writes, how strongly, and who owns it by the recipe's thresholds.

A norm ratio is a candidate, not a finding: it says where a feature is written, not what the other source holds.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe

SHARED, OTHER = "shared", "other"


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
        """0.5 (1 + (here - there) / larger of both) [F, S]; NaN unless there are two sources.

        1 is written here only, 0.5 equally, 0 there only (the sign of arXiv 2504.02922).
        """
        if self.decoder.shape[1] != 2:
            return np.full_like(self.decoder, np.nan)
        there = self.decoder[:, ::-1]
        larger = np.maximum(self.decoder, there)
        lean: np.ndarray = np.divide(self.decoder - there, larger, out=np.zeros_like(larger), where=larger > 0)
        return 0.5 * (1 + lean)

    def columns(self, source: list[int]) -> dict[str, np.ndarray]:
        """Columns of the table `feature_source`, by feature and source; `source` gives every source's index there."""
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

    def norms(directions: torch.Tensor) -> np.ndarray:
        norm: np.ndarray = torch.linalg.vector_norm(directions.double(), dim=1).cpu().numpy()
        return norm

    return DecoderNorms(
        np.stack([norms(crosscoder.decoder(source)) for source in crosscoder.sources], axis=1),
        np.stack([norms(crosscoder.encoder(source)) for source in crosscoder.sources], axis=1),
    )


def cosines(crosscoder: Crosscoder) -> np.ndarray:
    """Cosine of each decoder direction with the feature's longest one [F, S].

    NaN in the source that has the longest, in sources of another width, and where the feature does not write.
    """
    directions = [crosscoder.decoder(source).double() for source in crosscoder.sources]
    norms = torch.stack([torch.linalg.vector_norm(direction, dim=1) for direction in directions], dim=1)
    longest = norms.argmax(dim=1)
    result = torch.full_like(norms, torch.nan)
    for one, there in enumerate(directions):
        mine = longest == one
        for two, here in enumerate(directions):
            if one != two and here.shape[1] == there.shape[1]:
                product = (here[mine] * there[mine]).sum(dim=1)
                length = norms[mine, one] * norms[mine, two]
                result[mine, two] = torch.where(length > 0, product / length, torch.nan)
    return result.cpu().numpy()


def holders(owner: list[str], sources: tuple[str, ...]) -> np.ndarray:
    """Which of these sources each owner names, bool [F, S]: all for `shared`, none for `other`."""
    named = {name: [source in name.split("+") for source in sources] for name in set(owner)}
    named |= {SHARED: [True] * len(sources), OTHER: [False] * len(sources)}
    return np.array([named[name] for name in owner], bool).reshape(len(owner), len(sources))


def owners(share: np.ndarray, sources: tuple[str, ...], recipe: AnalysisRecipe) -> list[str]:
    """Owner of each feature from its norm shares [F, S] over the sources that the crosscoder writes.

    One source's name when its share is above `exclusive_above`. Otherwise, of two sources, `shared` when the share
    lies in `shared_within`; of more, the sources that have at least half of an equal share, `shared` when those are
    all. What is left is `other`.
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
    holders = [source for source, part in zip(sources, share, strict=True) if part >= 0.5 / len(sources)]
    if len(holders) == len(sources):
        return SHARED
    return "+".join(holders) if len(holders) > 1 else OTHER


def claims(owner: list[str], sources: tuple[str, ...]) -> np.ndarray:
    """Whether each owner claims that some of these sources does not have the feature, bool [F]."""
    compared = len(sources) > 1
    return np.array([compared and name not in (SHARED, OTHER) for name in owner], bool)


def content_hashes(crosscoder: Crosscoder) -> list[str]:
    """Sixteen hex digits per feature that depend on its decoder directions alone, source by source."""
    whole = torch.cat([crosscoder.decoder(source).cpu() for source in crosscoder.sources], dim=1)
    rows = np.ascontiguousarray(whole.float().numpy())
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]
