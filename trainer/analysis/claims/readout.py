"""Readout: how well one source's activations predict a feature linearly, on documents the fit has not seen.

A feature that another source's activations predict as well as its owner's says nothing that the other source does
not hold; one that they cannot predict at all is absent there, as far as a line can see. Neither widths nor tokenizers
need to agree, and every feature is measured alike. All features of a source share one factorisation, and second
moments alone give the scores, so that nothing grows with rows. Axes: F features, W width of the source, L strengths.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.rows.moments import HALVES, Moments

FEWEST = 20
"""Firings that a feature needs in each half; below, its score would be mostly chance."""
STRENGTHS = tuple(10.0**power for power in range(-5, 2))
"""Ridge strengths to choose from, in units of the mean variance of the source's coordinates."""
LEAST = 0.02
"""Score that the owners' own readout needs for a ratio to mean anything: about seven times what chance costs a fit of
six hundred coordinates to two hundred thousand rows."""
BLOCK = 1024
"""Features solved at a time."""


class _Centred(NamedTuple):
    """Moments about the means of some rows, fp64."""

    rows: int
    mean_x: Tensor
    """[W]"""
    products: Tensor
    """Sum of products of x [W, W]."""
    mean_f: Tensor
    """[F]"""
    squares: Tensor
    """Sum of squares of f [F]."""

    def cross(self, raw: Tensor, some: slice) -> Tensor:
        """Sum of products of f and x [features, W], from the raw ones."""
        return raw.double() - self.rows * self.mean_f[some, None] * self.mean_x


class _Ridge(NamedTuple):
    """One factorisation: products = axes diag(spread) axes'."""

    spread: Tensor
    """[W], at least 0."""
    axes: Tensor
    """[W, W]"""
    strengths: Tensor
    """Strengths in units of `spread` [L]."""

    @classmethod
    def of(cls, centred: _Centred) -> "_Ridge":
        spread, axes = torch.linalg.eigh(centred.products)
        spread = spread.clamp_min(0)
        unit = spread.mean().clamp_min(torch.finfo(torch.float64).tiny)
        return cls(spread, axes, unit * torch.tensor(STRENGTHS, dtype=torch.float64, device=spread.device))

    def solve(self, cross: Tensor, squares: Tensor, rows: int) -> Tensor:
        """Weights along the axes [features, W], every feature at the strength that suits it.

        The strength is chosen by generalised cross-validation (Golub, Heath and Wahba 1979), on the rows of the fit
        alone: the residual that is left, over the share of freedom that is left, squared.
        """
        along = cross @ self.axes
        shrunk = self.spread + self.strengths[:, None]
        explained = along.square() @ ((self.spread + 2 * self.strengths[:, None]) / shrunk.square()).T
        freedom = rows - 1 - (self.spread / shrunk).sum(dim=1)
        # Fewer rows than directions leave no freedom at small strengths.
        score = torch.where(freedom > 0, (squares[:, None] - explained) / freedom.square(), torch.inf)
        return along / shrunk[score.argmin(dim=1)]


@dataclass(frozen=True)
class Readout:
    """A source's readout of every feature."""

    score: np.ndarray
    """Explained variance on unseen documents, fp64 [F]: 1 is all, 0 no more than the mean explains, and a useless
    fit goes below 0. NaN for a feature that fired less than FEWEST times in a half."""
    moments: Moments = field(repr=False)
    source: str

    def weight(self, features: np.ndarray) -> tuple[Tensor, Tensor]:
        """Weights [n, W] and intercepts [n], fp64, of some features, fitted on all rows, for normalised activations."""
        index = torch.as_tensor(np.asarray(features), dtype=torch.int64)
        centred = _centred(self.moments, self.source, None)
        raw = self.moments.cross[self.source][:, index].double().sum(dim=0)
        mean_f = centred.mean_f[index]
        cross = raw - centred.rows * mean_f[:, None] * centred.mean_x
        ridge = _Ridge.of(centred)
        weight = ridge.solve(cross, centred.squares[index], centred.rows) @ ridge.axes.T
        return weight, mean_f - weight @ centred.mean_x


def readout(moments: Moments, source: str) -> Readout:
    """Fit every feature from a source's activations on each half and score it on the other.

    Linear with an intercept, ridge in fp64; both ways pooled: one minus the squared errors of both over the squared
    deviations of both from each half's own mean.
    """
    centred = [_centred(moments, source, half) for half in range(HALVES)]
    enough = (moments.firings >= FEWEST).all(dim=0)
    errors = torch.zeros(moments.features, dtype=torch.float64, device=enough.device)
    if all(part.rows > 1 for part in centred) and enough.any():
        for fitted in range(HALVES):
            for some, error in _errors(moments.cross[source], centred, fitted):
                errors[some] += error
    total = centred[0].squares + centred[1].squares
    score = torch.where(enough & (total > 0), 1 - errors / total, torch.nan)
    return Readout(score.cpu().numpy(), moments, source)


def readout_ratio(score: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """Best score of the sources that do not have a feature over the best of those that do [F].

    From scores and who has it, bool, both [F, S]. NaN for features that all have or none, where the best inside is
    below LEAST, and where nothing is known outside.
    """
    known = np.where(np.isnan(score), -np.inf, score)
    inside = np.where(holds, known, -np.inf).max(axis=1)
    outside = np.where(holds, -np.inf, known).max(axis=1)
    told = (inside >= LEAST) & np.isfinite(outside)
    ratio: np.ndarray = np.divide(outside, inside, out=np.full(len(inside), np.nan), where=told)
    return ratio


def _errors(cross: Tensor, centred: list[_Centred], fitted: int) -> Iterator[tuple[slice, Tensor]]:
    """Squared errors of some features at a time, fitted on one half, summed over the other."""
    fit, unseen = centred[fitted], centred[1 - fitted]
    ridge = _Ridge.of(fit)
    # Along the fit's axes, so that nothing has to be turned back.
    products = ridge.axes.T @ unseen.products @ ridge.axes
    shift = (unseen.mean_x - fit.mean_x) @ ridge.axes
    for first in range(0, cross.shape[1], BLOCK):
        some = slice(first, first + BLOCK)
        weight = ridge.solve(fit.cross(cross[fitted, some], some), fit.squares[some], fit.rows)
        along = unseen.cross(cross[1 - fitted, some], some) @ ridge.axes
        offset = unseen.mean_f[some] - fit.mean_f[some] - weight @ shift
        error = (weight * (weight @ products - 2 * along)).sum(dim=1) + unseen.rows * offset.square()
        yield some, unseen.squares[some] + error


def _centred(moments: Moments, source: str, half: int | None) -> _Centred:
    """Moments about the means of one half, or of all rows."""
    part, known = slice(None) if half is None else slice(half, half + 1), moments.of_rows
    rows = int(known.rows[part].sum())
    total, products = known.total[source][part].sum(dim=0), known.products[source][part].sum(dim=0)
    sums, squares = moments.sums[part].sum(dim=0), moments.squares[part].sum(dim=0)
    mean_x, mean_f = total / max(rows, 1), sums / max(rows, 1)
    centred = products - rows * torch.outer(mean_x, mean_x)
    return _Centred(rows, mean_x, centred, mean_f, (squares - rows * mean_f.square()).clamp_min(0))
