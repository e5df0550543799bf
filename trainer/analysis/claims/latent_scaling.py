"""Measures by latent scaling whether a feature is truly absent from another source of its space.

The method is that of arXiv 2504.02922. A feature may be missing from a source's decoder although the source has the
concept: the sparsity penalty drove its norm to zero and the concept is in the *error* (complete shrinkage), or other
features reconstruct it and it is in the *reconstruction* (latent decoupling). Beta is the least-squares factor of the
feature's direction times its activation in either; nu is a source's beta over that of the reference. The reference is
the source with the longest direction, which for a claim is a source of its owner.

The sums run over active pairs of row and feature only, in one pass for all features, sources and both targets; the
paper's code builds a tensor of features by rows by width. Axes: F features, S sources, N firings.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.spaces import Spaces
from trainer.crosscoder.crosscoder import Codes, Crosscoder
from trainer.kernels.sparse import SparsePattern, inner_products
from trainer.store.store import Rows


@dataclass(frozen=True)
class ScalingFactors:
    """Betas and nus; NaN where a source shares no space with the reference, or the feature never fired."""

    beta_reconstruction: np.ndarray
    """Beta of the reconstruction [F, S]."""
    beta_error: np.ndarray
    """Beta of the error, to which the feature's own contribution is added back [F, S]."""
    reference: np.ndarray
    """Index of the source with the longest direction, int64 [F]."""

    @property
    def nu_reconstruction(self) -> np.ndarray:
        """Beta of the reconstruction over the reference's [F, S]; NaN where the latter is not positive."""
        return _relative_to_reference(self.beta_reconstruction, self.reference)

    @property
    def nu_error(self) -> np.ndarray:
        """Beta of the error over the reference's [F, S]; NaN where the latter is not positive."""
        return _relative_to_reference(self.beta_error, self.reference)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the table `feature_source`, by feature and source."""
        return {
            "beta_reconstruction": self.beta_reconstruction.ravel(),
            "beta_error": self.beta_error.ravel(),
            "nu_reconstruction": self.nu_reconstruction.ravel(),
            "nu_error": self.nu_error.ravel(),
        }


class LatentScaling:
    """Accumulates the sums for latent scaling over rows; does nothing if no sources share a space."""

    def __init__(self, crosscoder: Crosscoder, spaces: Spaces) -> None:
        """Start with zero sums."""
        self._crosscoder = crosscoder
        norms = torch.stack([torch.linalg.vector_norm(crosscoder.decoder(s), dim=1) for s in crosscoder.sources])
        self._reference = norms.argmax(dim=0)
        """Index of the source with the longest direction [F]."""
        self._space_of = {name: space for space in spaces for name in space}
        self._direction = {space: self._directions(space) for space in spaces}
        zeros = torch.zeros(crosscoder.features, dtype=torch.float64, device=crosscoder.device)
        self._squares = zeros.clone()
        """Sum of f² [F]."""
        self._in_reconstruction = {source: zeros.clone() for source in self._space_of}
        """Per source, sum of f times the reconstruction's inner product with the reference direction [F]."""
        self._in_error = {source: zeros.clone() for source in self._space_of}
        """Per source, sum of f times the error's inner product with the reference direction [F]."""

    @torch.no_grad()
    def add(self, rows: Rows, codes: Codes) -> None:
        """Add rows: normalised activations {source: [n, W]} and the crosscoder's firings on them."""
        if not self._direction:
            return
        features = self._crosscoder.features
        value = codes.value.double()
        self._squares += torch.bincount(codes.feature, weights=value.square(), minlength=features)
        pattern = SparsePattern(codes.row.contiguous(), codes.feature.contiguous(), rows=codes.rows, features=features)
        reconstruction = self._crosscoder.decode(codes, raw=False)
        for source, space in self._space_of.items():
            targets = (
                (self._in_reconstruction, reconstruction[source]),
                (self._in_error, rows[source] - reconstruction[source]),
            )
            for total, target in targets:
                along = inner_products(pattern, target, self._direction[space])
                total[source] += torch.bincount(codes.feature, weights=value * along, minlength=features)

    def finish(self) -> ScalingFactors:
        """Betas of all features: the least-squares factors of methods 4.1, in closed form."""
        shape = self._crosscoder.features, len(self._crosscoder.sources)
        reconstruction, error = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        for number, source in enumerate(self._crosscoder.sources):
            if source not in self._space_of:
                continue
            direction = self._direction[self._space_of[source]].double()
            square_norm = direction.square().sum(dim=1)
            own = (self._crosscoder.decoder(source).double() * direction).sum(dim=1)
            energy = self._squares * square_norm
            known = energy > 0
            reconstruction[:, number] = torch.where(known, self._in_reconstruction[source] / energy, torch.nan).cpu()
            # The error without the feature contains the feature's own contribution.
            factor = torch.where(known, self._in_error[source] / energy + own / square_norm, torch.nan)
            error[:, number] = factor.cpu()
        return ScalingFactors(reconstruction.numpy(), error.numpy(), self._reference.cpu().numpy())

    def _directions(self, space: tuple[str, ...]) -> Tensor:
        """Direction of each feature in its reference [F, W]; zero if the reference is outside this space."""
        directions = torch.zeros_like(self._crosscoder.decoder(space[0]))
        for source in space:
            features = self._reference == self._crosscoder.sources.index(source)
            directions[features] = self._crosscoder.decoder(source)[features]
        return directions


def _relative_to_reference(beta: np.ndarray, reference: np.ndarray) -> np.ndarray:
    own = np.take_along_axis(beta, reference[:, None], axis=1)
    ratio: np.ndarray = np.divide(beta, own, out=np.full_like(beta, np.nan), where=own > 0)
    return ratio
