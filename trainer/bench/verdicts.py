"""Judges a toy crosscoder's features by the evidence alone, without the ground truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from trainer.analysis.claims.verdict import SUPPORTED
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.textless import judge_without_text
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


def supported_calls(
    crosscoder: Crosscoder, store: ActivationStore, recipe: AnalysisRecipe, progress: Progress, folder: Path
) -> torch.Tensor:
    """Owners of features with a supported claim, tested on a store's held-out rows, bool [F, T] over the targets.

    All targets for the other features. `folder` gets temporary files.
    """
    held_out = ActivationStore(store.path, replace(store.manifest, shards=store.shards("held_out")))
    with CodeSpool(folder, crosscoder.features) as codes:
        ownership, tested = judge_without_text(held_out, crosscoder, codes, recipe, progress=progress)
    supported = np.array([verdict == SUPPORTED for verdict in tested.judgement.verdict])
    return torch.from_numpy(ownership.holds | ~supported[:, None])
