"""Determines which sources share an activation space, so that a direction of one applies to another.

A model and its fine-tune share a space, and so do neighbouring layers; independently trained models do not, even of the
same width. The crosscoder itself shows it: in a common space, a feature's decoder directions in two sources agree.
"""

import numpy as np
import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import RecipeError
from trainer.recipe.measuring import AnalysisRecipe

SAME_SPACE_COSINE = 0.5
"""Cosine that at least a quarter of the features must reach in two sources of one space. In unrelated spaces cosines
are around zero, in a model and its fine-tune mostly above 0.8; dead features keep their initial directions."""
QUARTILE = 0.75

Spaces = tuple[tuple[str, ...], ...]
"""Names of the sources of every space, for spaces with at least two sources."""


def shared_spaces(crosscoder: Crosscoder, recipe: AnalysisRecipe) -> Spaces:
    """The recipe's `same_space`; for `auto`, spaces as determined from the decoder directions.

    Raises RecipeError for a name that is no reconstructed source, and for sources of different widths.
    """
    if recipe.same_space == "auto":
        return _detected_spaces(crosscoder)
    for names in recipe.same_space:
        for name in names:
            if name not in crosscoder.targets:
                known = ", ".join(crosscoder.targets)
                raise RecipeError(f"analysis.same_space: {name!r} is no reconstructed source. There are {known}.")
        if len({crosscoder.widths[name] for name in names}) > 1:
            widths = ", ".join(f"{name} (width {crosscoder.widths[name]})" for name in names)
            raise RecipeError(f"analysis.same_space: {widths} cannot share a space. Leave one of them out.")
    return tuple(names for names in recipe.same_space if len(names) > 1)


def direction_agreement(crosscoder: Crosscoder, one: str, other: str) -> float:
    """Upper quartile of the cosines between two sources' decoder directions of the same feature.

    Over features that write to both with untied directions; 0 if there are none or the widths differ.
    """
    if crosscoder.widths[one] != crosscoder.widths[other]:
        return 0.0
    parts = []
    for group in crosscoder.groups:
        if {one, other} <= set(group.writes) and not group.tied:
            first, second = (
                crosscoder.weights[f"decoder.{name}.{group.name}"].detach().float() for name in (one, other)
            )
            parts.append(torch.nn.functional.cosine_similarity(first, second, dim=1).cpu().numpy())
    return float(np.quantile(np.concatenate(parts), QUARTILE)) if parts else 0.0


def _detected_spaces(crosscoder: Crosscoder) -> Spaces:
    spaces: list[list[str]] = []
    for source in crosscoder.targets:
        match = next(
            (
                space
                for space in spaces
                if any(direction_agreement(crosscoder, source, name) >= SAME_SPACE_COSINE for name in space)
            ),
            None,
        )
        if match is None:
            spaces.append([source])
        else:
            match.append(source)
    return tuple(tuple(space) for space in spaces if len(space) > 1)
