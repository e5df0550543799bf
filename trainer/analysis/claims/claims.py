"""Gathers the inputs of all claims and judges them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.analysis.claims.evidence import ClaimedFeatures, ClaimEvidence, Estimate, measure_claims
from trainer.analysis.claims.latent_scaling import ScalingFactors
from trainer.analysis.claims.other_layers import LayerReader, OtherLayers
from trainer.analysis.claims.verdict import SUPPORTS, UNTESTED, FeatureStats, Judgement, judge
from trainer.analysis.per_feature.decoder_norms import DecoderNorms, claims, holders, owners
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.moments import Moments
from trainer.analysis.rows.sample import RowSample, sample_rows
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.folder import read_json
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

NullStrengths = Mapping[str, np.ndarray]
"""By owner, strengths of claims that noise of the same shape gave and that the probes would support."""


@dataclass(frozen=True)
class FeatureMeasures:
    """Measures of every feature beside the evidence on its claim [F]; NaN where unknown."""

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
class Ownership:
    """Owner of each feature by its decoder norms. Axes: F features, T reconstructed sources."""

    owner: list[str]
    claims: np.ndarray
    """Whether ownership claims that some source lacks the feature, bool [F]."""
    holds: np.ndarray
    """Which sources the owner names, bool [F, T]."""
    untested: np.ndarray
    """Features with such an owner of which no claim is made, bool [F]; see `candidates`."""

    @classmethod
    def from_norms(cls, crosscoder: Crosscoder, norms: DecoderNorms, recipe: AnalysisRecipe) -> "Ownership":
        """Owners by the recipe's thresholds on norm shares."""
        targets = [crosscoder.sources.index(name) for name in crosscoder.targets]
        owner = owners(norms.share[:, targets], crosscoder.targets, recipe)
        # A residual dictionary of one target still says that the sources it was predicted from lack the feature.
        compared = crosscoder.sources if crosscoder.predictions else crosscoder.targets
        exclusive, tested = claims(owner, compared), candidates(crosscoder)
        return cls(owner, exclusive & tested, holders(owner, crosscoder.targets), exclusive & ~tested)

    def verdicts(self, judged: Sequence[str]) -> list[str]:
        """The verdicts of all features, where those without a claim have none yet [F]."""
        return [UNTESTED if untested else verdict for untested, verdict in zip(self.untested, judged, strict=True)]


def candidates(crosscoder: Crosscoder) -> np.ndarray:
    """Features of which claims can be made, bool [F]: those of residual dictionaries beside it, else all."""
    beside = np.concatenate([np.full(group.features, not group.reconstructs) for group in crosscoder.groups])
    found: np.ndarray = beside if beside.any() else ~beside
    return found


@dataclass(frozen=True)
class ClaimInputs:
    """Everything that is known of a crosscoder's features before their claims are judged."""

    crosscoder: Crosscoder
    ownership: Ownership
    moments: Moments
    codes: CodeSpool
    measures: FeatureMeasures
    scaling: ScalingFactors | None = None
    found_again: np.ndarray | None = None
    """Share of the other trainings that have each feature [F]."""
    other_runs: np.ndarray | int = 0
    """Number of other trainings, per feature [F] or for all."""


@dataclass(frozen=True)
class JudgedClaims:
    """Evidence and verdicts. Axes: F features, C claims, S sources."""

    claims: np.ndarray
    """Features with a claim, int64 [C]."""
    evidence: ClaimEvidence
    """Of the claims [C]."""
    other_layers: OtherLayers
    """Of the claims, where the models could be read."""
    stats: FeatureStats
    judgement: Judgement

    def columns(self) -> dict[str, np.ndarray]:
        """Measures of all features for the table `feature`; NaN without a claim [F]."""
        stats = self.stats
        return {
            "probe_ratio": stats.ratio.value,
            "probe_low": stats.ratio.low,
            "probe_high": stats.ratio.high,
            "excess": stats.excess.value,
            "excess_low": stats.excess.low,
            "excess_high": stats.excess.high,
            "fdr": stats.fdr,
        }

    def probe_columns(self, sources: list[int]) -> dict[str, np.ndarray]:
        """Columns of the table `probe`; `sources` are the results' indices of the crosscoder's sources."""
        known = ~np.isnan(self.evidence.r_precision)
        claim, source = np.nonzero(known)
        return {
            "feature": self.claims[claim],
            "source": np.array(sources)[source],
            "r_precision": self.evidence.r_precision[claim, source],
            "auc": self.evidence.auc[claim, source],
        }

    def null_strengths(self, owner: np.ndarray) -> list[float]:
        """Strengths of an owner's claims, bool [C], that the probes support; see `null_rate`."""
        outcome = {test.name: test.says for test in self.judgement.tests}
        strengths: list[float] = self.evidence.excess.low[owner & (outcome["probe_ratio"] == SUPPORTS)].tolist()
        return strengths


def judge_claims(
    inputs: ClaimInputs,
    store: ActivationStore,
    recipe: AnalysisRecipe,
    *,
    null: NullStrengths | None = None,
    sample: RowSample | None = None,
    layers: LayerReader | None = None,
    progress: Progress,
) -> JudgedClaims:
    """Judge all claims; reads the store once more unless a `sample` of its rows is given.

    With `layers` other layers of the models are asked, too.
    """
    ownership, features = inputs.ownership, np.flatnonzero(inputs.ownership.claims)
    with progress.task("Judging claims", total=None, unit="claims"):
        sample = sample or sample_rows(store, inputs.crosscoder)
        claimed = ClaimedFeatures.of_crosscoder(inputs.crosscoder, features, ownership.holds, inputs.codes, sample)
        evidence = measure_claims(sample, claimed, inputs.moments.row_moments)
    elsewhere = OtherLayers([], [], []) if layers is None else layers.measure(sample, claimed)
    count = len(ownership.owner)
    nu_error, nu_reconstruction = _largest_nu_outside(inputs.scaling, inputs.crosscoder, ownership.holds)
    unknown = np.full(count, np.nan)
    stats = FeatureStats(
        ratio=_estimates(evidence.ratio, features, count),
        own=_values(evidence.own, features, count),
        excess=_estimates(evidence.excess, features, count),
        elsewhere=_estimates(elsewhere.largest(len(features)), features, count),
        fdr=unknown,
        nu_error=nu_error,
        nu_reconstruction=nu_reconstruction,
        found_again=unknown if inputs.found_again is None else inputs.found_again,
        other_runs=np.full(count, inputs.other_runs),
        **vars(inputs.measures),
    )
    judged = JudgedClaims(features, evidence, elsewhere, stats, judge(ownership.claims, stats, recipe.verdict))
    if null is None:
        return judged
    owner = np.array(ownership.owner, object)[features]
    rates = np.full(len(features), np.nan)
    for name in set(owner) & set(null):
        of_owner = owner == name
        rates[of_owner] = null_rate(evidence.excess.low[of_owner], judged.null_strengths(of_owner), null[name])
    stats = replace(stats, fdr=_values(rates, features, count))
    return JudgedClaims(features, evidence, elsewhere, stats, judge(ownership.claims, stats, recipe.verdict))


def null_rate(strength: np.ndarray, run: list[float], null: np.ndarray) -> np.ndarray:
    """Expected share of noise among an owner's claims at least as strong as each [C]; NaN for unknown strengths.

    The *strength* of a claim is the lower bound of its excess. The rate is the number of claims in the null that are at
    least as strong over that in the run, among claims that the probes support; it does not fall as strength falls.
    """
    if not len(run):
        return np.full(len(strength), np.nan)
    levels = np.sort(np.array(run))[::-1]
    in_null = (np.asarray(null)[None, :] >= levels[:, None]).sum(axis=1)
    # The smallest rate of all cuts that accept a claim: a weaker cut may be purer by chance, and accepts it too.
    rate = np.minimum.accumulate((in_null / np.arange(1, len(levels) + 1))[::-1])[::-1]
    place = np.searchsorted(-levels, -strength, side="right") - 1
    found: np.ndarray = np.where(place >= 0, np.minimum(rate[np.maximum(place, 0)], 1.0), np.nan)
    stronger = strength > levels[0]
    return np.where(np.isnan(strength), np.nan, np.where(stronger, np.minimum(rate[0], 1.0), found))


def read_null(path: Path) -> NullStrengths | None:
    """Strengths of the noise null's claims from a run's `calibration.json`; None without that file."""
    content = read_json(path)
    strengths = content.get("noise_strengths") if isinstance(content, dict) else None
    return {name: np.array(values, float) for name, values in strengths.items()} if strengths else None


def _values(values: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """Values of claims as values of features [F]; NaN for features without a claim."""
    result = np.full(count, np.nan)
    result[features] = values
    return result


def _estimates(estimate: Estimate, features: np.ndarray, count: int) -> Estimate:
    return Estimate(*(_values(part, features, count) for part in vars(estimate).values()))


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
