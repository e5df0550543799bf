"""Judges a toy crosscoder's features by the evidence alone, without the ground truth."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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


def supported_calls(
    crosscoder: Crosscoder, store: ActivationStore, recipe: AnalysisRecipe, folder: Path
) -> torch.Tensor:
    """Owners of features with a supported claim, tested on a store's held-out rows, bool [F, T] over the targets.

    All targets for the other features. `folder` gets temporary files.
    """
    held_out = ActivationStore(store.path, replace(store.manifest, shards=store.shards("held_out")))
    with CodeSpool(folder, crosscoder.features) as codes:
        ownership, tested = judge_without_text(
            held_out, crosscoder, codes, recipe, progress=_SilentProgress(RunFolder(folder), "toy")
        )
    supported = np.array([verdict == SUPPORTED for verdict in tested.judgement.verdict])
    return torch.from_numpy(ownership.holds | ~supported[:, None])
