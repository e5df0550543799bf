"""Counts the weights and products of a recipe's crosscoder, in training and as it is saved."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trainer.crosscoder.groups import Group, build_groups, difference_sources
from trainer.recipe.fitting import CrosscoderRecipe


@dataclass(frozen=True)
class DictionarySize:
    """Sizes of the crosscoder of a recipe, for a store of sources of these widths."""

    recipe: CrosscoderRecipe
    store_widths: Mapping[str, int]

    @property
    def widths(self) -> Mapping[str, int]:
        """Widths of the crosscoder's sources by name."""
        pairs = difference_sources(self.recipe, self.store_widths)
        return {name: self.store_widths[pair[0]] for name, pair in pairs.items()} or self.store_widths

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups in training."""
        return build_groups(self.recipe, self.store_widths)

    @property
    def saved_groups(self) -> tuple[Group, ...]:
        """Groups of the saved crosscoder: those of residuals read what they are taken from."""
        if self.recipe.variant != "residual":
            return self.groups
        inputs = self.recipe.inputs or tuple(self.store_widths)
        return tuple(replace(group, reads=tuple({*inputs, *group.writes})) for group in self.groups)

    @property
    def parameters(self) -> int:
        """Number of weights in training."""
        return self._count(self.groups)

    @property
    def beside(self) -> "DictionarySize | None":
        """The residual dictionaries of one training beside the crosscoder; more than that is never added to it."""
        residual = self.recipe.beside()
        return None if residual is None else DictionarySize(residual, self.store_widths)

    @property
    def saved_parameters(self) -> int:
        """Number of weights of the saved crosscoder with what is added to it, without predictions."""
        return self._count(self.saved_groups) + (self.beside.saved_parameters if self.beside else 0)

    def _count(self, groups: tuple[Group, ...]) -> int:
        return sum(
            group.features
            * (self._wide(group.reads) + self._wide(group.writes[:1] if group.tied else group.writes) + 1)
            for group in groups
        )

    @property
    def product(self) -> int:
        """Number of encoder weights, which every row of a training is multiplied with."""
        return sum(group.features * self._wide(group.reads) for group in self.groups)

    @property
    def saved_product(self) -> int:
        """Number of encoder weights of the saved crosscoder with what is added to it."""
        own = sum(group.features * self._wide(group.reads) for group in self.saved_groups)
        return own + (self.beside.saved_product if self.beside else 0)

    @property
    def predicting(self) -> int:
        """Number of weights of all predictions of a target from other sources."""
        pairs = zip(self.groups, self.saved_groups, strict=True)
        return sum(
            (self._wide(saved.reads) - self._wide(group.reads)) * self._wide(group.writes) for group, saved in pairs
        )

    @property
    def active(self) -> int:
        """Active features per row, which residual dictionaries count each for itself; those added are counted."""
        residual = self.recipe.variant == "residual"
        own = self.recipe.sparsity.k * (len(self.groups) if residual else 1)
        return own + (self.beside.active if self.beside else 0)

    @property
    def features(self) -> int:
        """Features of all groups, those added included."""
        return self.groups[-1].stop + (self.beside.features if self.beside else 0)

    def _wide(self, names: tuple[str, ...]) -> int:
        return sum(self.widths[name] for name in names)
