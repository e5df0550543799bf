"""Trains residual dictionaries several times beside a crosscoder; what the trainings have in common is added to it."""

from collections.abc import Sequence

from trainer.analysis.rows.activations import sampled_activations
from trainer.crosscoder.consensus import add_consensus, consensus
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.identity import identify
from trainer.errors import CrosscoderError
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
    own = {"decay_share": wanted.decay_share}
    trainings = [recipe.training.model_copy(update={"seed": seed} | own) for seed in seeds]
    recipes = [recipe.model_copy(update={"crosscoder": crosscoder, "training": training}) for training in trainings]
    return [(one, RunFolder(folder.ensemble / f"seed-{one.training.seed}")) for one in recipes]


def known_features(folder: RunFolder) -> Crosscoder | None:
    """What an earlier training of a run found in common; None without one, or if it is damaged."""
    try:
        crosscoder = Crosscoder.load(folder.path)
    except CrosscoderError:
        return None
    groups = tuple(group for group in crosscoder.groups if group.name in crosscoder.identity)
    return crosscoder.with_groups(groups) if groups else None


def consensus_of(trained: Sequence[Crosscoder], store: ActivationStore, wanted: ResidualRecipe) -> Crosscoder:
    """What several trainings on a store have in common; without any group if that is nothing."""
    return consensus(trained, sampled_activations(store, trained), wanted.found_in)


def with_consensus(
    crosscoder: Crosscoder,
    trained: Sequence[Crosscoder],
    store: ActivationStore,
    wanted: ResidualRecipe,
    *,
    previous: Crosscoder | None,
    others: Sequence[RunFolder],
) -> Crosscoder:
    """A crosscoder with what its residual dictionaries have in common.

    A feature keeps the place that it had in the `previous` training of the run, or takes its id from `others`.
    """
    known = [found for folder in others if (found := known_features(folder)) is not None]
    return add_consensus(crosscoder, identify(consensus_of(trained, store, wanted), previous, known))
