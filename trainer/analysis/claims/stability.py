"""Stability: whether other runs of the same comparison, with other seeds or settings, found the same features.

What a run finds only once may be an accident of where its weights began. A feature is found again when some feature of
the other run has the same owner, points the same way in every source that has it, and fires on the same rows with the
same strength. Axes: F features of this run, G of the other, R sampled rows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from trainer.analysis.claims.claims import Ownership
from trainer.analysis.per_feature.decoder_norms import decoder_norms
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import CrosscoderError
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder
from trainer.store.store import ActivationStore

COSINE = 0.7
"""Cosine of the decoder directions, in every source that has the feature."""
CORRELATION = 0.5
"""Correlation of the activations."""
SAMPLE = 65_536
"""Rows on which firings are compared, at most."""
BLOCK = 512
"""Features compared with all others at a time."""


class Stability(NamedTuple):
    """How often features were found again."""

    found_in: np.ndarray
    """Other runs that have it, int64 [F]."""
    looked_in: np.ndarray
    """Other runs that claim something for its owner, int64 [F]; one that claims nothing could not have found it."""

    @property
    def share(self) -> np.ndarray:
        """Share of the other runs that have it [F]; NaN when there are none."""
        share: np.ndarray = np.where(self.looked_in > 0, self.found_in / np.maximum(self.looked_in, 1), np.nan)
        return share


class Side(NamedTuple):
    """One run's features with their activations [R, F] on the sampled rows."""

    crosscoder: Crosscoder
    claimed: Ownership
    activations: sp.csc_array


def other_runs(folder: RunFolder) -> list[RunFolder]:
    """Trained runs beside this one on the same rows and of the same name, in order of their ids."""
    pointer = _text(folder.store)
    name = folder.run.rpartition("-")[0]
    if pointer is None:
        return []
    beside = (RunFolder(path) for path in sorted(folder.path.parent.iterdir()) if path.name != folder.run)
    return [
        one
        for one in beside
        if one.run.rpartition("-")[0] == name and one.crosscoder.is_file() and _text(one.store) == pointer
    ]


def stability(
    store: ActivationStore,
    crosscoder: Crosscoder,
    claimed: Ownership,
    others: Sequence[RunFolder],
    recipe: AnalysisRecipe,
) -> Stability:
    """In how many of the other runs each feature is found; runs that cannot be compared are left out.

    Nor does a run count for owners of whom it has no feature at all: a standard crosscoder of close models calls
    nearly everything shared, and would be held against every claim of a `dfc` run beside it.
    """
    found, looked_in = np.zeros((2, crosscoder.features), np.int64)
    mine: Side | None = None
    for folder in others:
        other = _comparable(folder, crosscoder)
        if other is None:
            continue
        mine = mine or Side(crosscoder, claimed, _activations(store, crosscoder))
        theirs = Side(other, Ownership.of(other, decoder_norms(other), recipe), _activations(store, other))
        found += found_again(mine, theirs)
        looked_in += np.isin(claimed.owner, theirs.claimed.owner)
    return Stability(found, looked_in)


def found_again(mine: Side, theirs: Side) -> np.ndarray:
    """Whether each feature of one run is found in the other, bool [F]."""
    again = np.zeros(mine.crosscoder.features, bool)
    owner, other_owner = np.array(mine.claimed.owner), np.array(theirs.claimed.owner)
    for first, correlation in _correlations(mine.activations, theirs.activations):
        some = slice(first, first + len(correlation))
        alike = (correlation >= CORRELATION) & (owner[some, None] == other_owner)
        alike &= _cosines(mine.crosscoder, theirs.crosscoder, mine.claimed.holds[some], first) >= COSINE
        again[some] = alike.any(axis=1)
    return again


def _cosines(one: Crosscoder, other: Crosscoder, holds: np.ndarray, first: int) -> np.ndarray:
    """Smallest cosine with every feature of the other run over the sources that have a feature [features, G]."""
    smallest = np.where(holds.any(axis=1), 1.0, -1.0)[:, None].repeat(other.features, axis=1)
    for number, source in enumerate(one.targets):
        here = torch.nn.functional.normalize(one.decoder(source)[first : first + len(holds)].cpu(), dim=1)
        there = torch.nn.functional.normalize(other.decoder(source).cpu(), dim=1)
        cosine = (here @ there.T).numpy()
        smallest = np.where(holds[:, [number]], np.minimum(smallest, cosine), smallest)
    return smallest


def _correlations(mine: sp.csc_array, theirs: sp.csc_array) -> Iterator[tuple[int, np.ndarray]]:
    """First feature and correlations of some features with all of the other run [features, G]; 0 where constant."""
    rows = mine.shape[0]
    mean, spread = _moments(theirs)
    for first in range(0, mine.shape[1], BLOCK):
        part = mine[:, first : first + BLOCK]
        mean_here, spread_here = _moments(part)
        covariance = (part.T @ theirs).toarray() / rows - np.outer(mean_here, mean)
        scale = np.outer(spread_here, spread)
        yield first, np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def _moments(columns: sp.csc_array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column."""
    mean = np.asarray(columns.mean(axis=0)).ravel()
    square = np.asarray(columns.multiply(columns).mean(axis=0)).ravel()
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _activations(store: ActivationStore, crosscoder: Crosscoder) -> sp.csc_array:
    """Activations on an even sample of the rows [R, F]."""
    step = max(1, store.manifest.rows // SAMPLE)
    parts = []
    for block in store.blocks():
        found = crosscoder.encode({name: x[::step] for name, x in block.rows.items()})
        at = (found.row.cpu().numpy(), found.feature.cpu().numpy())
        shape = (found.rows, crosscoder.features)
        parts.append(sp.csr_array((found.value.double().cpu().numpy(), at), shape=shape))
    return sp.csc_array(sp.vstack(parts))


def _comparable(folder: RunFolder, crosscoder: Crosscoder) -> Crosscoder | None:
    """A run's crosscoder if it compares the same sources; None too for one that is just being written."""
    try:
        other = Crosscoder.load(folder.path)
    except CrosscoderError:
        return None
    same = other.widths == crosscoder.widths and other.targets == crosscoder.targets
    return other if same else None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
