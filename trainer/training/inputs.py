"""Prepares what a training reads: normalisers of its sources, and for `residual` what others tell of each target."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from trainer.crosscoder.groups import build_groups, residual_givens
from trainer.crosscoder.normalisation import Normaliser, centred_rms, damp_dominant_directions, median_norm
from trainer.crosscoder.prediction import fit_prediction
from trainer.crosscoder.residuals import Residuals
from trainer.crosscoder.row_moments import RowMoments
from trainer.recipe.fitting import CrosscoderRecipe
from trainer.store.store import ActivationStore, Rows

NORMALISER_ROWS = 131_072
"""Most rows from which mean and scale are estimated."""
PREDICTION_ROWS = 131_072
"""Training rows, evenly spaced, to which predictions are fitted; of up to twice as many, all are taken."""

Derive = Callable[[Rows, str], Tensor]
"""Gives a source's rows [R, W] from the store's."""


def estimate_normalisers(
    recipe: CrosscoderRecipe, store: ActivationStore, widths: Mapping[str, int], derive: Derive
) -> dict[str, Normaliser]:
    """Normaliser of every source, of these widths, estimated from training rows as the recipe says."""

    def blocks(source: str) -> Iterator[Tensor]:
        seen = 0
        for block in store.blocks("train"):
            rows = derive(block.rows, source)
            yield rows
            seen += len(rows)
            if seen >= NORMALISER_ROWS:
                return

    if recipe.normalisation == "centred_rms":
        normalisers = {source: centred_rms(blocks(source)) for source in widths}
    else:
        mean_width = sum(widths.values()) / len(widths)
        normalisers = {source: median_norm(blocks(source), mean_width) for source in widths}
    above = recipe.damp_above
    if above is None:
        return normalisers
    return {source: damp_dominant_directions(one, blocks(source), above) for source, one in normalisers.items()}


# Trainings side by side share the fit, and through the same object the residuals of each batch.
@lru_cache(maxsize=1)
def fit_residuals(recipe: CrosscoderRecipe, store: ActivationStore, device: torch.device) -> Residuals:
    """Fit the prediction of every target from the other sources to training rows.

    The fit is on the rows that the dictionary is trained on. A prediction has a few hundred weights per coordinate and
    a hundred thousand rows, so that its residual is less than a hundredth too small there. No verdict rests on it: the
    evidence fits maps of its own, on other documents than those it is applied to.
    """
    targets = tuple(group.writes[0] for group in build_groups(recipe, store.widths))
    given = residual_givens(recipe.inputs or tuple(store.widths), targets)
    undamped = recipe.model_copy(update={"damp_above": None})
    normaliser = estimate_normalisers(undamped, store, store.widths, lambda rows, source: rows[source])
    normaliser = {source: one.to(device) for source, one in normaliser.items()}
    moments = RowMoments(store.widths, device=device)
    step = max(1, store.count("train") // PREDICTION_ROWS)
    for block in store.blocks("train"):
        rows = {source: one(block.rows[source][::step].to(device)) for source, one in normaliser.items()}
        moments.add(rows, torch.zeros(len(next(iter(rows.values()))), dtype=torch.int64, device=device))
    residuals = Residuals(normaliser, {target: fit_prediction(moments, given[target], target) for target in targets})
    widths = {target: store.widths[target] for target in targets}
    own = estimate_normalisers(recipe, store, widths, lambda rows, target: residuals.of(rows, target).cpu())
    residuals.own = {target: one.to(device) for target, one in own.items()}
    return residuals
