"""Runs the analysis of a run with what it needs of the models: their unembeddings, and rows at other layers."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trainer.analysis.claims.other_layers import DEPTHS, LayerReader
from trainer.analysis.per_feature.logit_effects import Unembedding
from trainer.analysis.stage import analyse
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.models.source import Source
from trainer.reading.other_layers import read_rows
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


def analyse_with_models(
    recipe: Recipe,
    store: ActivationStore,
    crosscoder: Crosscoder,
    models: Sequence[Source],
    *,
    folder: RunFolder,
    progress: Progress,
) -> Path:
    """Analyse and publish a run; `models` are whole, and may be none. Raises what `analyse` raises.

    Other layers are read where the store has the tokens of a model: one that another program wrote may lack them.
    """
    depths = recipe.analysis.other_layers
    has_tokens = {"tokens", "token_ids"} <= store.sequence_columns()
    readable = [model for model in models if has_tokens and model.name in store.widths]
    read = partial(read_rows, store, batch_tokens=recipe.harvest.batch_tokens)
    return analyse(
        recipe,
        store,
        crosscoder,
        folder=folder,
        progress=progress,
        unembeddings=Unembedding.from_sources(models, progress.notify),
        layers=LayerReader(DEPTHS if depths is None else depths, readable, read, progress),
    )
