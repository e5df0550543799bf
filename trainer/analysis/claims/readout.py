"""Fits linear (ridge) readouts of features from one source's activations, scored on held-out documents.

A feature that another source's activations predict as well as its owner's is represented there too; one that they do
not predict at all is absent there, as far as linear readouts show. Widths and tokenizers need not agree. All features
of a source share one factorisation, and second moments suffice for the scores, so that memory does not grow with rows.
Axes: F features, W width of the source, L ridge strengths.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.rows.moments import Moments
from trainer.crosscoder.row_moments import FOLDS

MIN_FIRINGS = 20
"""Firings that a feature needs in each fold; with fewer its score would be mostly noise."""
RIDGE_STRENGTHS = tuple(10.0**power for power in range(-5, 2))
"""Candidate ridge strengths, in units of the mean variance of the source's coordinates."""
BLOCK = 1024
"""Features solved for at a time."""


class _Centred(NamedTuple):
    """Centred moments of some rows, fp64."""

    rows: int
    mean_x: Tensor
    """Mean of x [W]."""
    products: Tensor
    """Sum of x x', centred [W, W]."""
    mean_f: Tensor
    """Mean of f [F]."""
    squares: Tensor
    """Sum of f², centred [F]."""

    def cross(self, raw: Tensor, some: slice) -> Tensor:
        """Centred sum of f x [features, W] of some features, from the raw sum."""
        return raw.double() - self.rows * self.mean_f[some, None] * self.mean_x


class _Ridge(NamedTuple):
    """Eigendecomposition of the centred products: axes diag(eigenvalues) axes'."""

    eigenvalues: Tensor
    """At least 0 [W]."""
    axes: Tensor
    """Eigenvectors, as columns [W, W]."""
    strengths: Tensor
    """Ridge strengths in units of the eigenvalues [L]."""

    @classmethod
    def factorise(cls, centred: _Centred) -> "_Ridge":
        eigenvalues, axes = torch.linalg.eigh(centred.products)
        eigenvalues = eigenvalues.clamp_min(0)
        unit = eigenvalues.mean().clamp_min(torch.finfo(torch.float64).tiny)
        return cls(
            eigenvalues, axes, unit * torch.tensor(RIDGE_STRENGTHS, dtype=torch.float64, device=eigenvalues.device)
        )

    def solve(self, cross: Tensor, squares: Tensor, rows: int) -> Tensor:
        """Weights in the eigenbasis [features, W], each feature with its own ridge strength.

        The strength minimises the generalised cross-validation score (Golub, Heath and Wahba 1979) on the fitted rows:
        the residual sum of squares over the squared residual degrees of freedom.
        """
        rotated = cross @ self.axes
        regularised = self.eigenvalues + self.strengths[:, None]
        explained = rotated.square() @ ((self.eigenvalues + 2 * self.strengths[:, None]) / regularised.square()).T
        freedom = rows - 1 - (self.eigenvalues / regularised).sum(dim=1)
        # With fewer rows than directions, small strengths leave no degrees of freedom.
        score = torch.where(freedom > 0, (squares[:, None] - explained) / freedom.square(), torch.inf)
        return rotated / regularised[score.argmin(dim=1)]


@dataclass(frozen=True)
class Readout:
    """Readouts of every feature from one source."""

    score: np.ndarray
    """Explained variance on held-out documents, fp64 [F]: 1 for a perfect readout, 0 for one no better than the mean,
    negative for a worse one. NaN for a feature with fewer than MIN_FIRINGS firings in a fold."""
    moments: Moments = field(repr=False)
    source: str


def readout(moments: Moments, source: str) -> Readout:
    """Fit every feature from a source's activations on each fold and score it on the other.

    Ridge regression with intercept in fp64. The score pools both folds: one minus the sum of squared errors over the
    sum of squared deviations from each fold's own mean.
    """
    centred = [_centred(moments, source, fold) for fold in range(FOLDS)]
    enough = (moments.firings >= MIN_FIRINGS).all(dim=0)
    errors = torch.zeros(moments.features, dtype=torch.float64, device=enough.device)
    if all(part.rows > 1 for part in centred) and enough.any():
        for fitted in range(FOLDS):
            for some, error in _errors(moments.cross[source], centred, fitted):
                errors[some] += error
    total = centred[0].squares + centred[1].squares
    score = torch.where(enough & (total > 0), 1 - errors / total, torch.nan)
    return Readout(score.cpu().numpy(), moments, source)


def _errors(cross: Tensor, centred: list[_Centred], fitted: int) -> Iterator[tuple[slice, Tensor]]:
    """Sums of squared errors on the other fold, for slices of features fitted on one fold."""
    fit, held_out = centred[fitted], centred[1 - fitted]
    ridge = _Ridge.factorise(fit)
    # All in the eigenbasis of the fit, so that weights need not be rotated back.
    products = ridge.axes.T @ held_out.products @ ridge.axes
    shift = (held_out.mean_x - fit.mean_x) @ ridge.axes
    for first in range(0, cross.shape[1], BLOCK):
        some = slice(first, first + BLOCK)
        weight = ridge.solve(fit.cross(cross[fitted, some], some), fit.squares[some], fit.rows)
        rotated = held_out.cross(cross[1 - fitted, some], some) @ ridge.axes
        offset = held_out.mean_f[some] - fit.mean_f[some] - weight @ shift
        error = (weight * (weight @ products - 2 * rotated)).sum(dim=1) + held_out.rows * offset.square()
        yield some, held_out.squares[some] + error


def _centred(moments: Moments, source: str, fold: int | None) -> _Centred:
    """Centred moments of one fold, or of all rows if `fold` is None."""
    part, raw = slice(None) if fold is None else slice(fold, fold + 1), moments.row_moments
    rows = int(raw.rows[part].sum())
    total, products = raw.total[source][part].sum(dim=0), raw.products[source][part].sum(dim=0)
    sums, squares = moments.sums[part].sum(dim=0), moments.squares[part].sum(dim=0)
    mean_x, mean_f = total / max(rows, 1), sums / max(rows, 1)
    centred = products - rows * torch.outer(mean_x, mean_x)
    return _Centred(rows, mean_x, centred, mean_f, (squares - rows * mean_f.square()).clamp_min(0))
