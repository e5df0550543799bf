"""Checks whether other trainings, and other runs of the same comparison, found the same features.

A feature that only one run finds may be an accident of its initialisation. A feature is found again if some feature of
the other run has the same owner, similar decoder directions in every source that has it, and correlated activations.
Axes: F features of this run, G features of the other, R sampled rows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from trainer.analysis.claims.claims import Ownership
from trainer.analysis.per_feature.decoder_norms import decoder_norms
from trainer.analysis.rows.activations import sampled_activations
from trainer.crosscoder.column_moments import column_moments
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import CrosscoderError
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder
from trainer.store.store import ActivationStore

COSINE = 0.7
"""Least cosine of the decoder directions, in every source that has the feature."""
CORRELATION = 0.5
"""Least correlation of the activations."""
BLOCK, ENTRIES = 512, 2**24
"""Most features, and most pairs of features, that are compared at a time."""


class Stability(NamedTuple):
    """Number of other trainings that found each feature again."""

    found_in: np.ndarray
    """Other trainings that have the feature, int64 [F]."""
    looked_in: np.ndarray
    """Other trainings with any feature of its owner, int64 [F]; one without any could not have found it."""

    @property
    def share(self) -> np.ndarray:
        """Share of the other trainings that have the feature [F]; NaN if there are none."""
        share: np.ndarray = np.where(self.looked_in > 0, self.found_in / np.maximum(self.looked_in, 1), np.nan)
        return share


class RunFeatures(NamedTuple):
    """One run's features."""

    crosscoder: Crosscoder
    ownership: Ownership
    activations: sp.csc_array
    """Activations on the sampled rows [R, F]."""


def other_runs(folder: RunFolder) -> list[RunFolder]:
    """Trained runs in the same folder, of the same name and on the same activation store, in order of their ids."""
    store_text = _read_if_present(folder.store)
    name = folder.run_id.rpartition("-")[0]
    if store_text is None:
        return []
    siblings = (RunFolder(path) for path in sorted(folder.path.parent.iterdir()) if path.name != folder.run_id)
    return [
        one
        for one in siblings
        if one.run_id.rpartition("-")[0] == name
        and one.crosscoder.is_file()
        and _read_if_present(one.store) == store_text
    ]


def stability(
    store: ActivationStore,
    crosscoder: Crosscoder,
    ownership: Ownership,
    others: Sequence[RunFolder],
    recipe: AnalysisRecipe,
) -> Stability:
    """Number of other trainings in which each feature is found again; runs over other sources are skipped.

    Features of residual dictionaries were looked for in the other trainings of their own run; those count as runs.
    For an owner of which it has no feature a run does not count: a standard crosscoder of similar models finds nearly
    all features shared, and would otherwise speak against every claim of a `dfc` run.
    """
    found_in, looked_in = _other_trainings(crosscoder)
    this_run: RunFeatures | None = None
    for folder in others:
        other = _comparable(folder, crosscoder)
        if other is None:
            continue
        this_run = this_run or RunFeatures(crosscoder, ownership, *sampled_activations(store, [crosscoder]))
        owned = Ownership.from_norms(other, decoder_norms(other), recipe)
        other_run = RunFeatures(other, owned, *sampled_activations(store, [other]))
        found_in += found_again(this_run, other_run)
        looked_in += np.isin(ownership.owner, other_run.ownership.owner)
    return Stability(found_in, looked_in)


def _other_trainings(crosscoder: Crosscoder) -> tuple[np.ndarray, np.ndarray]:
    """Of the trainings behind each feature all but one: those that have it, and their number, int64 [F] each."""
    found_in, looked_in = np.zeros((2, crosscoder.features), np.int64)
    for group in crosscoder.groups:
        if group.name in crosscoder.recurrence:
            found_in[group.first : group.stop] = crosscoder.recurrence[group.name].cpu().numpy() - 1
            looked_in[group.first : group.stop] = crosscoder.trainings - 1
    return found_in, looked_in


def found_again(this_run: RunFeatures, other_run: RunFeatures) -> np.ndarray:
    """Whether each feature of one run is found in the other, bool [F]."""
    found = np.zeros(this_run.crosscoder.features, bool)
    owner, other_owner = np.array(this_run.ownership.owner), np.array(other_run.ownership.owner)
    for first, correlation in _correlations(this_run.activations, other_run.activations):
        some = slice(first, first + len(correlation))
        row, other = np.nonzero((correlation >= CORRELATION) & (owner[some, None] == other_owner))
        feature = first + row
        cosine = _cosines(this_run.crosscoder, other_run.crosscoder, this_run.ownership.holds[feature], feature, other)
        found[feature[cosine >= COSINE]] = True
    return found


def _cosines(
    one: Crosscoder, other: Crosscoder, holds: np.ndarray, feature: np.ndarray, match: np.ndarray
) -> np.ndarray:
    """Cosine of pairs of a feature and one of the other run [n], smallest over the sources that `holds` [n, T] names.

    -1 where it names none.
    """
    smallest = np.where(holds.any(axis=1), 1.0, -1.0)
    for number, source in enumerate(one.targets):
        for start in range(0, len(feature), BLOCK):
            some = slice(start, start + BLOCK)
            pair = (one.decoder(source, feature[some]), other.decoder(source, match[some]))
            left, right = (torch.nn.functional.normalize(direction, dim=1) for direction in pair)
            cosine = (left * right).sum(dim=1).cpu().numpy()
            smallest[some] = np.where(holds[some, number], np.minimum(smallest[some], cosine), smallest[some])
    return smallest


def _correlations(activations: sp.csc_array, other_activations: sp.csc_array) -> Iterator[tuple[int, np.ndarray]]:
    """First feature and correlations of some features with all of the other run [features, G]; 0 where constant."""
    rows = activations.shape[0]
    mean, deviation = column_moments(other_activations)
    step = max(1, min(BLOCK, ENTRIES // other_activations.shape[1]))
    for first in range(0, activations.shape[1], step):
        part = activations[:, first : first + step]
        mean_part, deviation_part = column_moments(part)
        covariance = (part.T @ other_activations).toarray() / rows - np.outer(mean_part, mean)
        scale = np.outer(deviation_part, deviation)
        yield first, np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def _comparable(folder: RunFolder, crosscoder: Crosscoder) -> Crosscoder | None:
    """A run's crosscoder if it has the same sources and targets; None also for one that is being written."""
    try:
        other = Crosscoder.load(folder.path)
    except CrosscoderError:
        return None
    same = other.widths == crosscoder.widths and other.targets == crosscoder.targets
    return other.to(crosscoder.device) if same else None


def _read_if_present(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
