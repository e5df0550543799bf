"""Latent scaling: whether a feature that is written to one source is truly absent from another of the same space.

The method of arXiv 2504.02922, with its name. A feature may be missing from a source's decoder although the source
has the concept: the penalty drove its norm to zero and its trace is in the *error* (complete shrinkage), or other
features rebuild it and its trace is in the *reconstruction* (latent decoupling). Beta is how much of the feature's
direction, times its activation, is found in either; nu is this source's beta over the reference's. The reference is
the source where the direction is longest, which is the owner's own where there is one.

The sums run over active pairs of row and feature alone, in one pass for all features, sources and both targets; the
papers' code makes a tensor of features by rows by width. Axes: F features, S sources, N firings.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.spaces import Spaces
from trainer.crosscoder.crosscoder import Codes, Crosscoder
from trainer.kernels.sparse import SparsePattern, products
from trainer.store.store import Rows


@dataclass(frozen=True)
class Scaling:
    """What latent scaling found; NaN where a source shares no space with the reference, or nothing fired."""

    beta_reconstruction: np.ndarray
    """[F, S]"""
    beta_error: np.ndarray
    """[F, S]"""
    reference: np.ndarray
    """Source whose direction is looked for, int64 [F]."""

    @property
    def nu_reconstruction(self) -> np.ndarray:
        """Beta of the reconstruction over that of the reference [F, S]; NaN where that is not above zero."""
        return _over(self.beta_reconstruction, self.reference)

    @property
    def nu_error(self) -> np.ndarray:
        """Beta of the error over that of the reference [F, S]; NaN where that is not above zero."""
        return _over(self.beta_error, self.reference)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table `feature_source`, by feature and source."""
        return {
            "beta_reconstruction": self.beta_reconstruction.ravel(),
            "beta_error": self.beta_error.ravel(),
            "nu_reconstruction": self.nu_reconstruction.ravel(),
            "nu_error": self.nu_error.ravel(),
        }


class LatentScaling:
    """Sums for latent scaling over all rows, by source; nothing to do where no sources share a space."""

    def __init__(self, crosscoder: Crosscoder, spaces: Spaces) -> None:
        """Nothing summed yet."""
        self._crosscoder = crosscoder
        norms = torch.stack([torch.linalg.vector_norm(crosscoder.decoder(s), dim=1) for s in crosscoder.sources])
        self._reference = norms.argmax(dim=0)
        """[F]"""
        self._space_of = {name: space for space in spaces for name in space}
        self._direction = {space: self._directions(space) for space in spaces}
        zeros = torch.zeros(crosscoder.features, dtype=torch.float64, device=crosscoder.device)
        self._squares = zeros.clone()
        """Sum of f² [F]."""
        self._in_reconstruction = {source: zeros.clone() for source in self._space_of}
        """Per source, sum of f times the reconstruction along the reference's direction [F]."""
        self._in_error = {source: zeros.clone() for source in self._space_of}
        """Per source, sum of f times the error along the reference's direction [F]."""

    @torch.no_grad()
    def add(self, rows: Rows, codes: Codes) -> None:
        """Take in some rows: normalised activations, and the crosscoder's own firings on them."""
        if not self._direction:
            return
        features = self._crosscoder.features
        value = codes.value.double()
        self._squares += torch.bincount(codes.feature, weights=value.square(), minlength=features)
        pattern = SparsePattern(codes.row.contiguous(), codes.feature.contiguous(), rows=codes.rows, features=features)
        rebuilt = self._crosscoder.decode(codes, raw=False)
        for source, space in self._space_of.items():
            targets = (self._in_reconstruction, rebuilt[source]), (self._in_error, rows[source] - rebuilt[source])
            for total, target in targets:
                along = products(pattern, target, self._direction[space])
                total[source] += torch.bincount(codes.feature, weights=value * along, minlength=features)

    def finish(self) -> Scaling:
        """Betas of all features; the least-squares factors of methods 4.1 in closed form."""
        shape = self._crosscoder.features, len(self._crosscoder.sources)
        reconstruction, error = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        for number, source in enumerate(self._crosscoder.sources):
            if source not in self._space_of:
                continue
            direction = self._direction[self._space_of[source]].double()
            length = direction.square().sum(dim=1)
            own = (self._crosscoder.decoder(source).double() * direction).sum(dim=1)
            energy = self._squares * length
            known = energy > 0
            reconstruction[:, number] = torch.where(known, self._in_reconstruction[source] / energy, torch.nan)
            # What the feature itself rebuilds is part of what is left when it alone is taken away.
            error[:, number] = torch.where(known, self._in_error[source] / energy + own / length, torch.nan)
        return Scaling(reconstruction.numpy(), error.numpy(), self._reference.cpu().numpy())

    def _directions(self, space: tuple[str, ...]) -> Tensor:
        """Direction of each feature in its reference [F, W]; zero where that is not of this space."""
        whole = torch.zeros_like(self._crosscoder.decoder(space[0]))
        for source in space:
            mine = self._reference == self._crosscoder.sources.index(source)
            whole[mine] = self._crosscoder.decoder(source)[mine]
        return whole


def _over(beta: np.ndarray, reference: np.ndarray) -> np.ndarray:
    own = np.take_along_axis(beta, reference[:, None], axis=1)
    ratio: np.ndarray = np.divide(beta, own, out=np.full_like(beta, np.nan), where=own > 0)
    return ratio
