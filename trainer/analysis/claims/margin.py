"""How far the evidence of a claim is from the thresholds that decide whether it is supported."""

import numpy as np

from trainer.analysis.claims.verdict import FeatureStats, ratio_limit
from trainer.recipe.measuring import VerdictRecipe


def margins(stats: FeatureStats, recipe: VerdictRecipe) -> np.ndarray:
    """The smallest margin of each feature's claim [F]: 0 at a threshold, 1 for the best that can be measured.

    The margin of the probe ratio is 1 - upper bound / limit; of the excess, 1 - limit / lower bound; of the fdr, where
    it is known, 1 - fdr / limit. Below 0 a test is not passed. NaN where one of the first two is unknown.
    """
    with np.errstate(divide="ignore"):
        excess = 1 - recipe.excess / np.maximum(stats.excess.low, 0)
    ratio = 1 - stats.ratio.high / ratio_limit(stats, recipe)
    smallest = np.fmin(np.minimum(ratio, excess), 1 - stats.fdr / recipe.fdr)
    return np.where(np.isnan(ratio) | np.isnan(excess), np.nan, smallest)
