"""Spaces: which sources share one, so that a direction of one source means something in another.

A model and its fine-tune share a space, and so do neighbouring layers; models that were trained apart do not, even
with the same width. That is read off the crosscoder itself: where spaces agree, the directions that a feature has in
two sources point the same way.
"""

import numpy as np
import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import RecipeError
from trainer.recipe.measuring import AnalysisRecipe

ALIKE = 0.5
"""Cosine that a quarter of the features must reach in two sources of one space. Directions of unrelated spaces have
cosines around zero, those of a model and its fine-tune mostly above 0.8; dead features stay where they began."""
QUARTILE = 0.75

Spaces = tuple[tuple[str, ...], ...]
"""Names of the sources of every space that has at least two."""


def spaces(crosscoder: Crosscoder, recipe: AnalysisRecipe) -> Spaces:
    """The recipe's `same_space`, or by `auto` what the decoder directions say.

    Raises RecipeError for a name that is no reconstructed source, and for sources of different widths.
    """
    if recipe.same_space == "auto":
        return _found(crosscoder)
    for names in recipe.same_space:
        for name in names:
            if name not in crosscoder.targets:
                known = ", ".join(crosscoder.targets)
                raise RecipeError(f"analysis.same_space: {name!r} is no reconstructed source. There are {known}.")
        if len({crosscoder.widths[name] for name in names}) > 1:
            widths = ", ".join(f"{name} (width {crosscoder.widths[name]})" for name in names)
            raise RecipeError(f"analysis.same_space: {widths} cannot share a space. Leave one of them out.")
    return tuple(names for names in recipe.same_space if len(names) > 1)


def alike(crosscoder: Crosscoder, one: str, other: str) -> float:
    """The upper quartile of the cosines between two sources' decoder directions of the same feature.

    Over features that write both with directions of their own; 0 when there are none or widths differ.
    """
    if crosscoder.widths[one] != crosscoder.widths[other]:
        return 0.0
    parts = []
    for group in crosscoder.groups:
        if {one, other} <= set(group.writes) and not group.tied:
            here, there = (crosscoder.weights[f"decoder.{name}.{group.name}"].detach().float() for name in (one, other))
            parts.append(torch.nn.functional.cosine_similarity(here, there, dim=1).cpu().numpy())
    return float(np.quantile(np.concatenate(parts), QUARTILE)) if parts else 0.0


def _found(crosscoder: Crosscoder) -> Spaces:
    found: list[list[str]] = []
    for source in crosscoder.targets:
        home = next((space for space in found if any(alike(crosscoder, source, name) >= ALIKE for name in space)), None)
        if home is None:
            found.append([source])
        else:
            home.append(source)
    return tuple(tuple(space) for space in found if len(space) > 1)
