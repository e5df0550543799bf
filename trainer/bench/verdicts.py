"""Verdicts of a toy: which of a crosscoder's claims the evidence supports, found out without looking at the truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.textless import judged
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

DISCOVERED = 0.1
"""q-value up to which claims count as discoveries, when the share of false ones among them is held against it."""


class _Silent(Progress):
    """Says nothing, because the bench has a bar of its own."""

    @contextmanager
    def task(
        self,
        message: str,  # noqa: ARG002
        *,
        total: int | None,  # noqa: ARG002
        unit: str = "rows",  # noqa: ARG002
        before: int = 0,  # noqa: ARG002
    ) -> Iterator[Progress]:
        """Around something that is not counted."""
        yield self

    def advance(self, done: int, **measures: float) -> None:
        """Count nothing."""


class Called(NamedTuple):
    """Calls of all features, bool [F, T] over the crosscoder's targets; all true for what is not called narrower."""

    supported: torch.Tensor
    """By verdict."""
    discovered: torch.Tensor
    """By q-value alone."""


def calls(crosscoder: Crosscoder, store: ActivationStore, recipe: AnalysisRecipe, folder: Path) -> Called:
    """Judge a crosscoder on a store's held-out rows; `folder` gets temporary files."""
    held_out = ActivationStore(store.path, replace(store.manifest, shards=store.shards("held_out")))
    with CodeSpool(folder, crosscoder.features) as codes:
        claimed, weighed = judged(held_out, crosscoder, codes, recipe, progress=_Silent(RunFolder(folder), "toy"))
    supported = np.array([word == SUPPORTED for word in weighed.judgement.verdict])
    # A comparison with NaN is false: what could not be tested is no discovery.
    return Called(*(_narrowed(claimed.holds, chosen) for chosen in (supported, weighed.q_value <= DISCOVERED)))


def _narrowed(holds: np.ndarray, chosen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(holds | ~chosen[:, None])
