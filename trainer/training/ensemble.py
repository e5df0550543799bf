"""Trains residual dictionaries several times beside a crosscoder; what the trainings have in common is added to it."""

from collections.abc import Sequence

from trainer.analysis.rows.activations import sampled_activations
from trainer.crosscoder.consensus import consensus
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.fitting import ResidualRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder
from trainer.store.store import ActivationStore


def members(recipe: Recipe, folder: RunFolder, targets: Sequence[str] = ()) -> list[tuple[Recipe, RunFolder]]:
    """Recipe and folder of each training of a recipe's residual dictionaries, of some `targets` or all.

    Empty for a recipe without. Their seeds follow `training.seed`.
    """
    crosscoder, wanted = recipe.crosscoder.beside(tuple(targets)), recipe.crosscoder.residual
    if crosscoder is None or wanted is None:
        return []
    seeds = [recipe.training.seed + number for number in range(wanted.trainings)]
    trainings = [recipe.training.model_copy(update={"seed": seed}) for seed in seeds]
    recipes = [recipe.model_copy(update={"crosscoder": crosscoder, "training": training}) for training in trainings]
    return [(one, RunFolder(folder.ensemble / f"seed-{one.training.seed}")) for one in recipes]


def consensus_of(trained: Sequence[Crosscoder], store: ActivationStore, wanted: ResidualRecipe) -> Crosscoder:
    """What several trainings on a store have in common; without any group if that is nothing."""
    return consensus(trained, sampled_activations(store, trained), wanted.found_in)
