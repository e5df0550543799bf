"""Judges a toy crosscoder's features by the evidence alone, without the ground truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.textless import judge_without_text
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

DISCOVERED = 0.1
"""Claims with a q-value up to this count as discoveries; their share of false claims should stay below it."""


class _SilentProgress(Progress):
    """Shows nothing, because the bench has its own progress bar."""

    @contextmanager
    def task(
        self,
        message: str,  # noqa: ARG002
        *,
        total: int | None,  # noqa: ARG002
        unit: str = "rows",  # noqa: ARG002
        initial: int = 0,  # noqa: ARG002
    ) -> Iterator[Progress]:
        """A task without a progress bar."""
        yield self

    def advance(self, done: int, **measures: float) -> None:
        """Does nothing."""


class EvidenceCalls(NamedTuple):
    """Calls of all features, bool [F, T] over the crosscoder's targets; all true without an accepted claim."""

    supported: torch.Tensor
    """Claims whose verdict is supported."""
    discovered: torch.Tensor
    """Claims with a q-value up to DISCOVERED."""


def evidence_calls(
    crosscoder: Crosscoder, store: ActivationStore, recipe: AnalysisRecipe, folder: Path
) -> EvidenceCalls:
    """Tests a crosscoder's claims on a store's held-out rows; `folder` gets temporary files."""
    held_out = ActivationStore(store.path, replace(store.manifest, shards=store.shards("held_out")))
    with CodeSpool(folder, crosscoder.features) as codes:
        ownership, tested = judge_without_text(
            held_out, crosscoder, codes, recipe, progress=_SilentProgress(RunFolder(folder), "toy")
        )
    supported = np.array([verdict == SUPPORTED for verdict in tested.judgement.verdict])
    # Comparisons with NaN are false, so untested claims are no discoveries.
    return EvidenceCalls(*(_calls(ownership.holds, accepted) for accepted in (supported, tested.q_value <= DISCOVERED)))


def _calls(owners: np.ndarray, accepted: np.ndarray) -> torch.Tensor:
    """The claimed owners, bool [F, T], of features whose claim is accepted, bool [F]; all targets for the others."""
    return torch.from_numpy(owners | ~accepted[:, None])
