"""Asks how well a source's activations tell on which rows a feature fires.

A linear probe per source, fitted on one half of the documents, ranks those rows of the other half that training never
saw. It may read the row before or after instead, where that tells more in the half of the fit: what one model knows at
a token another may know a token earlier or later, as tokenizers differ. *R-precision* is the share of firings among the
P rows that it ranks first, where P is the number of firings; the AUC is the chance that a row with a firing ranks above
one without. Unlike an explained variance, both are near 1 for a rare feature that is told perfectly. Axes: C features,
S sources, R rows, W width of a source, K groups of documents.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.row_moments import FOLDS, RowMoments

MIN_FIRINGS = 10
"""Firings that a feature needs in each fold, and on judged rows; with fewer, nothing is said about it."""
RIDGE = 1e-3
"""Ridge strength of the probes, in units of the mean variance of a coordinate."""
SHIFTS = (0, -1, 1)
"""Rows that a probe may read, counted from the row where the feature fires."""
NEGATIVES = 8192
"""Rows that the AUC compares with, per fold."""
BLOCK = 64
"""Features scored at a time."""
ROWS = 16384
"""Rows scored at a time."""


@dataclass(frozen=True)
class Probes:
    """How well every source tells each of some features."""

    enough: np.ndarray
    """Whether a feature fires often enough to be asked about, bool [C]."""
    hits: np.ndarray
    """Firings among the rows ranked first, by group of documents, fp32 [S, K, C]."""
    auc: np.ndarray
    """[S, C]; NaN for features that fire too seldom."""


class _Fold(NamedTuple):
    """Some rows of one fold of the sample."""

    rows: np.ndarray
    """Its rows [n]."""
    firings: list[np.ndarray]
    """Of every feature, the rows within the fold where it fires."""
    read: list[np.ndarray]
    """By shift, the row within the fold that a probe reads for each of its rows [n]."""


def probe_features(
    sample: RowSample, firings: Sequence[np.ndarray], sources: Sequence[str], moments: RowMoments
) -> Probes:
    """Fit and score the probes of every feature from every source; `firings` are rows of the sample."""
    fits = [_fold(sample, firings, number, sample.size) for number in range(FOLDS)]
    judged = [_fold(sample, firings, number, sample.judged) for number in range(FOLDS)]
    count = _count(judged).sum(axis=0)
    enough = (_count(fits) >= MIN_FIRINGS).all(axis=0) & (count >= MIN_FIRINGS)
    hits = np.zeros((len(sources), sample.clusters, len(firings)), np.float32)
    auc = np.zeros((len(sources), len(firings)))
    for source, name in enumerate(sources):
        x = sample.rows[name]
        for fitted, fold in ((1, judged[0]), (0, judged[1])):
            weight, shift = _fit(x, fits[fitted], moments, name, fitted)
            scorer = _Scorer(fold, sample.cluster[fold.rows], hits[source], auc[source])
            scorer.score(x[torch.from_numpy(fold.rows)], weight, shift, np.flatnonzero(enough))
    return Probes(enough, hits, np.where(enough, auc / np.maximum(count, 1), np.nan))


def _fold(sample: RowSample, firings: Sequence[np.ndarray], number: int, stop: int) -> _Fold:
    """The rows of a fold among the first `stop` rows of a sample."""
    rows = np.flatnonzero(sample.fold[:stop] == number)
    position = np.zeros(stop, np.int64)
    position[rows] = np.arange(len(rows))
    early = [fired[fired < stop] for fired in firings]
    # Of a sequence all rows are judged or none.
    read = [position[sample.neighbour(shift)[rows]] for shift in SHIFTS]
    return _Fold(rows, [position[fired[sample.fold[fired] == number]] for fired in early], read)


def _count(folds: Sequence[_Fold]) -> np.ndarray:
    """Firings of every feature in every fold [folds, C]."""
    return np.array([[len(rows) for rows in fold.firings] for fold in folds], np.int64).reshape(len(folds), -1)


def _fit(x: Tensor, fit: _Fold, moments: RowMoments, source: str, fold: int) -> tuple[Tensor, np.ndarray]:
    """Probe weights, fp32 [C, W], and the index of the shift that each reads with, int64 [C].

    Ridge regression of the indicator of firing, whose direction is Fisher's (1936); of the shifts the one with the
    largest Mahalanobis distance between rows with a firing and all rows.
    """
    total = moments.joint([source], [source], fold)
    ridge = RIDGE * total.products.diagonal().mean().clamp_min(1e-30)
    gram = total.products + ridge * torch.eye(x.shape[1], dtype=torch.float64, device=total.products.device)
    factor = torch.linalg.cholesky(gram)
    weights, distances = [], []
    for read in fit.read:
        fired = torch.zeros(len(fit.firings), x.shape[1], dtype=torch.float64)
        for feature, rows in enumerate(fit.firings):
            if len(rows):
                mean = x[torch.from_numpy(fit.rows[read[rows]])].float().mean(dim=0).double()
                fired[feature] = mean - total.mean.cpu()
        fired = fired.to(gram.device)
        weights.append(torch.cholesky_solve(fired.T, factor).T)
        distances.append((weights[-1] * fired).sum(dim=1))
    shift = torch.stack(distances).argmax(dim=0)
    weight = torch.stack(weights)[shift, torch.arange(len(shift), device=shift.device)].float()
    return weight, shift.cpu().numpy()


class _Scorer(NamedTuple):
    """Scores the rows of one fold by a source's probes."""

    fold: _Fold
    cluster: np.ndarray
    """Group of documents of each row [n]."""
    hits: np.ndarray
    """Hits by group of documents, to be added to [K, C]."""
    auc: np.ndarray
    """AUC times firings, to be added to [C]."""

    def score(self, x: Tensor, weight: Tensor, shift: np.ndarray, features: np.ndarray) -> None:
        """Score rows x [n, W] for some features; those that fire on none of them get nothing."""
        features = features[[len(self.fold.firings[feature]) > 0 for feature in features]]
        negatives = np.random.default_rng(0).choice(len(x), min(NEGATIVES, len(x)), replace=False)
        with ThreadPoolExecutor(2) as workers:
            for first in range(0, len(features), BLOCK):
                some = features[first : first + BLOCK]
                part = weight[torch.from_numpy(some).to(weight.device)]
                scores = torch.cat([part @ rows.to(part.device).float().T for rows in x.split(ROWS)], dim=1)
                scored = zip(some, scores.cpu().numpy(), shift[some], strict=True)
                jobs = [workers.submit(self._add, one, score, read, negatives) for one, score, read in scored]
                for job in jobs:
                    job.result()

    def _add(self, feature: int, score: np.ndarray, shift: int, negatives: np.ndarray) -> None:
        """Add the hits and the AUC of one feature, given the scores of all rows [n]."""
        fired, score = self.fold.firings[feature], score[self.fold.read[shift]]
        at = score[fired]
        least = np.partition(score, len(score) - len(fired))[len(score) - len(fired)]
        np.add.at(self.hits[:, feature], self.cluster[fired], (at >= least).astype(np.float32))
        others = np.sort(score[np.setdiff1d(negatives, fired)])
        below = np.searchsorted(others, at, side="left") + np.searchsorted(others, at, side="right")
        self.auc[feature] += below.sum() / (2 * max(len(others), 1))
