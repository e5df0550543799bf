"""Gathers the inputs of all claims and judges them against the decoys of their owners."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.analysis.claims.contrast import ReadoutContrast, readout_contrast, readout_slack
from trainer.analysis.claims.decoys import decoy_contrasts, transplant_decoys
from trainer.analysis.claims.latent_scaling import ScalingFactors
from trainer.analysis.claims.q_values import largest_p_values, p_values, q_values
from trainer.analysis.claims.readout import Readout
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge, ratio_limit
from trainer.analysis.per_feature.decoder_norms import DecoderNorms, claims, holders, owners
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

MIN_DECOYS = 100
"""Smallest set of decoys that is used; a smaller one cannot resolve small p-values."""

FalseClaimStrengths = Mapping[str, np.ndarray]
"""Strengths of claims that are known to be false, by owner."""


@dataclass(frozen=True)
class FeatureMeasures:
    """Measures of every feature beside its readouts [F]; NaN where unknown."""

    firings: np.ndarray
    documents: np.ndarray
    density: np.ndarray
    template_share: np.ndarray
    first_token_share: np.ndarray
    twin: np.ndarray
    """Largest correlation with a feature of another owner."""

    @classmethod
    def without_text(cls, firings: np.ndarray, rows: int, twin: np.ndarray) -> "FeatureMeasures":
        """Measures for a store without texts."""
        unknown = np.full(len(firings), np.nan)
        return cls(firings, unknown, firings / max(rows, 1), unknown, unknown, twin)


@dataclass(frozen=True)
class JudgedClaims:
    """Claims with their p-values, q-values and verdicts. Axis F: features."""

    contrast: ReadoutContrast
    p_value: np.ndarray
    q_value: np.ndarray
    decoys: FalseClaimStrengths
    """Strengths of the transplanted decoys, by owner."""
    judgement: Judgement


@dataclass(frozen=True)
class Ownership:
    """Owner of each feature by its decoder norms. Axes: F features, T reconstructed sources."""

    owner: list[str]
    claims: np.ndarray
    """Whether ownership claims that some source lacks the feature, bool [F]."""
    holds: np.ndarray
    """Which sources the owner names, bool [F, T]."""

    @classmethod
    def from_norms(cls, crosscoder: Crosscoder, norms: DecoderNorms, recipe: AnalysisRecipe) -> "Ownership":
        """Owners by the recipe's thresholds on norm shares."""
        targets = [crosscoder.sources.index(name) for name in crosscoder.targets]
        owner = owners(norms.share[:, targets], crosscoder.targets, recipe)
        return cls(owner, claims(owner, crosscoder.targets), holders(owner, crosscoder.targets))


@dataclass(frozen=True)
class ClaimInputs:
    """Everything that is measured of a crosscoder's features before their claims are judged."""

    crosscoder: Crosscoder
    ownership: Ownership
    moments: Moments
    readouts: Mapping[str, Readout]
    """Readouts by source, at least of the crosscoder's targets."""
    measures: FeatureMeasures
    scaling: ScalingFactors | None = None
    found_again: np.ndarray | None = None
    """Share of the other runs that have each feature [F]."""
    other_runs: np.ndarray | int = 0
    """Number of other runs, per feature [F] or for all."""


def judge_claims(
    inputs: ClaimInputs,
    store: ActivationStore,
    recipe: AnalysisRecipe,
    *,
    known_false: Sequence[FalseClaimStrengths] = (),
    progress: Progress,
) -> JudgedClaims:
    """Judge all claims by comparison with transplanted decoys and with other claims `known_false`.

    Makes one more pass over the store, for the decoys.
    """
    crosscoder, ownership = inputs.crosscoder, inputs.ownership
    contrast = readout_contrast(
        {name: inputs.readouts[name].score for name in crosscoder.targets},
        ownership.holds,
        readout_slack(inputs.moments),
    )
    decoys = _decoys(inputs, store, recipe, progress)
    nu_error, nu_reconstruction = _largest_nu_outside(inputs.scaling, crosscoder, ownership.holds)
    unknown = np.full(len(ownership.owner), np.nan)
    stats = FeatureStats(
        contrast,
        p_value=unknown,
        q_value=unknown,
        decoys=np.zeros(len(unknown), np.int64),
        nu_error=nu_error,
        nu_reconstruction=nu_reconstruction,
        found_again=unknown if inputs.found_again is None else inputs.found_again,
        other_runs=np.full(len(unknown), inputs.other_runs),
        **vars(inputs.measures),
    )
    p, q, count = claim_significance(
        ownership,
        contrast,
        ratio_limit(stats, recipe.verdict),
        [decoys, *known_false],
        least=recipe.verdict.owner_readout,
    )
    stats = replace(stats, p_value=p, q_value=q, decoys=count)
    return JudgedClaims(contrast, p, q, decoys, judge(ownership.claims, stats, recipe.verdict))


def _decoys(
    inputs: ClaimInputs, store: ActivationStore, recipe: AnalysisRecipe, progress: Progress
) -> FalseClaimStrengths:
    """Strengths of transplanted decoys, by owner with claims; NaN for decoys whose own readout is too poor."""
    ownership, owner, least = inputs.ownership, np.array(inputs.ownership.owner), recipe.verdict.owner_readout
    readouts = {name: inputs.readouts[name] for name in inputs.crosscoder.targets}
    decoys = []
    for name in sorted(set(owner[ownership.claims])) if recipe.decoys else ():
        claims_of_owner = ownership.claims & (owner == name)
        decoys.append(
            transplant_decoys(name, readouts, ownership.holds, claims_of_owner, count=recipe.decoys, least=least)
        )
    contrasts = decoy_contrasts(
        store,
        inputs.crosscoder,
        [one for one in decoys if one is not None],
        inputs.measures.density,
        folds=TwoFold.from_store(store),
        row_moments=inputs.moments.row_moments,
        progress=progress,
    )
    return {name: np.where(one.own >= least, one.strength, np.nan) for name, one in contrasts.items()}


def claim_significance(
    ownership: Ownership,
    contrast: ReadoutContrast,
    limit: np.ndarray,
    sets: Sequence[FalseClaimStrengths],
    *,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p-values, q-values and numbers of decoys behind them, each [F], computed owner by owner.

    A claim whose readout ratio exceeds its limit enters the q-values with p = 1: the difference is not worth the name.
    A claim whose owner's readout score is below `least` is not tested. Of several sets of false claims the largest
    p-value counts. Sets of different sizes bound p-values from below differently; only the largest set's bound applies,
    so that a smaller set counts only for claims that one of its decoys matches. Sets below MIN_DECOYS are ignored.
    """
    owner = np.array(ownership.owner)
    p, q, count = np.full(len(owner), np.nan), np.full(len(owner), np.nan), np.zeros(len(owner), np.int64)
    for name in set(owner[ownership.claims]):
        claims_of_owner = np.flatnonzero(ownership.claims & (owner == name))
        strength = np.where(contrast.own[claims_of_owner] >= least, contrast.strength[claims_of_owner], np.nan)
        decoy_sets = [strengths[name][~np.isnan(strengths[name])] for strengths in sets if name in strengths]
        decoy_sets = [decoys for decoys in decoy_sets if len(decoys) >= MIN_DECOYS]
        largest = max(map(len, decoy_sets), default=0)
        p_by_set = [_drop_lower_bound(p_values(strength, decoys), len(decoys), largest) for decoys in decoy_sets]
        above_limit = contrast.ratio[claims_of_owner] > limit[claims_of_owner]
        p[claims_of_owner] = largest_p_values(p_by_set, len(claims_of_owner))
        q[claims_of_owner] = q_values(np.where(above_limit & ~np.isnan(p[claims_of_owner]), 1.0, p[claims_of_owner]))
        count[claims_of_owner] = largest
    return p, q, count


def _drop_lower_bound(p: np.ndarray, decoys: int, largest: int) -> np.ndarray:
    """p-values of a set of decoys, NaN where a set that is not the largest has no decoy as strong as the claim."""
    at_bound = (decoys < largest) & (p <= 1 / (1 + decoys))
    return np.where(at_bound, np.nan, p)


def _largest_nu_outside(
    scaling: ScalingFactors | None, crosscoder: Crosscoder, holds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest nu of error and of reconstruction over the sources that do not have each feature [F]; NaN if unknown."""
    if scaling is None:
        return np.full(len(holds), np.nan), np.full(len(holds), np.nan)
    targets = [crosscoder.sources.index(name) for name in crosscoder.targets]

    def largest(nu: np.ndarray) -> np.ndarray:
        outside = np.where(holds | np.isnan(nu[:, targets]), -np.inf, nu[:, targets]).max(axis=1)
        return np.where(np.isinf(outside), np.nan, outside)

    return largest(scaling.nu_error), largest(scaling.nu_reconstruction)


def read_known_false(path: Path, ownership: Ownership) -> list[FalseClaimStrengths]:
    """Strengths of false claims from a run's `calibration.json`, by owner; empty without that file.

    All sources of a null run are copies of one, so its claims serve as decoys for every owner.
    """
    if not path.is_file():
        return []
    strengths = json.loads(path.read_text(encoding="utf-8"))["known_false"]
    owners = {name for name, claim in zip(ownership.owner, ownership.claims, strict=True) if claim}
    return [dict.fromkeys(owners, np.array(values, float)) for values in strengths.values()]
