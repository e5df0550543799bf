"""Trains residual dictionaries several times beside a crosscoder, and adds what the trainings have in common to it."""

from collections.abc import Sequence

from trainer.analysis.rows.activations import sampled_activations
from trainer.crosscoder.consensus import consensus
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.fitting import CrosscoderRecipe, ResidualRecipe, SparsityRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder
from trainer.store.store import ActivationStore

KEPT = ("inputs", "targets", "normalisation", "damp_above", "decoder_norm", "dead_features")
"""Settings of the crosscoder that its residual dictionaries share."""


def members(recipe: Recipe, folder: RunFolder, targets: Sequence[str] = ()) -> list[tuple[Recipe, RunFolder]]:
    """Recipe and folder of each training of a recipe's residual dictionaries, of some `targets` or all.

    Empty for a recipe without.
    """
    wanted = recipe.crosscoder.residual
    if wanted is None:
        return []
    fields = {name: getattr(recipe.crosscoder, name) for name in KEPT}
    crosscoder = CrosscoderRecipe(
        variant="residual",
        features=wanted.features,
        sparsity=SparsityRecipe(
            k=wanted.k,
            rank_by=recipe.crosscoder.sparsity.rank_by,
            anneal_share=recipe.crosscoder.sparsity.anneal_share,
        ),
        **(fields | {"targets": tuple(targets) or recipe.crosscoder.targets}),
    )
    seeds = [recipe.training.seed + number for number in range(wanted.trainings)]
    return [
        (
            recipe.model_copy(
                update={"crosscoder": crosscoder, "training": recipe.training.model_copy(update={"seed": seed})}
            ),
            RunFolder(folder.ensemble / f"seed-{seed}"),
        )
        for seed in seeds
    ]


def consensus_of(trained: Sequence[Crosscoder], store: ActivationStore, wanted: ResidualRecipe) -> Crosscoder:
    """What several trainings on a store have in common; without any group if that is nothing."""
    return consensus(trained, sampled_activations(store, trained), wanted.found_in)
