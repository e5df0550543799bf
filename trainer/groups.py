"""Groups: contiguous ranges of features with the same reads and writes.

Every crosscoder variant is a list of groups. A block that a group may neither read nor write does
not exist as a parameter, so it needs no mask and can receive no gradient.
"""

from dataclasses import dataclass

from trainer.errors import RecipeError
from trainer.recipe import CrosscoderRecipe


@dataclass(frozen=True)
class Group:
    """A contiguous range of features that read the same sources and write the same sources."""

    name: str
    features: int
    first: int
    """Index of the group's first feature in the whole dictionary."""
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def stop(self) -> int:
        """One past the index of the group's last feature."""
        return self.first + self.features


def preset(recipe: CrosscoderRecipe, sources: tuple[str, ...]) -> tuple[Group, ...]:
    """The groups of a named variant over these sources.

    `standard` is the acausal crosscoder of Lindsey et al. 2024 (one group, reads and writes all);
    `dfc` the Dedicated Feature Crosscoder of arXiv 2602.11729, for any number of sources.
    Raises RecipeError when the dictionary is too small for its groups.
    """
    if recipe.variant == "standard":
        return _laid_out([("shared", recipe.features, sources)])
    dedicated = round(recipe.features * recipe.exclusive_share)
    shared = recipe.features - dedicated * len(sources)
    if dedicated < 1 or shared < 1:
        raise RecipeError(
            f"crosscoder: {recipe.features} features with an exclusive share of {recipe.exclusive_share} leave "
            f"{dedicated} for each of {len(sources)} sources and {shared} shared. Each group needs at least one."
        )
    return _laid_out([("shared", shared, sources)] + [(source, dedicated, (source,)) for source in sources])


def _laid_out(sizes: list[tuple[str, int, tuple[str, ...]]]) -> tuple[Group, ...]:
    """Groups one after another; each writes what it reads."""
    groups, first = [], 0
    for name, features, sources in sizes:
        groups.append(Group(name=name, features=features, first=first, reads=sources, writes=sources))
        first += features
    return tuple(groups)
